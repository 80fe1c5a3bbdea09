"""The folder of an embedded Ray: sockets, logs, spilled objects, for this user's eyes alone.

Ray makes its own folders for everybody to write in, whoever made them. So they lie in one that
nobody else can enter. It goes with its run; of a run that failed, Ray's logs stay for a day.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

from pipeline.errors import InfraError
from pipeline.private import opened

log = logging.getLogger(__name__)

_PREFIX = "pipeline-ray-"
_LOCK = "lock"
_RAY = "r"
_KEPT_S = 86_400.0
_SYSTEM = "/tmp"  # noqa: S108  # what Ray takes; ours is private
# What Ray appends: r/session_DATE_TIME_MICROSECONDS_PID/sockets/plasma_store, and .N if need be.
_SUFFIX_BYTES = len(f"/{_PREFIX}12345678/{_RAY}/session_2026-11-24_00-00-00_000000_4194304/") + len(
    "sockets/plasma_store.1"
)
_MAX_SOCKET_BYTES = 107


class RayFolder:
    """One folder; `path` is what Ray is to put its files in, `native_log` what its core says."""

    def __init__(self) -> None:
        """Make it, and remove those of runs that have ended and are a day old.

        Raises:
            InfraError: There is no place for it.
        """
        base = base_folder()
        try:
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sweep(base)
            self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
            self._folder.chmod(0o700)  # whatever the umask
            with opened(self._folder) as folder:
                flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
                self._lock = os.open(_LOCK, flags, 0o600, dir_fd=folder)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self.path = self._folder / _RAY
            self.path.mkdir(mode=0o700)
            self.native_log = self._folder / "driver-native.err"
            _made.append(self)
        except OSError as error:
            raise InfraError(
                f"{base}: no folder for Ray's temporary files can be made ({error.strerror}); "
                "set RAY_TMPDIR to a folder that can be written to"
            ) from None

    def end(self, *, keep_logs: bool) -> None:
        """Remove it; with `keep_logs` all but the logs, and say where they are."""
        if keep_logs:
            for other in self.path.glob("session_[0-9]*/*"):
                if other.name != "logs":
                    _remove(other)
            log.info("Ray's logs are kept for a day: %s", self._folder)
        else:
            _remove(self._folder)
        _made.remove(self)
        os.close(self._lock)


_made: list[RayFolder] = []


def end_all() -> None:
    """Give up the folders that there are, of a process that ends otherwise than it should."""
    for folder in list(_made):
        folder.end(keep_logs=True)


def base_folder() -> Path:
    """Return where Ray's folder is made: RAY_TMPDIR, TMPDIR, or the system's own."""
    named = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or _SYSTEM
    if room_bytes(named) >= 0:
        return Path(os.path.abspath(named))
    log.warning(
        "%s: its path is %d bytes too long for sockets, Ray's temporary files "
        "go to %s; set RAY_TMPDIR to a shorter one",
        named,
        -room_bytes(named),
        _SYSTEM,
    )
    return Path(_SYSTEM)


def room_bytes(base: str | Path) -> int:
    """Return how many bytes longer the path of a folder may be for Ray's sockets to fit."""
    return _MAX_SOCKET_BYTES - _SUFFIX_BYTES - len(os.fsencode(os.path.abspath(base)))


def is_open(base: Path) -> bool:
    """Tell whether other users could put a folder of theirs in the place of one in `base`."""
    status = base.stat()
    return bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) and not (
        status.st_mode & stat.S_ISVTX
    )


def _sweep(base: Path) -> None:
    """Remove what runs have left that were killed, or whose logs were kept."""
    for folder in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, InfraError):
            if time.time() - folder.lstat().st_mtime > _KEPT_S and _is_ended(folder):
                _remove(folder)


def _is_ended(folder: Path) -> bool:
    with opened(folder) as inside:
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
