"""The digest of a model directory by its tensors, however they are divided among files.

`ModelDirectory.sha256` is of files: the same weights in three shards instead of one are another
model to it. Rows may be carried from one to the other, so they are told apart by what they hold.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.core.cache.node_cache import cached_folder, key_of
from pipeline.models.directories.snapshot import ModelDirectory, local
from pipeline.models.directories.tensors import INDEX

_FILE = "contents"
_LENGTH_BYTES = 8
_CHUNK_BYTES = 16 << 20


def contents_sha256(directory: ModelDirectory) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes of all tensors, and of other files.

    It is computed once per node and digest of the files. An .onnx file has the one of its files.

    Raises:
        JobError: The directory is not the one of the digest any more.
        InfraError: It cannot be copied.
    """
    if directory.is_file:
        return directory.sha256

    def write(folder: Path) -> None:
        (folder / _FILE).write_text(digest_contents(local(directory)))

    known = cached_folder(key_of(["model contents", directory.sha256]), write)
    return (known / _FILE).read_text()


def digest_contents(folder: Path) -> str:
    """Digest a local directory whose safetensors were checked: equal tensors, equal digest."""
    found: dict[str, Any] = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        at = path.relative_to(folder)
        if path.suffix == ".safetensors":
            found |= {f"{at.parent}:{name}": each for name, each in _tensors(path).items()}
        elif path.name != INDEX:
            with path.open("rb") as file:
                found[str(at)] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _tensors(path: Path) -> dict[str, list[Any]]:
    """Return dtype, shape and digest of each tensor of a file; its metadata decides nothing."""
    found = {}
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        entries = json.loads(file.read(length))
        for name, entry in entries.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            file.seek(_LENGTH_BYTES + length + start)
            digest, left = hashlib.sha256(), end - start
            while left and (chunk := file.read(min(_CHUNK_BYTES, left))):
                digest.update(chunk)
                left -= len(chunk)
            found[name] = [entry["dtype"], entry["shape"], digest.hexdigest()]
    return found
