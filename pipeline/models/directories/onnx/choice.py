"""Choose what belongs to an .onnx file in a store: external data, and what says how texts become
tokens, in its folder; of `DIR/onnx/model.onnx` the latter lies in DIR, as exporters write it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.cache.node_cache import cached_folder, key_of
from pipeline.core.errors import JobError
from pipeline.models.directories.file_choice import files_beside
from pipeline.models.directories.files import ONNX_FOLDER, ONNX_SUFFIX, TOKENIZER
from pipeline.models.directories.onnx.graph import (
    MAX_FILE_BYTES,
    check_is_here,
    external_files,
    is_inside,
    name_of,
    parse_bytes,
    refusal,
)
from pipeline.preprocessing.texts.text_settings import IDS
from pipeline.storage.interface import StoredFile
from pipeline.storage.store import Store

_NAMES = "names.json"


def choose_onnx(uri: str, options: Mapping[str, Any]) -> tuple[Store, list[StoredFile]]:
    """Return the folder of a model, and the files in it that are used, sorted by path.

    These are the file, those that its tensors name, and of a model of texts the settings beside it.
    What is in the file is read once per node, and again if its size or version changes.

    Args:
        uri: Of the file, normalised.
        options: Of the store.

    Raises:
        JobError: A file is missing, too large, or outside the directory.
    """
    store, at, name = _placed(uri, options)
    place = store.url(name)
    stored = store.stat(name)
    if stored is None:
        raise JobError(f"model.path = {place}: no such file")
    if stored.size_bytes > MAX_FILE_BYTES:
        raise refusal(place, f"has {stored.size_bytes} bytes, more than protobuf reads")

    def write(folder: Path) -> None:
        with store.open(name) as file:
            check_is_here(place, file)
        (folder / _NAMES).write_text(json.dumps(_belongings(place, store.read_bytes(name))))

    key = key_of(["external data", place, stored.size_bytes, stored.version], ("onnx",))
    external, takes_tokens = json.loads((cached_folder(key, write) / _NAMES).read_text())
    data = [
        _data_file(store, name, at, location, least_bytes)
        for location, least_bytes in external.items()
    ]
    beside = files_beside(store) if takes_tokens else []
    return store, sorted([stored, *data, *beside], key=lambda file: file.path)


def onnx_file_of(folder: Path) -> Path | None:
    """Return the .onnx file of a copy that was chosen here; None: it is another directory."""
    files = sorted([*folder.glob(f"*{ONNX_SUFFIX}"), *folder.glob(f"{ONNX_FOLDER}/*{ONNX_SUFFIX}")])
    return files[0] if len(files) == 1 else None


def _placed(uri: str, options: Mapping[str, Any]) -> tuple[Store, str, str]:
    """Return the folder of a model; where in it the file lies, '' or ending in `/`; its path."""
    folder, _, name = uri.rpartition("/")
    above, _, last = folder.rpartition("/")
    store = Store(folder or "/", options)
    if last == ONNX_FOLDER and store.stat(TOKENIZER) is None:
        outer = Store(above or "/", options)
        if outer.stat(TOKENIZER) is not None:
            return outer, f"{last}/", f"{last}/{name}"
    return store, "", name


def _belongings(place: str, data: bytes) -> tuple[dict[str, int], bool]:
    """Return the files with external data and how long each must be; whether it takes tokens."""
    model = parse_bytes(place, data)
    return external_files(model), any(value.name == IDS for value in model.graph.input)


def _data_file(store: Store, name: str, at: str, location: str, least_bytes: int) -> StoredFile:
    what = f"a tensor lies in {name_of(location)}"
    if not is_inside(location) or location.endswith(ONNX_SUFFIX):
        raise refusal(store.url(name), f"{what}, outside the directory of the file itself; refused")
    parts = location.split("/")
    paths = [at + "/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    if not store.is_object_store and any(os.path.islink(store.url(path)) for path in paths):
        raise refusal(store.url(name), f"{what}, which is a link; refused: copy the file there")
    stored = store.stat(at + location)
    if stored is None:
        raise refusal(store.url(name), f"{what}, and there is no such file beside it")
    if stored.size_bytes < least_bytes:
        raise refusal(
            store.url(name),
            f"{what} up to byte {least_bytes}, and that file has {stored.size_bytes} bytes: cut "
            "off or damaged? copy it again",
        )
    return stored
