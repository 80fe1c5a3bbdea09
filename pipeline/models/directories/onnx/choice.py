"""Choose what belongs to an .onnx file in a store: the file, and its external data beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pipeline.core.cache.node_cache import cached_folder, key_of
from pipeline.core.errors import JobError
from pipeline.models.directories.onnx.graph import (
    MAX_FILE_BYTES,
    check_is_here,
    external_files,
    is_inside,
    name_of,
    refusal,
)
from pipeline.storage.interface import StoredFile
from pipeline.storage.store import Store

SUFFIX = ".onnx"
_NAMES = "names.json"


def choose_onnx(store: Store, name: str) -> list[StoredFile]:
    """Return the file and those that its tensors name, sorted by path.

    What is in the file is read once per node, and again if its size or version changes.

    Raises:
        JobError: A file is missing, too large, or outside the directory.
    """
    place = store.url(name)
    stored = store.stat(name)
    if stored is None:
        raise JobError(f"model.path = {place}: no such file")
    if stored.size_bytes > MAX_FILE_BYTES:
        raise refusal(place, f"has {stored.size_bytes} bytes, more than protobuf reads")

    def write(folder: Path) -> None:
        with store.open(name) as file:
            check_is_here(place, file)
        (folder / _NAMES).write_text(json.dumps(_external_files(place, store.read_bytes(name))))

    key = key_of(["external data", place, stored.size_bytes, stored.version], ("onnx",))
    files = json.loads((cached_folder(key, write) / _NAMES).read_text())
    beside = [
        _beside(store, name, location, least_bytes) for location, least_bytes in files.items()
    ]
    return sorted([stored, *beside], key=lambda file: file.path)


def onnx_file_of(folder: Path) -> Path | None:
    """Return the .onnx file of a copy that was chosen here; None: it is another directory."""
    files = sorted(folder.glob(f"*{SUFFIX}"))
    return files[0] if len(files) == 1 else None


def _external_files(place: str, data: bytes) -> dict[str, int]:
    try:
        import onnx
    except ImportError:
        raise JobError(
            f"model.path = {place}: onnx is not installed: "
            "pip install 'batch-inference-pipeline[onnxruntime]'"
        ) from None
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # noqa: BLE001  # any error of the parser means that it is not a model
        raise refusal(place, f"is not an ONNX model, or damaged: {type(error).__name__}") from None
    return external_files(model)


def _beside(store: Store, name: str, location: str, least_bytes: int) -> StoredFile:
    what = f"a tensor lies in {name_of(location)}"
    if not is_inside(location) or location.endswith(SUFFIX):
        raise refusal(store.url(name), f"{what}, outside the directory of the file itself; refused")
    parts = location.split("/")
    paths = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    if not store.is_object_store and any(os.path.islink(store.url(path)) for path in paths):
        raise refusal(store.url(name), f"{what}, which is a link; refused: copy the file there")
    stored = store.stat(location)
    if stored is None:
        raise refusal(store.url(name), f"{what}, and there is no such file beside it")
    if stored.size_bytes < least_bytes:
        raise refusal(
            store.url(name),
            f"{what} up to byte {least_bytes}, and that file has {stored.size_bytes} bytes: cut "
            "off or damaged? copy it again",
        )
    return stored
