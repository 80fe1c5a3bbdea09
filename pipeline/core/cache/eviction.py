"""Remove old artefacts from the node cache, and know which ones are in use.

A process holds a shared lock on the file of each key that it uses until it lets it go, or ends.
It takes it before it looks for the artefact, and what is removed is locked alone, so that nothing
goes between being found and being read. An artefact's folder has the time of its last use.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.cache.private_files import (
    CLAIMS,
    PROFILES,
    USERS,
    WAIT_S,
    cache_folder,
    first_of,
    locked,
    one_at_a_time,
)

log = logging.getLogger(__name__)

UNUSED_S = 5 * 86_400.0
"""What was used within this time stays, however much room it takes."""
MAX_BYTES = 32 << 30
_used: dict[Path, int] = {}
"""File of a key -> its descriptor, which this process keeps open for the lock."""


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
        # One that removes it may be suspended: then it is gone, and is made again.
        with contextlib.suppress(BlockingIOError):
            _used[path] = locked(path, fcntl.LOCK_SH, WAIT_S)


def let_go(key: str) -> None:
    """Note that this process needs no file of the artefact of a key any more."""
    descriptor = _used.pop(_file_of(key), None)
    if descriptor is not None:
        os.close(descriptor)


def _file_of(key: str) -> Path:
    return first_of([cache_folder() / USERS]) / f"{key}.lock"


def evict_for(num_bytes: int = 0) -> list[str]:
    """Remove artefacts that no process uses and none has used for `UNUSED_S`, oldest first.

    Only as many as it takes for all, with what is to come, to be within `MAX_BYTES`.

    Args:
        num_bytes: What is to come.

    Returns:
        The keys of the artefacts that are gone.
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
    """Return what the files in a folder take; 0 if another process removes it."""
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
    """Keep other processes from using a key during the body; its file goes then.

    Raises:
        BlockingIOError: A process uses it.
    """
    return one_at_a_time(f"{USERS}/{key}", waits=False)


def _remove_unfinished(oldest: float) -> None:
    """Remove what processes were making, or removing, that were killed long ago."""
    for file in first_of([cache_folder() / USERS]).iterdir():
        if not (cache_folder() / file.stem).exists():
            with contextlib.suppress(BlockingIOError), _unused(file.stem):
                pass
    for folder in cache_folder().glob(".*"):
        with contextlib.suppress(FileNotFoundError):  # another process removes it
            if folder.is_dir() and folder.stat().st_mtime < oldest:
                shutil.rmtree(folder)
