"""Whole files on a POSIX file system: temporary file, sync, then a rename or a link."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import logging
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from pipeline.core.printable import clean_message
from pipeline.process.failpoints import failpoint_quiet
from pipeline.storage.interface import BadBlock, Choice, FileExpired, StoredFile
from pipeline.storage.skipped import SkipReason

log = logging.getLogger(__name__)

_LEADS_NOWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{32}$")


class LocalDisk:
    """POSIX files, without fsspec, whose local writes are neither atomic nor synced."""

    def list(self, folder: str, choice: Choice | None = None) -> Iterator[Sequence[StoredFile]]:
        """Yield the files below a folder; without a choice, as for a sink, skip links."""
        links: list[str] = []
        skipped = len(folder.rstrip("/")) + 1
        folders = [folder]
        while folders:
            try:
                entries = os.scandir(folders.pop())
            except (FileNotFoundError, NotADirectoryError):
                continue
            files: list[StoredFile] = []
            with entries:
                for entry in entries:
                    if choice is None and entry.is_symlink():
                        links.append(entry.path)
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                            files.append(_local_file(entry.path, entry.stat()))
                    elif choice is not None:
                        file_or_reason = _special(entry, follow_links=choice.follow_links)
                        if isinstance(file_or_reason, SkipReason):
                            choice.skip(entry.path[skipped:], file_or_reason)
                        else:
                            files.append(file_or_reason)
            yield files
        if links:
            first = clean_message(min(links))
            log.warning("%s: skipped %d symbolic links, as %s", folder, len(links), first)

    def folder_names(self, folder: str) -> Sequence[str]:
        """List the names of the folders directly below a folder, sorted."""
        try:
            with os.scandir(folder) as entries:
                return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def stat(self, path: str) -> StoredFile | None:
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _local_file(path, status) if stat.S_ISREG(status.st_mode) else None

    def exists(self, path: str) -> bool:
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        with _bad_blocks(path), open(path, "rb") as file:
            return file.read(max_bytes)

    def read_many(
        self, paths: Sequence[str], versions: Sequence[str] | None = None
    ) -> Sequence[bytes | Exception]:
        """Return the content of each file, or the error of reading it, in the order of `paths`.

        A file of another version than in `versions` gives FileExpired; `/` and the ctime in ns may
        follow a version.
        """
        values: list[bytes | Exception] = []
        pinned: Sequence[str | None] = versions or [None] * len(paths)
        for path, version in zip(paths, pinned, strict=True):
            try:
                values.append(_read_version(path, version))
            except OSError as error:
                values.append(error)
        return values

    def open(self, path: str) -> BinaryIO:
        with _bad_blocks(path):
            return open(path, "rb", opener=_open_regular)

    def put(self, path: str, data: bytes) -> None:
        with _written_beside(path, data) as temporary:
            failpoint_quiet("mid_put")
            os.replace(temporary, path)

    def put_file(self, path: str, source: str) -> None:
        temporary = _temporary_beside(path)
        with _removed_at_exit(temporary):
            shutil.copyfile(source, temporary)  # no link: the source may change later
            _sync(temporary)
            os.replace(temporary, path)
        _sync(os.path.dirname(path))

    def create(self, path: str, data: bytes) -> None:
        # A link appears whole and fails if the name is taken; a rename would replace.
        with _written_beside(path, data) as temporary:
            os.link(temporary, path)

    def copy(self, source: str, target: str) -> None:
        if not os.path.isfile(source):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
        temporary = _temporary_beside(target)
        with _removed_at_exit(temporary):
            try:
                os.link(source, temporary)
            except OSError:  # another device, or a file system without links
                shutil.copyfile(source, temporary)
                _sync(temporary)
            os.replace(temporary, target)
        _sync(os.path.dirname(target))

    def delete(self, paths: Sequence[str]) -> None:
        for path in paths:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(path)
        for folder in {os.path.dirname(path) for path in paths}:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                _sync(folder)


def _special(entry: os.DirEntry[str], *, follow_links: bool) -> StoredFile | SkipReason:
    """Describe the file behind a link, or return why the entry is not a file."""
    if not entry.is_symlink():
        return SkipReason.SPECIAL_FILE
    if not follow_links:
        return SkipReason.LINK
    try:
        status = os.stat(entry.path)  # of the target, whose size and time are the version
    except OSError as error:
        if error.errno not in _LEADS_NOWHERE:
            raise
        return SkipReason.BROKEN_LINK
    if stat.S_ISREG(status.st_mode):
        return _local_file(entry.path, status)
    return SkipReason.LINK_TO_FOLDER if stat.S_ISDIR(status.st_mode) else SkipReason.SPECIAL_FILE


def _local_file(path: str, status: os.stat_result) -> StoredFile:
    modified = dt.datetime.fromtimestamp(status.st_mtime, dt.UTC)
    return StoredFile(path, status.st_size, str(status.st_mtime_ns), modified, status.st_ctime_ns)


@contextlib.contextmanager
def _bad_blocks(path: str) -> Iterator[None]:
    """Raise BadBlock if the disk cannot read a file.

    A lost mount gives other errors (ENOTCONN, ESTALE, ENODEV), which concern all files.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EIO:
            raise BadBlock(errno.EIO, os.strerror(errno.EIO), path) from error
        raise


def _read_version(path: str, version: str | None) -> bytes:
    with _bad_blocks(path), open(path, "rb", opener=_open_regular) as file:
        data = file.read()
        status = os.fstat(file.fileno())
        mtime = str(status.st_mtime_ns)
        if version not in (None, mtime, f"{mtime}/{status.st_ctime_ns}"):
            raise FileExpired(errno.ESTALE, "replaced or written to", path)
    return data


def _open_regular(path: str, flags: int) -> int:
    """Open a file that was listed as regular; a pipe would block until another process writes."""
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise FileExpired(errno.ESTALE, "no longer a regular file", path) from error
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # `open` itself refuses a folder
        os.close(descriptor)
        raise FileExpired(errno.ESTALE, "no longer a regular file", path)
    return descriptor


@contextlib.contextmanager
def _written_beside(path: str, data: bytes) -> Iterator[str]:
    """Yield a synced temporary file beside `path`; then remove it and sync the folder."""
    temporary = _temporary_beside(path)
    with _removed_at_exit(temporary):
        # Not mkstemp: its files are private, and published files must be readable for all.
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    _sync(os.path.dirname(path))


@contextlib.contextmanager
def _removed_at_exit(temporary: str) -> Iterator[None]:
    try:
        yield
    finally:
        # Also after a successful rename: a rename between two links to one file does nothing.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _temporary_beside(path: str) -> str:
    folder = os.path.dirname(path)
    _make_folder(folder)
    return os.path.join(folder, f".tmp-{uuid.uuid4().hex}")


def _make_folder(folder: str) -> None:
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    _make_folder(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)
        _sync(parent)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_temporary(path: str) -> bool:
    """Tell whether a path is the temporary file of an unfinished write."""
    return _TEMPORARY.match(path.rpartition("/")[2]) is not None
