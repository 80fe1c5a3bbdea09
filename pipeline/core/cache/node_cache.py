"""Per-node cache of exported models and the like: the first actor makes one, the others load it.

The key of an artefact says everything that it depends on. Each process compares the files of an
artefact with their checksums before it uses them; a damaged artefact is made again. eviction.py
removes old artefacts that no process uses.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import os
import shutil
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.cache.eviction import evict_for, num_bytes_of, use
from pipeline.core.cache.private_files import CLAIMS, cache_folder, first_of, locked, one_at_a_time
from pipeline.core.semantics import SEMANTICS

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_CLAIM_S = 86_400.0
_CHECKSUMS = "checksums.json"
_CHUNK_BYTES = 16 << 20
_PACKAGES = ("torch", "torchvision")
"""All that is kept depends on these."""
_LARGE_BYTES = 1 << 20
"""What is smaller makes no room: to look for it would take longer than to make the artefact."""
_claims: dict[Path, int] = {}
"""What this process has claimed -> a descriptor with the lock on it, open until it ends."""
_claiming = threading.Lock()
_checked: set[Path] = set()
"""Artefacts that this process has compared with their checksums."""


def key_of(facts: Any, packages: Sequence[str] = (), module: torch.nn.Module | None = None) -> str:
    """Digest JSON-ready facts and the versions in use, with a module's tensors if it is given.

    Args:
        facts: What is kept, and of what.
        packages: Modules that make it, besides torch and torchvision.
        module: Its tensors decide, too.
    """
    versions = [SEMANTICS["predict"], versions_of(packages)]
    digest = hashlib.sha256(json.dumps([facts, *versions], sort_keys=True).encode())
    if module is not None:
        digest.update(tensors_digest(module).encode())
    return digest.hexdigest()


def tensors_digest(module: torch.nn.Module) -> str:
    """Digest all parameters and buffers of a module, with their names."""
    import torch

    digest = hashlib.sha256()
    tensors = {**module.state_dict(), **dict(module.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        if not isinstance(tensor, torch.Tensor):  # a module's extra state may be anything
            continue
        digest.update(f" {tensor.dtype} {tuple(tensor.shape)}".encode())
        try:
            values = tensor.detach().cpu().contiguous()
            digest.update(values.view(-1).view(torch.uint8).numpy().data)
        except (RuntimeError, TypeError, NotImplementedError):  # quantised, sparse, without data
            digest.update(repr(tensor).encode())
    return digest.hexdigest()


def cached_folder(key: str, write: Callable[[Path], None]) -> Path:
    """Return the folder of an artefact, which `write` fills if there is none yet, or a damaged one.

    It stays until this process lets it go or ends, and for `UNUSED_S` afterwards.

    Raises:
        InfraError: The cache folder is not this user's own.
    """
    folder = cache_folder() / key
    use(key)
    if _is_there(folder):
        return folder
    with one_at_a_time(key):
        if _is_there(folder):
            return folder
        if (folder / _CHECKSUMS).exists():  # no version before had them
            log.warning("%s is damaged: it is made again", folder)
        unfinished, damaged = (folder.with_name(f".{uuid.uuid4().hex}") for _ in range(2))
        unfinished.mkdir(mode=0o700)
        try:
            write(unfinished)
            (unfinished / _CHECKSUMS).write_text(json.dumps(_checksums(unfinished)))
            if not _is_there(folder):  # a process that this one no longer waited for may be done
                with contextlib.suppress(FileNotFoundError):  # mostly there is none
                    folder.rename(damaged)
                unfinished.rename(folder)
                _checked.add(folder)
        finally:
            for remains in (unfinished, damaged):
                shutil.rmtree(remains, ignore_errors=True)
    if num_bytes_of(folder) >= _LARGE_BYTES:
        evict_for()
    return folder


def _is_there(folder: Path) -> bool:
    """Tell whether there is an artefact that can be used; if so, it was used now."""
    if not folder.exists() or not (folder in _checked or _is_whole(folder)):
        return False
    _checked.add(folder)
    os.utime(folder)
    return True


def _is_whole(folder: Path) -> bool:
    """Tell whether the files of an artefact are those that were written."""
    try:
        return bool(json.loads((folder / _CHECKSUMS).read_bytes()) == _checksums(folder))
    except (OSError, ValueError):  # of an older version, or damaged itself
        return False


def _checksums(folder: Path) -> dict[str, int]:
    """Return the CRC-32 of each chunk of the files in a folder, by path and offset."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    files.pop(_CHECKSUMS, None)
    chunks = [
        (name, offset)
        for name, path in files.items()
        for offset in range(0, path.stat().st_size or 1, _CHUNK_BYTES)
    ]

    def checksum(chunk: tuple[str, int]) -> int:
        with open(files[chunk[0]], "rb") as file:
            file.seek(chunk[1])
            return zlib.crc32(file.read(_CHUNK_BYTES))

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # zlib lets go of the interpreter
        sums = pool.map(checksum, chunks)
        return {f"{name} {offset}": x for (name, offset), x in zip(chunks, sums, strict=True)}


def claim_once_per_node(name: str) -> bool:
    """Claim work that one process of this node is to do; False if a running one has it.

    Args:
        name: Unique to the run. Claims of ended processes are free again, and go after a day.
    """
    path = first_of([cache_folder() / CLAIMS]) / name
    with _claiming:
        if path not in _claims:
            try:
                _claims[path] = locked(path, fcntl.LOCK_EX)
            except BlockingIOError:
                return False
            os.utime(path)
    for other in path.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process removes it
            if other.stat().st_mtime < time.time() - _CLAIM_S:
                other.unlink()
    return True


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Return distribution -> version of torch, torchvision and those of the modules that are here.

    Args:
        packages: Names of modules. A distribution mostly has the module's name; if none has, those
            are looked for that bring the module, as `onnxruntime-gpu` does.
    """
    versions = {}
    for name in (*_PACKAGES, *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            others = _distributions_of(name) if find_spec(name) else ()
            versions |= {other: version(other) for other in others}
    return versions


@functools.cache
def _distributions_of(module: str) -> tuple[str, ...]:
    """Return the distributions that bring a module; reads the lists of files of all of them."""
    return tuple(sorted(set(packages_distributions().get(module, ()))))
