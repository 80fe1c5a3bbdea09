"""Files on local disk and in object stores, written whole or not at all.

A path is relative to the root of its `Store`, with `/` between
segments. An object that exists is whole: everything is written by one put, never through an open
file handle, because leaving `with fs.open(..., "wb")` by an exception publishes what was written.

Reading what is not there raises FileNotFoundError, for callers to decide what that means; every
other trouble is a JobError (wrong URI, credentials, rights) or an InfraError (a retry may cure it).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, BinaryIO, cast

from pipeline.errors import InfraError, JobError, PipelineError
from pipeline.local_disk import LocalDisk, is_temporary
from pipeline.object_store import PROTOCOLS, CheckedFile, ObjectStore
from pipeline.storage_errors import is_conflict, secret_values, storage_errors, translate
from pipeline.stored import Backend, StoredFile

__all__ = ["CreateOutcome", "Store", "StoredFile"]

_PROBE_FOLDER = "_control/.probe"
_CREATE_TRIES = 5
_CREATE_PATIENCE_S = 60.0
_BACKOFF_S = 0.2


class CreateOutcome(StrEnum):
    """Who made the object that is there now."""

    CREATED = "created"
    MINE = "mine"
    """It carries our token: an earlier try of ours made it and its response was lost."""
    OTHER = "other"


@dataclass(frozen=True)
class Store:
    """A folder on local disk or a prefix in an object store.

    A value without open connections: it pickles, and each process makes its own file system, which
    fsspec caches by process and options (and forgets in a forked child).
    """

    uri: str
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "uri", _normalise(self.uri))
        object.__setattr__(self, "storage_options", dict(self.storage_options))

    @property
    def is_object_store(self) -> bool:
        """Tell whether folders are only prefixes here."""
        return "://" in self.uri

    def url(self, path: str = "") -> str:
        """Return the absolute path or URL of a file, for messages."""
        return _join(self.uri, path)

    def list_files(self, prefix: str = "") -> list[StoredFile]:
        """List all files below a folder, sorted by path; a folder that does not exist has none.

        Symbolic links are skipped with a warning, wherever they point: following them could leave
        the root, run in circles or count a file twice.
        """
        return [f for f in self._list(prefix) if not is_temporary(f.path)]

    def list_leftovers(self, prefix: str = "") -> list[StoredFile]:
        """List temporary files that killed writers left on local disk (readers never see them)."""
        return [f for f in self._list(prefix) if is_temporary(f.path)]

    def stat(self, path: str) -> StoredFile | None:
        """Describe a file; None where there is no file (a folder is none)."""
        with self._errors("look at", path):
            found = self._backend().stat(self._full(path))
        return self._relative(found) if found else None

    def exists(self, path: str) -> bool:
        """Tell whether there is a file, or a folder (in an object store: one with objects)."""
        with self._errors("look at", path):
            return self._backend().exists(self._full(path))

    def read_bytes(self, path: str) -> bytes:
        """Read a whole file.

        Raises:
            FileNotFoundError: There is no such file.
        """
        with self._errors("read", path, missing=path):
            return self._backend().read(self._full(path))

    def read_many(self, paths: Sequence[str]) -> dict[str, bytes | Exception]:
        """Read whole files, concurrently in an object store; what failed maps to its error."""
        with self._errors("read", ""):
            wanted = dict.fromkeys(paths)
            values = self._backend().read_many([self._full(path) for path in wanted])
        found: dict[str, bytes | Exception] = {}
        for path, value in zip(wanted, values, strict=True):
            if isinstance(value, Exception):
                url = self.url(path)
                value = translate(value, f"cannot read {url}", self._secrets(), url)
            found[path] = value
        return found

    def open(self, path: str) -> BinaryIO:
        """Open a file for random access, as pyarrow reads Parquet.

        Nothing is cached or read ahead: Arrow asks for the footer, then for exactly the column
        chunks that it wants, once each, so that any read-ahead would be fetched for nothing. Give
        Arrow `pre_buffer=True` to join the chunks of many small columns into few requests.

        Raises:
            FileNotFoundError: There is no such file.
        """
        with self._errors("open", path, missing=path):
            handle = self._backend().open(self._full(path))
        if not self.is_object_store:
            return handle
        return cast(BinaryIO, CheckedFile(handle, self.url(path), self._secrets()))

    def put(self, path: str, data: bytes) -> None:
        """Write a whole file at once, replacing what was there."""
        with self._errors("write", path):
            self._backend().put(self._full(path), data)

    def create_once(self, path: str, data: bytes, token: str) -> CreateOutcome:
        """Write a file unless there is one; of many writers exactly one creates it.

        A write whose outcome is unclear is read back and its token compared; only where nothing is
        found is it tried again. Nothing is ever deleted.

        Args:
            path: What to create.
            data: Its content, which must contain the token.
            token: Unique to this call, so that its own object is recognised.

        Raises:
            InfraError: The outcome is still unclear after several tries.
        """
        if not token or token.encode() not in data:
            raise ValueError(f"create_once {path}: data must contain the token")
        trouble: PipelineError | None = None
        give_up = time.monotonic() + _CREATE_PATIENCE_S
        for attempt in range(_CREATE_TRIES):
            if attempt and time.monotonic() > give_up:
                break
            if attempt:
                time.sleep(_BACKOFF_S * 2**attempt * (0.5 + secrets.randbelow(1000) / 1000))
            try:
                if self._create(path, data):
                    return CreateOutcome.CREATED
            except InfraError as error:
                trouble = error
            try:
                is_mine = token.encode() in self.read_bytes(path)
            except FileNotFoundError:
                continue
            except InfraError as error:
                trouble = error
                continue
            return CreateOutcome.MINE if is_mine else CreateOutcome.OTHER
        cause = trouble or "the store says that it exists and that it does not"
        raise InfraError(
            f"cannot create {self.url(path)}: still unclear after several tries whether it was; "
            f"{cause}"
        )

    def copy(self, source: str, target: str) -> None:
        """Copy a file within the store; the target appears whole and is replaced if it exists.

        Raises:
            FileNotFoundError: There is no such source.
        """
        if source == target:
            return
        with self._errors("copy", source, missing=source):
            self._backend().copy(self._full(source), self._full(target))

    def delete(self, paths: Sequence[str]) -> None:
        """Delete files; missing ones are fine."""
        with self._errors("delete", paths[0] if len(paths) == 1 else ""):
            self._backend().delete([self._full(path) for path in paths])

    def probe(self, *, single_writer: bool) -> None:
        """Check that this store can be written, and that a second create is refused.

        Raises:
            JobError: The store ignores the condition of create-once, and the job does not promise
                to be the only writer.
        """
        path = f"{_PROBE_FOLDER}/create-{uuid.uuid4().hex}"
        first, second = uuid.uuid4().hex, uuid.uuid4().hex
        try:
            self.create_once(path, first.encode(), first)
            refused = self.create_once(path, second.encode(), second) is CreateOutcome.OTHER
        finally:
            self.delete([path])
        if not refused and not single_writer:
            raise JobError(
                f"{self.url()}: this store ignores If-None-Match, so two runs could publish at "
                "once; promise to run alone with --set run.single_writer=true"
            )

    def now(self) -> dt.datetime:
        """Return the time by the clock of the store, which all runs share (a second's precision).

        It costs a small put: there is no other way to ask for the time.
        """
        path = f"{_PROBE_FOLDER}/clock-{uuid.uuid4().hex}"
        try:
            self.put(path, b"?")
            found = self.stat(path)
        finally:
            self.delete([path])
        if found is None or found.modified is None:
            raise InfraError(f"{self.url(path)}: was put, but the store does not show its time")
        return found.modified

    def _list(self, prefix: str) -> list[StoredFile]:
        with self._errors("list", prefix):
            files = [self._relative(f) for f in self._backend().list(self._full(prefix))]
        return sorted(files, key=lambda f: f.path)

    def _create(self, path: str, data: bytes) -> bool:
        """Return whether the file was created; False where the name is taken, by whomever."""
        with self._errors("create", path):
            try:
                self._backend().create(self._full(path), data)
            except Exception as error:
                if is_conflict(error):
                    return False
                raise
        return True

    def _full(self, path: str) -> str:
        """Return the path for the backend, without the protocol."""
        if path.startswith("/") or "\0" in path or {".", ".."} & set(path.split("/")):
            raise JobError(f"{path!r}: a path must stay below {self.uri}; no '..', no leading '/'")
        return _join(self.uri.partition("://")[2] or self.uri, path)

    def _relative(self, found: StoredFile) -> StoredFile:
        path = found.path[len(self._full("").rstrip("/")) :].lstrip("/")
        return StoredFile(path, found.size_bytes, found.version, found.modified)

    def _backend(self) -> Backend:
        protocol, separator, _ = self.uri.partition("://")
        return ObjectStore.connect(protocol, self.storage_options) if separator else LocalDisk()

    def _secrets(self) -> list[str]:
        return secret_values(self.storage_options)

    def _errors(
        self, verb: str, path: str, *, missing: str | None = None
    ) -> contextlib.AbstractContextManager[None]:
        return storage_errors(
            f"cannot {verb} {self.url(path)}",
            self._secrets(),
            missing=None if missing is None else self.url(missing),
        )


def _normalise(uri: str) -> str:
    protocol, separator, rest = uri.partition("://")
    if not separator:
        if re.match(rf"({'|'.join(PROTOCOLS)}|file):/", uri):
            raise JobError(f"{uri}: not a URI; expected two slashes, as in s3://bucket/prefix")
        return os.path.abspath(os.path.expanduser(uri))
    if protocol == "file":
        if not rest.startswith("/"):
            raise JobError(f"{uri}: expected three slashes, as in file:///folder")
        return os.path.abspath(rest)
    if protocol not in PROTOCOLS:
        known = ", ".join(f"{name}://" for name in PROTOCOLS)
        raise JobError(f"{protocol}://: not supported; expected a local path or {known}")
    if "@" in rest.split("/", 1)[0]:
        raise JobError(
            f"{protocol}://: credentials do not belong in a URI; use storage_options or the "
            "environment"
        )
    rest = rest.strip("/")
    if not rest or {".", ".."} & set(rest.split("/")):
        raise JobError(f"{uri}: expected {protocol}://bucket/prefix without '.' and '..'")
    return f"{protocol}://{rest}"


def _join(root: str, path: str) -> str:
    return f"{root.rstrip('/')}/{path}".rstrip("/") or "/"
