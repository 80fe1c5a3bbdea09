"""Files on local disk and in object stores, written whole or not at all.

A path is relative to the root of its `Store`, with `/` between
segments. An object that exists is whole: everything is written by one put, never through an open
file handle, because leaving `with fs.open(..., "wb")` by an exception publishes what was written.

Reading what is not there raises FileNotFoundError, for callers to decide what that means; every
other trouble is a JobError (wrong URI, credentials, rights) or an InfraError (running again may
cure it). What passes in a moment (throttling, a broken connection) has been retried before.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, BinaryIO, TypeVar, cast

from pipeline.core.backoff import TransientError, retries_taken, with_retries
from pipeline.core.errors import InfraError, JobError
from pipeline.core.output_folders import PROBES
from pipeline.storage.create_once import CreateOutcome, create_once
from pipeline.storage.errors import is_conflict, secret_values, storage_errors, translate
from pipeline.storage.interface import Choice, Page, StoredFile
from pipeline.storage.listing import (
    FetchPage,
    collect,
    folder_names,
    have_plain_order,
    list_folders,
    list_in_parallel,
    list_one_by_one,
)
from pipeline.storage.local_disk import LocalDisk, is_temporary
from pipeline.storage.object_store import ObjectStore, RemoteFile, object_store
from pipeline.storage.protocols import OBJECT_PROTOCOLS
from pipeline.storage.uris import join, normalise, root_path, trouble, unpinned

__all__ = ["CreateOutcome", "Store", "StoredFile", "retries_taken"]

T = TypeVar("T")
Backend = LocalDisk | ObjectStore
"""Both have the same methods, which take absolute paths and raise raw errors. A file that is put
appears whole, `create` raises if the name is taken, and deleting a missing file succeeds."""

_DELETE_THREADS = 16


@dataclass(frozen=True)
class Store:
    """A folder on local disk or a prefix in an object store.

    A value without open connections, so it pickles. Each process makes its own file system, which
    fsspec caches by process and options (and forgets in a forked child).
    """

    uri: str
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "uri", normalise(self.uri))
        object.__setattr__(self, "storage_options", dict(self.storage_options))

    @property
    def is_object_store(self) -> bool:
        """Tell whether folders are only prefixes here."""
        return "://" in self.uri

    @property
    def is_read_only(self) -> bool:
        """Tell whether nothing can be written here."""
        return self.is_object_store and OBJECT_PROTOCOLS[self._protocol].is_read_only

    def url(self, path: str = "") -> str:
        """Return the absolute path or URL of a file, as rows and messages have it.

        It has no revision: a file that is the same in two of them has one URL.
        """
        return join(unpinned(self.uri), path)

    def pinned(self) -> Store:
        """Return this store as it is now, whatever is written later, if its URI can tell that."""
        if not self.is_object_store:
            return self
        backend, path = object_store(self.uri, self.storage_options), self._full("")
        pinned = self._call("look at", "", lambda _: backend.pinned(path))
        return self if pinned == path else replace(self, uri=f"{self._protocol}://{pinned}")

    def as_file(self) -> tuple[Store, StoredFile] | None:
        """Return the folder of the single file that the root is, and the file; None: it is none."""
        parent, _, name = self.uri.rpartition("/")
        if not name or parent.endswith("/") or (self.is_object_store and trouble(parent)):
            return None
        folder = replace(self, uri=parent or "/")
        file = folder.stat(name)
        return None if file is None else (folder, file)

    def list_files(self, prefix: str = "") -> list[StoredFile]:
        """List all files below a folder, sorted by path; a folder that does not exist has none.

        Symbolic links are skipped with a warning: following them could leave the root, form a loop
        or count a file twice. Inputs are listed by `list_chosen`.
        """
        return [f for f in self._list(prefix) if not is_temporary(f.path)]

    def list_chosen(self, choice: Choice) -> list[StoredFile]:
        """List the input files of a source, sorted by path; other files are not kept in memory."""
        return self._list("", choice)

    def list_folders(self, prefix: str = "") -> list[str]:
        """List the names of the folders directly below a folder, sorted."""
        with self._errors("list", prefix):
            if self.is_object_store:
                return folder_names(self._fetch_pages(prefix), self._full(prefix))
            return [*LocalDisk().folder_names(self._full(prefix))]

    def list_small_folders(self, parent: str, folders: Sequence[str]) -> list[StoredFile]:
        """List all files below many folders of a few files each, sorted by path.

        An object store that can begin a listing anywhere gets one request for many folders.
        """
        backend = object_store(self.uri, self.storage_options) if self.is_object_store else None
        if backend is None or not backend.facts.list_after or not have_plain_order(folders):
            return list_one_by_one(self.list_files, folders)
        below = self._full(parent)

        def fetch(path: str) -> Page:
            return self._call("list", parent, lambda _: backend.list_after(below, path))

        with self._errors("list", parent):
            pages = list_folders(fetch, [*map(self._full, folders)])
            return collect(map(self._relative, pages), self.url(parent))

    def list_leftovers(self, prefix: str = "") -> list[StoredFile]:
        """List temporary files that killed writers left on local disk (readers never see them)."""
        return [f for f in self._list(prefix) if is_temporary(f.path)]

    def stat(self, path: str) -> StoredFile | None:
        """Describe a file; None if there is no file, or a folder."""
        file = self._call("look at", path, lambda at: at.stat(self._full(path)))
        return replace(file, path=path) if file else None

    def exists(self, path: str) -> bool:
        """Tell whether there is a file, or a folder (in an object store: one with objects)."""
        return self._call("look at", path, lambda at: at.exists(self._full(path)))

    def read_bytes(self, path: str, max_bytes: int | None = None) -> bytes:
        """Read a whole file, or no more than its first `max_bytes`.

        Raises:
            FileNotFoundError: There is no such file.
        """
        return with_retries(lambda: self._read_once(path, max_bytes))

    def read_many(
        self, paths: Sequence[str], versions: Mapping[str, str] | None = None
    ) -> dict[str, bytes | Exception]:
        """Read whole files, concurrently in an object store; map each path to its bytes or error.

        Args:
            versions: The version that each file must have, as listed; another one is an InfraError.
                On local disk `/` and the ctime may follow it.
        """
        results: dict[str, bytes | Exception] = {}

        def read_rest() -> None:
            unanswered = (type(None), TransientError)
            rest = [p for p in dict.fromkeys(paths) if isinstance(results.get(p), unanswered)]
            with self._errors("read", ""):
                pinned = None if versions is None else [versions[path] for path in rest]
                values = self._backend().read_many([self._full(path) for path in rest], pinned)
            for path, value in zip(rest, values, strict=True):
                results[path] = self._translated(path, value)
            passing = [value for value in results.values() if isinstance(value, TransientError)]
            if passing:
                raise passing[0]

        try:
            with_retries(read_rest)
        except TransientError:
            if len(results) < len(set(paths)):
                raise  # an error of the call itself; otherwise return the errors of the last try
        return {path: results[path] for path in dict.fromkeys(paths)}

    def _translated(self, path: str, value: bytes | Exception) -> bytes | Exception:
        if not isinstance(value, Exception):
            return value
        url = self.url(path)
        return translate(value, f"cannot read {url}", self._secrets(), url)

    def open(self, path: str) -> BinaryIO:
        """Open a file for random access, as pyarrow reads Parquet.

        Nothing is cached or read ahead: Arrow asks for the footer, then once for exactly the column
        chunks that it needs, so read-ahead would be wasted. Give Arrow `pre_buffer=True` to join
        the chunks of many small columns into few requests.

        Raises:
            FileNotFoundError: There is no such file.
        """
        handle = self._call("open", path, lambda at: at.open(self._full(path)), missing=path)
        if not isinstance(handle, RemoteFile):
            return handle
        # Translate errors of reading, also when Arrow reads.
        checked = handle.checked(lambda read: self._tried("read", path, read, missing=path))
        return cast(BinaryIO, checked)

    def put(self, path: str, data: bytes) -> None:
        """Write a whole file at once, replacing an existing one."""
        self._call("write", path, lambda at: at.put(self._full(path), data))

    def put_file(self, path: str, source: str) -> None:
        """Write a file from local disk, replacing an existing one, without reading it whole."""
        self._call("write", path, lambda at: at.put_file(self._full(path), source))

    def create_once(self, path: str, data: bytes, token: str) -> CreateOutcome:
        """Write a file unless it exists; of many writers exactly one creates it.

        After a write with an unclear outcome the file is read back and its token compared; the
        write is tried again only if there is no file. Nothing is ever deleted.

        Args:
            data: The content, which must contain the token.
            token: Unique to this call, so that its own object is recognised.

        Raises:
            InfraError: The outcome is still unclear after several tries.
        """
        if not token or token.encode() not in data:
            raise ValueError(f"create_once {path}: data must contain the token")
        return create_once(
            partial(self._create, path, data), partial(self._read_once, path), token, self.url(path)
        )

    def copy(self, source: str, target: str) -> None:
        """Copy a file within the store; the target appears whole and is replaced if it exists.

        Raises:
            FileNotFoundError: There is no such source.
        """
        if source == target:
            return
        full = self._full(source), self._full(target)
        self._call("copy", source, lambda at: at.copy(*full), missing=source)

    def delete(self, paths: Sequence[str]) -> None:
        """Delete files; missing files are ignored."""
        full = [self._full(path) for path in paths]
        if not self.is_object_store:
            self._call("delete", paths[0] if len(paths) == 1 else "", lambda at: at.delete(full))
            return
        with ThreadPoolExecutor(_DELETE_THREADS) as pool:
            # One by one, so that a retry repeats only failed calls.
            for _ in pool.map(self._delete_one, paths):
                pass

    def _delete_one(self, path: str) -> None:
        self._call("delete", path, lambda at: at.delete([self._full(path)]))

    def probe(self, *, single_writer: bool) -> None:
        """Check that this store can be written, and that a second create is refused.

        Raises:
            JobError: The store ignores the condition of a create, and the job does not promise to
                be the only writer.
        """
        path = f"{PROBES}/create-{uuid.uuid4().hex}"
        first, second = uuid.uuid4().hex, uuid.uuid4().hex
        self.create_once(path, first.encode(), first)
        refused = self.create_once(path, second.encode(), second) is CreateOutcome.OTHER
        self.delete([path])  # `gc` removes it if this fails
        if not refused and not single_writer:
            raise JobError(
                f"{self.url()}: this store ignores If-None-Match, so two runs could publish at "
                "once; promise to run alone with --set run.single_writer=true"
            )

    def now(self) -> dt.datetime:
        """Return the time by the clock of the store, which all runs share (a second's precision).

        It costs a small put: there is no other way to ask for the time.
        """
        path = f"{PROBES}/clock-{uuid.uuid4().hex}"
        self.put(path, b"?")
        file = self.stat(path)
        self.delete([path])  # `gc` removes it if this fails
        if file is None or file.modified is None:
            raise InfraError(f"{self.url(path)}: was put, but the store does not show its time")
        return file.modified

    def _list(self, prefix: str, choice: Choice | None = None) -> list[StoredFile]:
        full = self._full(prefix)
        if self.is_object_store:
            pages = list_in_parallel(self._fetch_pages(prefix), full)
        else:
            pages = self._call("list", prefix, lambda _: LocalDisk().list(full, choice))
        takes = choice.takes if choice else lambda file: not file.path.endswith("/")
        relative = map(self._relative, pages)
        with self._errors("list", prefix):
            return collect(([*filter(takes, page)] for page in relative), self.url(prefix))

    def _fetch_pages(self, prefix: str) -> FetchPage:
        backend = object_store(self.uri, self.storage_options)
        return lambda *page: self._call("list", prefix, lambda _: backend.list_page(*page))

    def _create(self, path: str, data: bytes) -> bool:
        """Create a file; return False if the name is taken, by any writer."""
        with self._errors("create", path):
            try:
                self._backend().create(self._full(path), data)
            except Exception as error:
                if is_conflict(error):
                    return False
                raise
        return True

    def _read_once(self, path: str, max_bytes: int | None = None) -> bytes:
        with self._errors("read", path, missing=path):
            return self._backend().read(self._full(path), max_bytes)

    def _call(
        self, verb: str, path: str, act: Callable[[Backend], T], *, missing: str | None = None
    ) -> T:
        return self._tried(verb, path, lambda: act(self._backend()), missing=missing)

    def _tried(
        self, verb: str, path: str, act: Callable[[], T], *, missing: str | None = None
    ) -> T:
        """Act, with retries after transient errors; errors of the store become PipelineErrors."""

        def once() -> T:
            with self._errors(verb, path, missing=missing):
                return act()

        return with_retries(once)

    def _full(self, path: str) -> str:
        """Return the path for the backend, without the protocol."""
        if path.startswith("/") or "\0" in path or {".", ".."} & set(path.split("/")):
            raise JobError(f"{path!r}: a path must stay below {self.uri}; no '..', no leading '/'")
        return join(root_path(self.uri), path)

    def _relative(self, page: Sequence[StoredFile]) -> list[StoredFile]:
        skipped = len(self._full("").rstrip("/")) + 1
        return [
            StoredFile(f.path[skipped:], f.size_bytes, f.version, f.modified, f.ctime_ns)
            for f in page
        ]

    @property
    def _protocol(self) -> str:
        return self.uri.partition("://")[0]

    def _backend(self) -> Backend:
        if self.is_object_store:
            return object_store(self.uri, self.storage_options)
        return LocalDisk()

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


def split_name(uri: str) -> tuple[str, str]:
    """Return the folder of a file, and its name there."""
    folder, _, name = uri.rpartition("/")
    return folder or ("/" if uri.startswith("/") else "."), name


def read_file(uri: str, storage_options: Mapping[str, Any], what: str) -> bytes:
    """Read a single file whose URI is in the field `what`.

    Raises:
        JobError: There is no such file.
    """
    folder, name = split_name(uri)
    try:
        return Store(folder, storage_options).read_bytes(name)
    except FileNotFoundError:
        raise JobError(f"{what} = {uri}: no such file") from None


def read_lines(uri: str, storage_options: Mapping[str, Any], what: str) -> list[str]:
    """Read the lines of a text file, without empty lines.

    Raises:
        JobError: There is no such file, or it is not UTF-8 text.
    """
    try:
        text = read_file(uri, storage_options, what).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobError(f"{what} = {uri}: not UTF-8 text: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
