"""Large copies in the node cache: which ones are in use, and which ones go to make room.

A process holds a shared lock on a file beside a copy until it ends, however it ends; the time of
that file says when the copy was used last. It takes the lock before it looks for the copy, so that
none goes between being found and being read.
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

from pipeline.core.node_cache import cache_folder

log = logging.getLogger(__name__)

UNUSED_S = 5 * 86_400.0
"""What was used within this time stays, however much room it takes."""
MAX_BYTES = 32 << 30
_leases: dict[Path, int] = {}
"""File -> its descriptor, open until this process ends."""


@dataclass(frozen=True)
class _Copy:
    folder: Path
    used_at: float
    num_bytes: int


def lease(key: str) -> None:
    """Note that this process uses the copy of a key, or is about to make it."""
    path = _beside(cache_folder() / key)
    if path not in _leases:
        descriptor = _open(path)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _leases[path] = descriptor
    os.utime(_leases[path])


def make_room(prefix: str, num_bytes: int) -> list[str]:
    """Remove copies that no process uses and none has used for `UNUSED_S`, oldest first.

    Only as many as it takes for all copies, with what is to come, to be within `MAX_BYTES`.

    Args:
        prefix: What the keys of the copies begin with.
        num_bytes: What is to come.

    Returns:
        The keys of the copies that are gone.
    """
    oldest, removed = time.time() - UNUSED_S, list[str]()
    _remove_unfinished(oldest)
    copies = sorted(_copies(prefix), key=lambda copy: copy.used_at)
    num_bytes += sum(copy.num_bytes for copy in copies)
    for copy in copies:
        if num_bytes <= MAX_BYTES or copy.used_at > oldest:
            break
        if _remove(copy.folder):
            num_bytes -= copy.num_bytes
            removed.append(copy.folder.name)
    if removed:
        log.info("removed %s from the node cache: not used any more", ", ".join(removed))
    return removed


def _copies(prefix: str) -> Iterator[_Copy]:
    for folder in cache_folder().glob(f"{prefix}*"):
        if not folder.is_dir():
            continue
        beside = _beside(folder)
        used = beside if beside.exists() else folder  # an earlier version made it
        try:
            num_bytes = sum(each.lstat().st_size for each in folder.rglob("*"))
            yield _Copy(folder, used.stat().st_mtime, num_bytes)
        except FileNotFoundError:
            continue  # another process removes it


def _remove(folder: Path) -> bool:
    """Remove a copy, unless a process uses it."""
    descriptor = _open(_beside(folder))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        gone = folder.with_name(f".{uuid.uuid4().hex}")
        folder.rename(gone)
        shutil.rmtree(gone)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("cannot remove %s: %s", folder, error)
        return False
    finally:
        os.close(descriptor)
    return True


def _remove_unfinished(oldest: float) -> None:
    """Remove what processes were making, or removing, that were killed long ago."""
    for folder in cache_folder().glob(".*"):
        with contextlib.suppress(FileNotFoundError):  # another process removes it
            if folder.is_dir() and folder.stat().st_mtime < oldest:
                shutil.rmtree(folder)


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.used")


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
