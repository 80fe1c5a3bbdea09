"""The folder of an embedded Ray, for this user alone: sockets, logs, spilled objects.

Ray makes its own folders writable for all users, so they are inside a folder that only this user
can enter. It is removed with its run; after a failed run Ray's logs are kept for a day.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.errors import InfraError
from pipeline.core.private_files import opened

log = logging.getLogger(__name__)

_PREFIX = "pl-ray-"
_LOCK = "lock"
_RAY = "r"
_KEPT_S = 86_400.0
_SYSTEM = "/tmp"  # noqa: S108  # the default of Ray; our folder in it is private
_MAX_SOCKET_BYTES = 107
_SESSION = "session_2026-11-24_00-00-00_000000_"
"""As long as the names that Ray makes, except for the process number."""


class RayFolder:
    """One folder: `path` is for the files of Ray, `native_log` for the output of its core.

    Ray makes sockets there, whose paths may have at most 107 bytes. If they would be longer, `path`
    is a short link to the folder.
    """

    def __init__(self) -> None:
        """Make the folder, and remove those of ended runs that are a day old.

        Raises:
            InfraError: The folder cannot be made.
        """
        base = base_folder()
        self.folders: list[Path] = []
        try:
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
            for place in {base, Path(_SYSTEM)}:  # the latter has links to folders with long paths
                _sweep(place)
            folder = self._make(base)
            with opened(folder) as inside:
                flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
                self._lock = os.open(_LOCK, flags, 0o600, dir_fd=inside)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self.native_log = folder / "driver-native.err"
            self.path = folder / _RAY
            self.path.mkdir(mode=0o700)
            if _socket_bytes(self.path) > _MAX_SOCKET_BYTES:
                short = self._make(Path(_SYSTEM)) / _RAY
                short.symlink_to(self.path)
                self.path = short
        except OSError as error:
            for made in self.folders:
                _remove(made)
            raise InfraError(
                f"{base}: no folder for Ray's temporary files can be made ({error.strerror}); "
                "set RAY_TMPDIR to a folder that can be written to"
            ) from None
        if (weak := weakness(base)) is not None:
            log.warning("%s", weak)

    def _make(self, base: Path) -> Path:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        self.folders.append(folder)
        folder.chmod(0o700)  # whatever the umask
        return folder

    def end(self, *, keep_logs: bool) -> None:
        """Remove the folder; with `keep_logs` keep the logs and log their place."""
        if keep_logs:
            keep_only_logs(self.folders)
        else:
            for folder in self.folders:
                _remove(folder)
        os.close(self._lock)


def keep_only_logs(folders: Sequence[Path]) -> None:
    """Remove what a `RayFolder` has made, except Ray's logs, and log their place."""
    folder, *links = folders
    for other in (*links, *folder.glob(f"{_RAY}/session_[0-9]*/*")):
        if other.name != "logs":
            _remove(other)
    log.info("Ray's logs are kept for a day: %s", folder)


def base_folder() -> Path:
    """Return the parent of Ray's folder, as Ray chooses it: RAY_TMPDIR, TMPDIR, or /tmp."""
    names = ("RAY_TMPDIR", "TMPDIR") if sys.platform == "linux" else ("RAY_TMPDIR",)
    named = next((os.environ[name] for name in names if os.environ.get(name)), _SYSTEM)
    return Path(os.path.abspath(named))


def _socket_bytes(path: Path) -> int:
    """Return the length in bytes of the path of a socket of Ray in a folder."""
    socket = path / f"{_SESSION}{os.getpid()}" / "sockets" / "plasma_store"
    return len(os.fsencode(socket))


def weakness(base: Path) -> str | None:
    """Say why other users could replace a folder in `base`; None if they cannot."""
    status = base.stat()
    if status.st_uid not in (0, os.geteuid()):
        return f"{base}: belongs to another user, who could replace Ray's folder; set RAY_TMPDIR"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
        hint = f"has no sticky bit: chmod +t {base}, or set RAY_TMPDIR"
        return f"{base}: others may write to it and replace Ray's folder, as it {hint}"
    return None


def _sweep(base: Path) -> None:
    """Remove folders of killed runs, and kept logs, after a day."""
    for folder in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, InfraError):
            if time.time() - folder.lstat().st_mtime > _KEPT_S and _is_ended(folder):
                _remove(folder)


def _is_ended(folder: Path) -> bool:
    with opened(folder) as inside:
        if (link := folder / _RAY).is_symlink():
            target = Path(os.readlink(link)).parent
            return not target.exists() or _is_ended(target)
        lock = os.open(_LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(lock)
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
