"""Stored files as a listing shows them, the choice of input files, and errors of all stores."""

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
    """Changes with the content: the etag or generation of an object, the mtime in ns of a local
    file."""
    modified: dt.datetime | None
    """By the clock of the store, in UTC."""
    ctime_ns: int = field(default=0, compare=False)
    """Time of the last change of a local file in any way; 0 for objects. Unlike the mtime it cannot
    be set back, but a chmod or another link changes it, too. So it is compared within a run, and is
    not part of the version."""


@dataclass(frozen=True)
class Page:
    """One answer of a listing."""

    files: Sequence[StoredFile]
    prefixes: Sequence[str] = ()
    """Folders below, ending in `/`; only in a listing that stops at the next `/`."""
    next_token: str | None = None
    """Token of the next page; None for the last page."""


class NoSuchBucket(OSError):
    """The bucket or container does not exist."""


class FileExpired(OSError):
    """An open file was replaced, written to or deleted."""


class BadBlock(OSError):
    """A local disk cannot read a file, or a part of it."""


class Choice(Protocol):
    """Choose the input files of a source, by paths relative to the root."""

    follow_links: bool
    """Whether to take links to regular files, wherever they point."""

    def takes(self, file: StoredFile) -> bool:
        """Tell whether a file is input."""
        ...

    def skip(self, path: str, reason: SkipReason) -> None:
        """Note a path that is not input, and the reason."""
        ...
