"""Copy a model directory into the node cache, once per node, under the digest of its files.

The digest decides: the folder of a copy has it in its name, a worker that finds no copy makes one
and compares. Files of any size go through memory in chunks.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.errors import InfraError, JobError
from pipeline.core.node_cache import cached_folder, evict_for, key_of
from pipeline.core.private_files import cache_folder
from pipeline.models.directories.file_choice import choose_files, choose_onnx
from pipeline.models.directories.files import ONNX_SUFFIX
from pipeline.models.directories.refused import require_local_model
from pipeline.process.liveness import note_progress
from pipeline.storage.interface import StoredFile
from pipeline.storage.store import Store
from pipeline.storage.uris import normalise

_CHUNK_BYTES = 16 << 20
_DIGEST = "sha256"
_FILES = "files"


@dataclass(frozen=True)
class ModelDirectory:
    """A model directory, and the digest of its files that are used; can be pickled."""

    uri: str
    sha256: str
    """Digest of the sorted names of the files that are used, and of their digests."""
    root: str
    """URI of the folder that these names are relative to."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    @property
    def is_file(self) -> bool:
        """Tell whether it is an .onnx file, with what belongs to it, instead of a directory."""
        return self.uri.endswith(ONNX_SUFFIX)


def open_directory(
    uri: str, storage_options: Mapping[str, Any] | None = None
) -> tuple[ModelDirectory, Path]:
    """Choose the files of a directory, and copy them into the node cache.

    Unchanged files (by size and version, as the store shows them) are not read again.

    Returns:
        The directory with its digest, and the folder of the copy.

    Raises:
        JobError: The directory is refused; says why, and what would be right.
        InfraError: It cannot be copied.
    """
    store, files = _chosen(uri, storage_options or {})
    listing = [[file.path, file.size_bytes, file.version] for file in files]

    def write(folder: Path) -> None:
        digest = _copy(store, files, folder / _FILES)
        cached_folder(_key(digest), lambda copy: os.rename(folder / _FILES, copy / _FILES))
        shutil.rmtree(folder / _FILES, ignore_errors=True)  # an equal copy was there
        (folder / _DIGEST).write_text(digest)

    known = cached_folder(key_of(["model directory", store.uri, listing]), write)
    digest = (known / _DIGEST).read_text()
    directory = ModelDirectory(normalise(uri), digest, store.uri, store.storage_options)
    return directory, local(directory)


def local(directory: ModelDirectory) -> Path:
    """Return the folder of this node's copy; makes one if there is none.

    Raises:
        JobError: The files are not those of the digest any more.
        InfraError: They cannot be copied.
    """

    def write(folder: Path) -> None:
        store, files = _chosen(directory.uri, directory.storage_options)
        digest = _copy(store, files, folder / _FILES)
        if digest != directory.sha256:
            raise JobError(
                f"model.path = {directory.uri}: changed since the plan: sha256 is {digest}, "
                f"expected {directory.sha256}"
            )

    return cached_folder(_key(directory.sha256), write) / _FILES


def lend(directory: ModelDirectory, path: Path) -> None:
    """Link a copy of another process's node cache into that of this process, a confined one."""
    os.symlink(path.parent, cache_folder() / _key(directory.sha256))


def local_bytes(directory: ModelDirectory) -> int:
    """Return the size in bytes of this node's copy, which is made as by `local`."""
    return sum(path.stat().st_size for path in local(directory).rglob("*") if path.is_file())


def _chosen(uri: str, options: Mapping[str, Any]) -> tuple[Store, list[StoredFile]]:
    """Return the folder of a model, and the files of it that are used."""
    require_local_model(uri)
    whole = normalise(uri)
    if not whole.endswith(ONNX_SUFFIX):
        store = Store(whole, options)
        return store, choose_files(store)
    return choose_onnx(whole, options)


def _key(digest: str) -> str:
    return f"model-{digest}"


def _copy(store: Store, files: Sequence[StoredFile], folder: Path) -> str:
    """Copy files, and return the digest of all of them."""
    evict_for(sum(file.size_bytes for file in files))
    digests = {}
    for file in files:
        target = folder / file.path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            digests[file.path] = _copy_one(store, file, target)
        except FileNotFoundError:
            raise InfraError(f"{store.url(file.path)}: vanished while it was read") from None
        except OSError as error:
            raise InfraError(f"cannot copy {store.url(file.path)} to {target}: {error}") from error
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _copy_one(store: Store, file: StoredFile, target: Path) -> str:
    digest = hashlib.sha256()
    num_bytes = 0
    with store.open(file.path) as source, target.open("xb") as copy:
        for chunk in _chunks(source, file.size_bytes):
            digest.update(chunk)
            copy.write(chunk)
            num_bytes += len(chunk)
            note_progress(f"copying {store.url(file.path)}: {num_bytes} bytes")
    if num_bytes != file.size_bytes:
        raise InfraError(
            f"{store.url(file.path)}: was listed with {file.size_bytes} bytes and has other ones "
            "now: it is being written"
        )
    return digest.hexdigest()


def _chunks(source: Any, size_bytes: int) -> Iterable[bytes]:
    """Yield the content, and one byte more if there is any: memory stays bounded."""
    left = size_bytes + 1
    while left > 0 and (chunk := source.read(min(_CHUNK_BYTES, left))):
        left -= len(chunk)
        yield chunk
