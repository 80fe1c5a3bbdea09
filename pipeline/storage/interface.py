"""What a listing shows, what chooses files of it, and errors that all storage has."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.storage.skipped import SkipReason


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file or object, as a listing shows it."""

    path: str
    """Relative to the root of the store."""
    size_bytes: int
    version: str
    """Changes when the content does: the etag or generation of an object, the mtime in ns of a
    local file."""
    modified: dt.datetime | None
    """By the clock of the store, in UTC."""
    ctime_ns: int = field(default=0, compare=False)
    """When a local file was changed in any way, as its file system says; 0 of objects. It cannot be
    put back as the mtime can, but a chmod or another link changes it, too: so it is compared within
    a run, and is no part of the version."""


@dataclass(frozen=True)
class Page:
    """One answer of a listing."""

    files: Sequence[StoredFile]
    prefixes: Sequence[str] = ()
    """Folders below, ending in `/`; only of a listing that stops at the next `/`."""
    next_token: str | None = None
    """Asks for the next page; None: this is the last one."""


class NoSuchBucket(OSError):
    """The bucket or container is missing, not only the object."""


class FileExpired(OSError):
    """A file that is being read is no longer the one that was opened."""


class BadBlock(OSError):
    """A local disk cannot read a file, or a part of it."""


class Choice(Protocol):
    """Choose what of a source is input, by paths relative to the root."""

    follow_links: bool
    """Take links to regular files, wherever they point."""

    def takes(self, file: StoredFile) -> bool:
        """Tell whether a file is input."""
        ...

    def skip(self, path: str, reason: SkipReason) -> None:
        """Note what is no input, and why."""
        ...
