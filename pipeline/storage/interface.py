"""What a kind of storage must do for `pipeline.storage.store`, and what a listing shows."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

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


class Backend(Protocol):
    """What a kind of storage must do, besides listing; paths are absolute, errors are raw."""

    def stat(self, path: str) -> StoredFile | None:
        """Return the file as a listing shows it; None if there is none."""
        ...

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file."""
        ...

    def read(self, path: str) -> bytes:
        """Return a whole file; FileNotFoundError if there is none."""
        ...

    def read_many(
        self, paths: Sequence[str], versions: Sequence[str] | None = None
    ) -> Sequence[bytes | Exception]:
        """Return many files, or why one could not be read, in the order of `paths`.

        With `versions`, FileExpired stands for a file of another version. One of local disk may be
        `<version>/<ctime in ns>`.
        """
        ...

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading at any offset."""
        ...

    def put(self, path: str, data: bytes) -> None:
        """Write a whole file; readers see the old content or the new one."""
        ...

    def put_file(self, path: str, source: str) -> None:
        """Write a whole file as `put` does, from a file on local disk of any size."""
        ...

    def create(self, path: str, data: bytes) -> None:
        """Write a whole file; an OSError of the library if the name is taken."""
        ...

    def copy(self, source: str, target: str) -> None:
        """Copy a file within the store, replacing what has the name of the target."""
        ...

    def delete(self, paths: Sequence[str]) -> None:
        """Delete files; those that are gone already count as deleted."""
        ...


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
