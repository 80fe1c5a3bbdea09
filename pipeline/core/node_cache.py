"""The cache of a node: one actor makes an artefact, such as an exported model, and others load it.

The key of an artefact contains everything that it depends on. Each process compares the files of
an artefact with their checksums before it uses them, and makes a damaged artefact again.

Old artefacts are removed when the cache is full. A process holds a shared lock on the file of each
key that it uses, from before it looks for the artefact until it lets it go or ends. Removing needs
that lock alone, so nothing disappears between being found and being read. The modification time of
an artefact's folder is the time of its last use.
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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.private_files import (
    CLAIMS,
    PROFILES,
    USERS,
    WAIT_S,
    cache_folder,
    first_of,
    locked,
    one_at_a_time,
)
from pipeline.core.semantics import SEMANTICS

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_CLAIM_S = 86_400.0
_CHECKSUMS = "checksums.json"
_CHUNK_BYTES = 16 << 20
_PACKAGES = ("torch", "torchvision")
"""Packages on which every artefact depends."""
_LARGE_BYTES = 1 << 20
"""Smaller artefacts evict nothing: looking for room would take longer than making them."""
_claims: dict[Path, int] = {}
"""Claims of this process -> a descriptor with the lock, open until the process ends."""
_claiming = threading.Lock()
_checked: set[Path] = set()
"""Artefacts that this process has already compared with their checksums."""


def key_of(facts: Any, packages: Sequence[str] = (), module: torch.nn.Module | None = None) -> str:
    """Digest JSON-ready facts and the versions in use, with a module's tensors if it is given.

    Args:
        facts: What the artefact is, and what it is made from.
        packages: Modules that make it, besides torch and torchvision.
        module: A module whose tensors the artefact depends on.
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
    """Return the folder of an artefact, which `write` fills if it is missing or damaged.

    It is kept until this process lets it go or ends, and for `UNUSED_S` afterwards.

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
    """Tell whether a usable artefact exists; if so, note that it is used now."""
    if not folder.exists() or not (folder in _checked or _is_whole(folder)):
        return False
    _checked.add(folder)
    os.utime(folder)
    return True


def _is_whole(folder: Path) -> bool:
    """Tell whether the files of an artefact are as they were written."""
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
    """Claim work for one process of this node; return False if another running process has it.

    Args:
        name: Unique to the run. Claims of ended processes are free again; after a day they are
            removed.
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
    """Return distribution -> version for torch, torchvision and the installed ones of the modules.

    Args:
        packages: Names of modules. Usually a distribution has the name of its module; otherwise
            the distributions that provide the module are found, such as `onnxruntime-gpu`.
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
    """Return the distributions that provide a module; reads the file lists of all distributions."""
    return tuple(sorted(set(packages_distributions().get(module, ()))))


UNUSED_S = 5 * 86_400.0
"""Artefacts used within this time are kept, whatever their size."""
MAX_BYTES = 32 << 30
_used: dict[Path, int] = {}
"""Lock file of a key -> its descriptor, which this process keeps open to hold the lock."""


@dataclass(frozen=True)
class _Artefact:
    folder: Path
    used_at: float
    num_bytes: int


def use(key: str) -> None:
    """Note that this process uses the artefact of a key, or is about to make it.

    Raises:
        InfraError: The cache folder is not this user's own.
    """
    path = _file_of(key)
    if path not in _used:
        # A process that removes the artefact may be suspended: then the artefact is made again.
        with contextlib.suppress(BlockingIOError):
            _used[path] = locked(path, fcntl.LOCK_SH, WAIT_S)


def let_go(key: str) -> None:
    """Note that this process no longer needs the artefact of a key."""
    descriptor = _used.pop(_file_of(key), None)
    if descriptor is not None:
        os.close(descriptor)


def _file_of(key: str) -> Path:
    return first_of([cache_folder() / USERS]) / f"{key}.lock"


def evict_for(num_bytes: int = 0) -> list[str]:
    """Remove artefacts that no process uses and none has used for `UNUSED_S`, oldest first.

    Only as many are removed as needed to stay within `MAX_BYTES`.

    Args:
        num_bytes: The size of an artefact to come.

    Returns:
        The keys of the removed artefacts.
    """
    oldest, removed = time.time() - UNUSED_S, list[str]()
    _remove_unfinished(oldest)
    artefacts = sorted(_artefacts(), key=lambda artefact: artefact.used_at)
    num_bytes += sum(artefact.num_bytes for artefact in artefacts)
    for artefact in artefacts:
        if num_bytes <= MAX_BYTES or artefact.used_at > oldest:
            break
        if _remove(artefact.folder):
            num_bytes -= artefact.num_bytes
            removed.append(artefact.folder.name)
    if removed:
        log.info("removed %s from the node cache: not used any more", ", ".join(removed))
    return removed


def num_bytes_of(folder: Path) -> int:
    """Return the size of the files in a folder; 0 if another process removes it."""
    try:
        return sum(path.lstat().st_size for path in folder.rglob("*"))
    except FileNotFoundError:
        return 0


def _artefacts() -> Iterator[_Artefact]:
    for folder in cache_folder().iterdir():
        is_other = folder.name.startswith(".") or folder.name in (CLAIMS, PROFILES, USERS)
        if is_other or not folder.is_dir():
            continue
        with contextlib.suppress(FileNotFoundError):  # another process removes it
            yield _Artefact(folder, folder.stat().st_mtime, num_bytes_of(folder))


def _remove(folder: Path) -> bool:
    """Remove an artefact, unless a process uses it."""
    gone = folder.with_name(f".{uuid.uuid4().hex}")
    try:
        with _unused(folder.name):
            folder.rename(gone)
        shutil.rmtree(gone)
    except (BlockingIOError, FileNotFoundError):  # another process uses or removes it
        return False
    except OSError as error:
        log.warning("cannot remove %s: %s", folder, error)
        return False
    return True


def _unused(key: str) -> contextlib.AbstractContextManager[None]:
    """Keep other processes from using a key during the body; remove its lock file then.

    Raises:
        BlockingIOError: A process uses it.
    """
    return one_at_a_time(f"{USERS}/{key}", waits=False)


def _remove_unfinished(oldest: float) -> None:
    """Remove folders that processes were making or removing when they were killed, long ago."""
    for file in first_of([cache_folder() / USERS]).iterdir():
        if not (cache_folder() / file.stem).exists():
            with contextlib.suppress(BlockingIOError), _unused(file.stem):
                pass
    for folder in cache_folder().glob(".*"):
        with contextlib.suppress(FileNotFoundError):  # another process removes it
            if folder.is_dir() and folder.stat().st_mtime < oldest:
                shutil.rmtree(folder)
