"""Object stores behind fsspec; no other file calls its file systems, besides `protocols/`."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Self, TypeVar, cast

from pipeline.core.errors import JobError
from pipeline.storage.errors import is_behind_end, is_missing
from pipeline.storage.interface import NoSuchBucket, Page, StoredFile
from pipeline.storage.protocols import OBJECT_PROTOCOLS
from pipeline.storage.protocols.object_protocol import (
    Fetch,
    ObjectProtocol,
    call,
    run_together,
    stored_file,
)
from pipeline.storage.uris import options_of

T = TypeVar("T")
Read = Callable[[], bytes]

_kept: dict[int, Any] = {}
"""All file systems ever made. A forked child drops the references of fsspec, and the clean-up of
s3fs then unregisters the sockets of its parent, which would hang at its next request."""
_seen_buckets: set[tuple[int, str]] = set()


@dataclass(frozen=True)
class ObjectStore:
    """An object store behind fsspec.

    Use only calls that take a path literally: `cat`, `rm` and `expand_path` read `*`, `?` and `[`
    in the name of an object as a glob.
    """

    fs: Any
    facts: ObjectProtocol

    @classmethod
    def connect(cls, protocol: str, options: Mapping[str, Any]) -> ObjectStore:
        facts = OBJECT_PROTOCOLS[protocol]
        try:
            importlib.import_module(facts.package)
        except ImportError as error:
            extra = f"pip install 'batch-inference-pipeline[{facts.extra}]'"
            raise JobError(f"{protocol}:// needs the extra: {extra}") from error
        fs = facts.connect(options)
        _kept.setdefault(id(fs), fs)
        return cls(fs, facts)

    def list_page(self, folder: str, delimited: bool, token: str | None) -> Page:
        """Return a page of objects below a folder; delimited: up to the next `/`."""
        ask = self.facts.list_page
        return self._page(folder, lambda *at: ask(self.fs, at[0], at[1], delimited, token))

    def list_after(self, folder: str, path: str) -> Page:
        """Return a page of objects below a folder after a path; its token is its last path."""
        list_after = self.facts.list_after
        assert list_after is not None, "asked before"
        bucket, _, key = path.partition("/")
        page = self._page(folder, lambda *at: list_after(self.fs, at[0], at[1], key))
        last = None if page.next_token is None else f"{bucket}/{page.next_token}"
        return Page(page.files, next_token=last)

    def _page(self, folder: str, ask: Callable[[str, str], Page]) -> Page:
        bucket, _, prefix = folder.partition("/")
        # Exactly one slash: objects below `in//` are not those below `in/`.
        prefix = f"{prefix}/" if prefix and not prefix.endswith("/") else prefix
        try:
            page = ask(bucket, prefix)
        except FileNotFoundError as error:
            raise NoSuchBucket(bucket) from error
        # An empty key ending in `/` is a placeholder of a folder.
        files = [file for file in page.files if file.size_bytes or not file.path.endswith("/")]
        return Page(
            files, [f"{bucket}/{key_prefix}" for key_prefix in page.prefixes], page.next_token
        )

    def stat(self, path: str) -> StoredFile | None:
        info = self._info(path)
        if info is None or info["type"] != "file":
            return None
        return stored_file(
            path, info["size"], info.get(self.facts.version), info.get(self.facts.modified)
        )

    def exists(self, path: str) -> bool:
        return self._info(path) is not None

    def pinned(self, path: str) -> str:
        """Return the path of what is there now, whatever is written later, if the store has it."""
        return path if self.facts.pin is None else self.facts.pin(self.fs, path)

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        span = {} if max_bytes is None else {"start": 0, "end": max_bytes}
        try:
            return self._with_bucket_check(
                path, lambda: cast(bytes, self.fs.cat_file(path, **span, **self.facts.read))
            )
        except Exception as error:
            if span and is_behind_end(error):  # an empty object has no first byte
                return b""
            raise

    def read_many(
        self, paths: Sequence[str], versions: Sequence[str] | None = None
    ) -> Sequence[bytes | Exception]:
        if not paths:
            return []
        read: Sequence[Callable[[], Awaitable[bytes]]]
        if versions is None:
            read = [partial(call, self.fs, "cat_file", p, **self.facts.read) for p in paths]
        else:
            pairs = zip(paths, versions, strict=True)
            read = [partial(self.facts.read_version, self.fs, *pair) for pair in pairs]
        values = run_together(self.fs, read)
        return [self._judged(path, value) for path, value in zip(paths, values, strict=True)]

    def _judged(self, path: str, value: bytes | Exception) -> bytes | Exception:
        if isinstance(value, FileNotFoundError):
            try:
                self._require_bucket(path)
            except Exception as error:  # noqa: BLE001 - it is the answer for this path
                return error
        return value

    def open(self, path: str) -> BinaryIO:
        size_bytes, fetch = self._with_bucket_check(path, lambda: self.facts.open(self.fs, path))
        return cast(BinaryIO, RemoteFile(size_bytes, fetch))

    def put(self, path: str, data: bytes) -> None:
        self._with_bucket_check(path, lambda: self.fs.pipe_file(path, data))

    def put_file(self, path: str, source: str) -> None:
        self._with_bucket_check(path, lambda: self.fs.put_file(source, path))

    def create(self, path: str, data: bytes) -> None:
        self._with_bucket_check(path, lambda: self.fs.pipe_file(path, data, mode="create"))

    def copy(self, source: str, target: str) -> None:
        self._with_bucket_check(source, lambda: self.facts.copy(self.fs, source, target))

    def delete(self, paths: Sequence[str]) -> None:
        # Not by a bulk request: s3fs drops the errors per key of its answer.
        for path in paths:
            try:
                self._with_bucket_check(path, lambda path=path: self.fs.rm_file(path))  # type: ignore[misc]
            except FileNotFoundError as error:
                if not is_missing(error):
                    raise

    def _info(self, path: str) -> dict[str, Any] | None:
        try:
            return self._with_bucket_check(path, lambda: cast(dict[str, Any], self.fs.info(path)))
        except FileNotFoundError as error:
            if is_missing(error):
                return None
            raise

    def _with_bucket_check(self, path: str, act: Callable[[], T]) -> T:
        """Do something with an object; if it is not found, check that its bucket exists."""
        try:
            return act()
        except FileNotFoundError:
            self._require_bucket(path)
            raise

    def _require_bucket(self, path: str) -> None:
        bucket = path.partition("/")[0]
        key = (id(self.fs), bucket)
        if self.facts.tells_missing_bucket or key in _seen_buckets:
            return
        self.list_page(path, False, None)  # raises if there is no bucket
        _seen_buckets.add(key)


class RemoteFile(io.RawIOBase):
    """A remote file for random access, without read-ahead.

    A short answer, as of a broken connection, raises OSError.
    """

    def __init__(
        self, size_bytes: int, fetch: Fetch, checked: Callable[[Read], bytes] = lambda read: read()
    ) -> None:
        self._size_bytes, self._fetch, self._checked = size_bytes, fetch, checked
        self._position = 0

    def checked(self, checked: Callable[[Read], bytes]) -> Self:
        """Return the same file, whose reads go through a function that retries them."""
        return type(self)(self._size_bytes, self._fetch, checked)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        start = self._position
        end = self._size_bytes
        if size is not None and size >= 0:
            end = min(end, start + size)
        if start >= end:
            return b""
        data = self._checked(lambda: self._whole(start, end))
        self._position = end
        return data

    def _whole(self, start: int, end: int) -> bytes:
        data = self._fetch(start, end)
        if len(data) != end - start:
            raise OSError(f"got {len(data)} of the {end - start} bytes from {start} on")
        return data

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}, before the file")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position


def object_store(uri: str, storage_options: Mapping[str, Any]) -> ObjectStore:
    """Return the object store at `uri`; options of the job override those in the URI."""
    protocol = uri.partition("://")[0]
    return ObjectStore.connect(protocol, {**options_of(uri), **storage_options})
