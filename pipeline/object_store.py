"""Objects behind fsspec, the one place that knows it."""

from __future__ import annotations

import datetime as dt
import errno
import importlib
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from pipeline.errors import JobError
from pipeline.storage_errors import is_missing, storage_errors
from pipeline.stored import StoredFile

_DELETE_THREADS = 16


@dataclass(frozen=True)
class ObjectProtocol:
    """What is particular to one kind of object store; a new kind is a new row below."""

    extra: str
    package: str
    etag: str
    modified: str
    config: Mapping[str, Any]
    """Defaults for the option `config_kwargs`."""
    read_many: Mapping[str, Any]
    """Options for reading many small objects."""
    attributes: Mapping[str, Any]
    """Settings that are no options, but attributes of the file system."""


PROTOCOLS = {
    "s3": ObjectProtocol(
        extra="s3",
        package="s3fs",
        etag="ETag",
        modified="LastModified",
        # Small objects are bound by latency: ten connections (the default) are too few.
        config={"max_pool_connections": 32},
        # Otherwise s3fs asks for the size of each object first: twice the requests.
        read_many={"max_concurrency": 1},
        # s3fs repeats lost requests 5 times, each of which botocore sends 5 times with a timeout of
        # 15 s: a store that accepts and never answers would hold every call for over 6 minutes.
        attributes={"retries": 2},
    ),
}


_KEPT: dict[int, Any] = {}
"""Every file system that was made. A forked child drops fsspec's own references, and the clean-up
of s3fs then unregisters the sockets of its parent, which hangs at its next request."""


@dataclass(frozen=True)
class ObjectStore:
    """Objects behind fsspec.

    Only calls that take a path literally: `cat`, `rm` and `expand_path` read `*`, `?` and `[` in
    the name of an object as a glob.
    """

    fs: Any
    facts: ObjectProtocol

    @classmethod
    def connect(cls, protocol: str, options: Mapping[str, Any]) -> ObjectStore:
        facts = PROTOCOLS[protocol]
        config = {**facts.config, **options.get("config_kwargs", {})}
        try:
            importlib.import_module(facts.package)
        except ImportError as error:
            extra = f"pip install 'batch-inference-pipeline[{facts.extra}]'"
            raise JobError(f"{protocol}:// needs the extra: {extra}") from error
        import fsspec

        settings = {**options, "config_kwargs": config, "use_listings_cache": False}
        fs = fsspec.filesystem(protocol, **settings)
        for name, value in facts.attributes.items():
            setattr(fs, name, value)
        _KEPT.setdefault(id(fs), fs)
        return cls(fs, facts)

    def list(self, folder: str) -> list[StoredFile]:
        try:
            found = self.fs.find(folder, detail=True)
        except FileNotFoundError as error:
            if is_missing(error):
                return []
            raise
        below = f"{folder}/"  # a key ending in `/` is a placeholder of a folder
        names = (n for n in found if n.startswith(below) and not n.endswith("/"))
        return [self._file(name, found[name]) for name in names]

    def stat(self, path: str) -> StoredFile | None:
        info = self._info(path)
        return self._file(path, info) if info and info["type"] == "file" else None

    def exists(self, path: str) -> bool:
        return self._info(path) is not None

    def read(self, path: str) -> bytes:
        return cast(bytes, self.fs.cat_file(path))

    def read_many(self, paths: Sequence[str]) -> Sequence[bytes | Exception]:
        if not paths:
            return []
        found = self.fs.cat_ranges([*paths], None, None, on_error="return", **self.facts.read_many)
        return cast(Sequence[bytes | Exception], found)

    def open(self, path: str) -> BinaryIO:
        handle = self.fs.open(path, "rb", cache_type="none")
        if handle.details["type"] != "file":  # s3fs opens a prefix, too
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return cast(BinaryIO, handle)

    def put(self, path: str, data: bytes) -> None:
        self.fs.pipe_file(path, data)

    def create(self, path: str, data: bytes) -> None:
        self.fs.pipe_file(path, data, mode="create")

    def copy(self, source: str, target: str) -> None:
        self.fs.cp_file(source, target)

    def delete(self, paths: Sequence[str]) -> None:
        # Not by a bulk request: s3fs drops the errors that its answer lists key by key.
        with ThreadPoolExecutor(_DELETE_THREADS) as pool:
            for _ in pool.map(self._delete_one, paths):
                pass

    def _delete_one(self, path: str) -> None:
        try:
            self.fs.rm_file(path)
        except FileNotFoundError as error:
            if not is_missing(error):
                raise

    def _info(self, path: str) -> dict[str, Any] | None:
        try:
            return cast(dict[str, Any], self.fs.info(path))
        except FileNotFoundError as error:
            if is_missing(error):
                return None
            raise

    def _file(self, path: str, info: Mapping[str, Any]) -> StoredFile:
        version = str(info.get(self.facts.etag) or "").strip('"')
        modified = info.get(self.facts.modified)
        if isinstance(modified, dt.datetime):
            return StoredFile(path, info["size"], version, modified.astimezone(dt.UTC))
        return StoredFile(path, info["size"], version, None)


class CheckedFile(io.RawIOBase):
    """A remote file whose read errors are ours, also when Arrow does the reading.

    A file that vanishes after it was opened raises FileNotFoundError, like one that never was.
    """

    def __init__(self, raw: BinaryIO, url: str, secret_values: Sequence[str]) -> None:
        self._raw, self._url, self._secret_values = raw, url, secret_values

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        what = f"cannot read {self._url}"
        with storage_errors(what, self._secret_values, missing=self._url):
            return self._raw.read(-1 if size is None else size)

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def close(self) -> None:
        self._raw.close()
        super().close()
