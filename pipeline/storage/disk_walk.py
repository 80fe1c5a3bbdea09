"""Walk the folders of a disk: its files, and what is none and why."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import logging
import os
import stat
from collections.abc import Iterator, Sequence

from pipeline.core.printable import clean_message
from pipeline.storage.interface import Choice, StoredFile
from pipeline.storage.skipped import SkipReason

log = logging.getLogger(__name__)

_LEADS_NOWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


def walk(folder: str, choice: Choice | None = None) -> Iterator[Sequence[StoredFile]]:
    """Yield the files below a folder; without a choice, as of a sink, links are none."""
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
                        files.append(local_file(entry.path, entry.stat()))
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


def folder_names(folder: str) -> list[str]:
    """List the names of the folders directly below a folder, sorted, and nothing in them."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _special(entry: os.DirEntry[str], *, follow_links: bool) -> StoredFile | SkipReason:
    """Describe the file behind a link, or say why an entry that is no file is none."""
    if not entry.is_symlink():
        return SkipReason.SPECIAL_FILE
    if not follow_links:
        return SkipReason.LINK
    try:
        status = os.stat(entry.path)  # of the target: its size and time are the version
    except OSError as error:
        if error.errno not in _LEADS_NOWHERE:
            raise
        return SkipReason.BROKEN_LINK
    if stat.S_ISREG(status.st_mode):
        return local_file(entry.path, status)
    return SkipReason.LINK_TO_FOLDER if stat.S_ISDIR(status.st_mode) else SkipReason.SPECIAL_FILE


def local_file(path: str, status: os.stat_result) -> StoredFile:
    """Describe a file of which the status is known."""
    modified = dt.datetime.fromtimestamp(status.st_mtime, dt.UTC)
    return StoredFile(path, status.st_size, str(status.st_mtime_ns), modified, status.st_ctime_ns)
