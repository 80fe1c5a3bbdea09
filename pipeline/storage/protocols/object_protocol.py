"""The interface of an object store, mostly behind fsspec, and functions that all stores share."""

from __future__ import annotations

import asyncio
import datetime as dt
import errno
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.storage.interface import Page, StoredFile

Fetch = Callable[[int, int], bytes]
"""Reads the bytes [start, end) of one version of one object."""

PAGE_KEYS = 1000
_MAX_TOGETHER = 128
"""Most requests in flight, as for the bulk reads of fsspec."""


@dataclass(frozen=True)
class ObjectProtocol:
    """One kind of object store."""

    extra: str
    package: str
    connect: Callable[[Mapping[str, Any]], Any]
    """Make the fsspec file system for storage options, without its retries: ours are counted."""
    list_page: Callable[[Any, str, str, bool, str | None], Page]
    """file system, bucket, prefix, whether to stop at the next `/`, token -> one page, whose paths
    begin with the bucket and whose prefixes do not."""
    open: Callable[[Any, str], tuple[int, Fetch]]
    read_version: Callable[[Any, str, str], Awaitable[bytes]]
    """Reads one version of a whole object; raises FileExpired if there is another one."""
    copy: Callable[[Any, str, str], None]
    version: str
    modified: str
    """Names of version and modification time in the result of `info`."""
    read: Mapping[str, Any] = field(default_factory=dict)
    """Options for reading whole objects."""
    list_after: Callable[[Any, str, str, str], Page] | None = None
    """file system, bucket, prefix, key -> the page of the keys after that one, whose token is its
    last key; None: the store cannot begin in the middle."""
    tells_missing_bucket: bool = True
    """Whether an error tells a missing bucket from a missing object."""
    is_read_only: bool = False
    trouble: Callable[[str], str] = lambda path: ""
    """Path of a URI -> what would be right; '' if it is right."""
    pin: Callable[[Any, str], str] | None = None
    """file system, path -> the path of what is there now, whatever is written later; None: paths
    have no revisions."""
    unpinned: Callable[[str], str] = lambda path: path
    """Path -> the same without a revision, which tells what is the same file in two revisions."""


def stored_file(path: str, size_bytes: int, version: Any, modified: Any) -> StoredFile:
    """Make a StoredFile from the answer of a store."""
    text = str(version or "").strip('"')
    if isinstance(modified, dt.datetime):
        return StoredFile(path, size_bytes, text, modified.astimezone(dt.UTC))
    return StoredFile(path, size_bytes, text, None)


def copy_plainly(fs: Any, source: str, target: str) -> None:
    """Copy an object by the copy of the file system."""
    fs.cp_file(source, target)


def file_info(fs: Any, path: str) -> dict[str, Any]:
    """Return the facts of an object.

    Raises:
        FileNotFoundError: There is no object, or it is a folder.
    """
    info: dict[str, Any] = fs.info(path)
    if info["type"] != "file":
        raise FileNotFoundError(errno.ENOENT, "a folder", path)
    return info


async def call(fs: Any, name: str, *arguments: Any, **options: Any) -> Any:
    """Await a method of a file system on its own loop.

    fsspec keeps the coroutine of a public method under the same name with an underscore. If a
    version has none, the public method runs in a thread: slower, with the same result.
    """
    coroutine = getattr(fs, f"_{name}", None)
    if coroutine is not None:
        return await coroutine(*arguments, **options)
    return await asyncio.to_thread(getattr(fs, name), *arguments, **options)


def run_together(
    fs: Any, functions: Sequence[Callable[[], Awaitable[bytes]]]
) -> list[bytes | Exception]:
    """Run coroutines concurrently on the loop of a file system; return results and errors."""

    async def gather() -> Any:
        slots = asyncio.Semaphore(_MAX_TOGETHER)

        async def run(function: Callable[[], Awaitable[bytes]]) -> bytes:
            async with slots:
                return await function()

        return await asyncio.gather(*map(run, functions), return_exceptions=True)

    results: list[bytes | Exception] = on_loop(fs, gather)
    return results


def on_loop(fs: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a coroutine function and wait for its result.

    It runs on the loop of the file system, or, if that is synchronous, on that of fsspec.
    """
    from fsspec.asyn import get_loop, sync

    return sync(getattr(fs, "loop", None) or get_loop(), function, *arguments)
