"""Folders, files and locks of this user alone; nothing that others put there is trusted."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.core.errors import InfraError

log = logging.getLogger(__name__)
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
WAIT_S = 120.0
"""Longest wait for another process that makes the same artefact."""
_LOOK_S = 0.01
"""Wait between two tries of a lock."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a folder, or make it; the descriptor is that of the folder that was checked.

    Raises:
        InfraError: It is a link, it belongs to another user, or others may write to it.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        hint = "must be a folder, no link, that can be written to"
        raise InfraError(f"{path}: {hint}: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_mode & _OTHERS_WRITE:
            raise InfraError(f"{path}: must be this user's own, and not writable by others")
        yield descriptor
    finally:
        os.close(descriptor)


def first_of(folders: Iterable[Path]) -> Path:
    """Return the first folder that can be this user's alone, and make it.

    Raises:
        InfraError: No folder can.
    """
    troubles: list[str] = []
    for folder in folders:
        try:
            with opened(folder):
                return folder
        except InfraError as error:
            troubles.append(str(error))
    raise InfraError("; ".join(troubles))


def open_file(folder: int, name: str, flags: int) -> int:
    """Open a file in an opened folder without following a link.

    Raises:
        OSError: The file cannot be opened, for example because it is a link.
        InfraError: It is not a file, belongs to another user, or has a second hard link.
    """
    descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or status.st_uid != os.geteuid():
        os.close(descriptor)
        raise InfraError(f"{name}: must be a file of this user's own, with one name")
    return descriptor


CLAIMS, PROFILES, USERS = "claims", "profiles", "users"
"""Folders of the cache that hold no artefacts."""


def cache_folder() -> Path:
    """Return the folder of the node cache.

    Raises:
        InfraError: It cannot be this user's own.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or home_folder() / ".cache")
    folder = base / "batch-inference-pipeline"
    if folder.is_symlink() and folder.lstat().st_uid == os.geteuid():
        folder = folder.resolve()  # to a larger disk, by this user
    try:
        return first_of([folder])
    except InfraError as error:
        raise InfraError(f"{error}; set XDG_CACHE_HOME, or HOME, to another folder") from None


def home_folder() -> Path:
    """Return the home folder of this user.

    Raises:
        InfraError: The user has none, for example in a container that runs as any user ID.
    """
    try:
        return Path.home()
    except RuntimeError:
        user = f"user {os.geteuid()} has no home folder"
        raise InfraError(f"{user}: set HOME to a folder that this user may write to") from None


@contextlib.contextmanager
def one_at_a_time(name: str, *, waits: bool = True) -> Iterator[None]:
    """Let one process of a node at a time make something that the others then find.

    A process continues after `WAIT_S` in any case: the other may be suspended.

    Args:
        name: The name of the thing to make.
        waits: Whether to wait for another process that makes it.

    Raises:
        BlockingIOError: Another process makes it, and this one does not wait.
    """
    path = cache_folder() / f"{name}.lock"
    descriptor = None
    try:
        descriptor = locked(path, fcntl.LOCK_EX, WAIT_S if waits else 0.0)
    except BlockingIOError:
        if not waits:
            raise
        log.warning("%s: another process has held it for %.0f s; continuing", path, WAIT_S)
    try:
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)  # waiting processes check that it still exists
            os.close(descriptor)


def locked(path: Path, operation: int, wait_s: float = 0.0) -> int:
    """Open a file, or make it, and lock it; return its descriptor.

    Args:
        path: The file.
        operation: The operation of `flock`.
        wait_s: How long to wait for a conflicting lock of another process.

    Raises:
        BlockingIOError: Another process still holds a conflicting lock.
    """
    until = time.monotonic() + wait_s
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with contextlib.ExitStack() as kept:
            kept.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise
                time.sleep(_LOOK_S)
                continue
            if os.fstat(descriptor).st_nlink:  # it was not removed meanwhile
                kept.pop_all()
                return descriptor
