"""The folder of the node cache, which only this user may touch, and its locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.core.cache.private_files import first_of

CLAIMS, PROFILES, USERS = "claims", "profiles", "users"
"""Folders in it that hold no artefacts."""


def cache_folder() -> Path:
    """Return the folder of the node cache.

    Raises:
        InfraError: It cannot be this user's own.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "batch-inference-pipeline"
    if folder.is_symlink() and folder.lstat().st_uid == os.geteuid():
        folder = folder.resolve()  # to a larger disk, by this user
    return first_of([folder])


@contextlib.contextmanager
def one_at_a_time(name: str, *, waits: bool = True) -> Iterator[None]:
    """Let one process a node at a time make something: the others then find it.

    Args:
        name: Of what is made.
        waits: Whether to wait for a process that is at it.

    Raises:
        BlockingIOError: A process is at it, and this one does not wait.
    """
    path = cache_folder() / f"{name}.lock"
    descriptor = locked(path, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # a process that waits for it checks that it is still there
        os.close(descriptor)


def locked(path: Path, how: int) -> int:
    """Return a descriptor of a file, which is made if it is not there, with a lock on it.

    Args:
        path: The file.
        how: Operation of `flock`.

    Raises:
        BlockingIOError: A process has a lock that excludes this one, which does not wait.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, how)
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was removed meanwhile
