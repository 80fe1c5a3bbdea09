"""Files on local disk and in object stores, written whole or not at all.

The one place that knows fsspec. A path is relative to the root of its `Store`, with `/` between
segments. An object that exists is whole: everything is written by one put, never through an open
file handle, because leaving `with fs.open(..., "wb")` by an exception publishes what was written.

Reading what is not there raises FileNotFoundError, for callers to decide what that means; every
other trouble is a JobError (wrong URI, credentials, rights) or an InfraError (a retry may cure it).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import importlib
import io
import logging
import os
import re
import secrets
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, BinaryIO, Protocol, cast

from pipeline.errors import InfraError, JobError, PipelineError

log = logging.getLogger(__name__)

_PROBE_FOLDER = "_control/.probe"
_CREATE_TRIES = 5
_BACKOFF_S = 0.2
_DELETE_THREADS = 16
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{32}$")


@dataclass(frozen=True)
class StoredFile:
    """One file or object, as a listing shows it."""

    path: str
    """Relative to the root of the store."""
    size_bytes: int
    version: str
    """Changes when the content does: the etag of an object, the mtime in ns of a local file."""
    modified: dt.datetime | None
    """By the clock of the store, in UTC."""


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
        return [f for f in self._list(prefix) if not _is_temporary(f.path)]

    def list_leftovers(self, prefix: str = "") -> list[StoredFile]:
        """List temporary files that killed writers left on local disk (readers never see them)."""
        return [f for f in self._list(prefix) if _is_temporary(f.path)]

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
                value = _translate(value, f"cannot read {url}", self._secrets(), url)
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
        checked = _CheckedFile(handle, f"cannot read {self.url(path)}", self._secrets())
        return cast(BinaryIO, checked)

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
        for attempt in range(_CREATE_TRIES):
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
            f"cannot create {self.url(path)}: unclear after {_CREATE_TRIES} tries; {cause}"
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
                if _is_conflict(error):
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

    def _backend(self) -> _Backend:
        protocol, separator, _ = self.uri.partition("://")
        return _Objects.connect(protocol, self.storage_options) if separator else _LocalDisk()

    def _secrets(self) -> list[str]:
        return _secret_values(self.storage_options)

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
        if re.match(rf"({'|'.join(_PROTOCOLS)}|file):/", uri):
            raise JobError(f"{uri}: not a URI; expected two slashes, as in s3://bucket/prefix")
        return os.path.abspath(os.path.expanduser(uri))
    if protocol == "file":
        if not rest.startswith("/"):
            raise JobError(f"{uri}: expected three slashes, as in file:///folder")
        return os.path.abspath(rest)
    if protocol not in _PROTOCOLS:
        known = ", ".join(f"{name}://" for name in _PROTOCOLS)
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


def _is_temporary(path: str) -> bool:
    return _TEMPORARY.match(path.rpartition("/")[2]) is not None


class _Backend(Protocol):
    """What a kind of storage must do; paths are absolute, errors are raw."""

    def list(self, folder: str) -> list[StoredFile]: ...
    def stat(self, path: str) -> StoredFile | None: ...
    def exists(self, path: str) -> bool: ...
    def read(self, path: str) -> bytes: ...
    def read_many(self, paths: Sequence[str]) -> Sequence[bytes | Exception]: ...
    def open(self, path: str) -> BinaryIO: ...
    def put(self, path: str, data: bytes) -> None: ...
    def create(self, path: str, data: bytes) -> None: ...
    def copy(self, source: str, target: str) -> None: ...
    def delete(self, paths: Sequence[str]) -> None: ...


# ---------------------------------------------------------------------------- local disk


class _LocalDisk:
    """POSIX files. fsspec is not used: its local writes are neither atomic nor synced."""

    def list(self, folder: str) -> list[StoredFile]:
        files: list[StoredFile] = []
        links: list[str] = []
        folders = [folder]
        while folders:
            try:
                entries = os.scandir(folders.pop())
            except (FileNotFoundError, NotADirectoryError):
                continue
            with entries:
                for entry in entries:
                    if entry.is_symlink():
                        links.append(entry.path)
                    elif entry.is_dir():
                        folders.append(entry.path)
                    elif entry.is_file():
                        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                            files.append(_local_file(entry.path, entry.stat()))
        if links:
            log.warning("%s: skipped %d symbolic links, as %s", folder, len(links), min(links))
        return files

    def stat(self, path: str) -> StoredFile | None:
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return None if os.path.isdir(path) else _local_file(path, status)

    def exists(self, path: str) -> bool:
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def read(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def read_many(self, paths: Sequence[str]) -> Sequence[bytes | Exception]:
        values: list[bytes | Exception] = []
        for path in paths:
            try:
                values.append(self.read(path))
            except OSError as error:
                values.append(error)
        return values

    def open(self, path: str) -> BinaryIO:
        return open(path, "rb")

    def put(self, path: str, data: bytes) -> None:
        with _written_beside(path, data) as temporary:
            os.replace(temporary, path)

    def create(self, path: str, data: bytes) -> None:
        # A link appears whole and fails where the name is taken; a rename would replace.
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


def _local_file(path: str, status: os.stat_result) -> StoredFile:
    modified = dt.datetime.fromtimestamp(status.st_mtime, dt.UTC)
    return StoredFile(path, status.st_size, str(status.st_mtime_ns), modified)


@contextlib.contextmanager
def _written_beside(path: str, data: bytes) -> Iterator[str]:
    """Yield a synced temporary file beside path; then remove it and sync the folder."""
    temporary = _temporary_beside(path)
    with _removed_at_exit(temporary):
        # Not mkstemp: its files are private, and published files are for everybody to read.
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
        # Also after a rename that worked: between two links to one file it does nothing at all.
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


# ---------------------------------------------------------------------------- object stores


@dataclass(frozen=True)
class _ObjectProtocol:
    """What is particular to one kind of object store; a new kind is a new row below."""

    extra: str
    package: str
    etag: str
    modified: str
    config: Mapping[str, Any]
    """Defaults for the option `config_kwargs`."""
    read_many: Mapping[str, Any]
    """Options for reading many small objects."""


_PROTOCOLS = {
    "s3": _ObjectProtocol(
        extra="s3",
        package="s3fs",
        etag="ETag",
        modified="LastModified",
        # Small objects are bound by latency: ten connections (the default) are too few.
        config={"max_pool_connections": 32},
        # Otherwise s3fs asks for the size of each object first: twice the requests.
        read_many={"max_concurrency": 1},
    ),
}


@dataclass(frozen=True)
class _Objects:
    """Objects behind fsspec.

    Only calls that take a path literally: `cat`, `rm` and `expand_path` read `*`, `?` and `[` in
    the name of an object as a glob.
    """

    fs: Any
    facts: _ObjectProtocol

    @classmethod
    def connect(cls, protocol: str, options: Mapping[str, Any]) -> _Objects:
        facts = _PROTOCOLS[protocol]
        config = {**facts.config, **options.get("config_kwargs", {})}
        try:
            importlib.import_module(facts.package)
        except ImportError as error:
            extra = f"pip install 'batch-inference-pipeline[{facts.extra}]'"
            raise JobError(f"{protocol}:// needs the extra: {extra}") from error
        import fsspec

        settings = {**options, "config_kwargs": config, "use_listings_cache": False}
        return cls(fsspec.filesystem(protocol, **settings), facts)

    def list(self, folder: str) -> list[StoredFile]:
        try:
            found = self.fs.find(folder, detail=True)
        except FileNotFoundError as error:
            if _is_missing(error):
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
            if not _is_missing(error):
                raise

    def _info(self, path: str) -> dict[str, Any] | None:
        try:
            return cast(dict[str, Any], self.fs.info(path))
        except FileNotFoundError as error:
            if _is_missing(error):
                return None
            raise

    def _file(self, path: str, info: Mapping[str, Any]) -> StoredFile:
        version = str(info.get(self.facts.etag) or "").strip('"')
        modified = info.get(self.facts.modified)
        if isinstance(modified, dt.datetime):
            return StoredFile(path, info["size"], version, modified.astimezone(dt.UTC))
        return StoredFile(path, info["size"], version, None)


class _CheckedFile(io.RawIOBase):
    """A remote file whose read errors are ours, also when Arrow does the reading."""

    def __init__(self, raw: BinaryIO, what: str, secret_values: Sequence[str]) -> None:
        self._raw, self._what, self._secret_values = raw, what, secret_values

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        with storage_errors(self._what, self._secret_values):
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


# ---------------------------------------------------------------------------- errors

_ACCESS = "access denied: allow list, read, write and delete there"
_CREDENTIALS = (
    "the credentials are wrong, expired or missing: see storage_options or AWS_* variables"
)
_REGION = "wrong region or endpoint: see storage_options"
_NAME = "not a valid name there: correct the URI"
_JOB_CODES = {
    "NoSuchBucket": "no such bucket: create it or correct the URI",
    "InvalidBucketName": _NAME,
    "KeyTooLongError": _NAME,
    "AccessDenied": _ACCESS,
    "AllAccessDisabled": _ACCESS,
    "AccountProblem": _ACCESS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "InvalidAccessKeyId": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "ExpiredToken": _CREDENTIALS,
    "TokenRefreshRequired": _CREDENTIALS,
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "301": _REGION,
    "400": _REGION,
    "401": _CREDENTIALS,
    "403": f"{_ACCESS}, or {_CREDENTIALS}",
    "404": "no such file",
    "NoSuchKey": "no such file",
    "NotImplemented": "this store cannot do that",
    "501": "this store cannot do that",
}
_RETRY_STATUS = frozenset({408, 409, 412, 429})
_JOB_CLASSES = {
    "NoCredentialsError": _CREDENTIALS,
    "PartialCredentialsError": _CREDENTIALS,
    "CredentialRetrievalError": _CREDENTIALS,
    "TokenRetrievalError": _CREDENTIALS,
    "SSOError": _CREDENTIALS,
    "ProfileNotFound": _CREDENTIALS,
    "NoRegionError": _REGION,
    "ParamValidationError": _NAME,
}
_JOB_ERRNOS = {
    errno.ENOENT: "no such file or folder",
    errno.EACCES: _ACCESS,
    errno.EPERM: "not allowed there (a protected file, or a file system without hard links)",
    errno.EROFS: "read-only file system",
    errno.ENOTDIR: "a file stands where a folder should be",
    errno.EEXIST: "a file stands where a folder should be",
    errno.EISDIR: "a folder stands where a file should be",
    errno.ENAMETOOLONG: _NAME,
    errno.ELOOP: "symbolic links run in circles",
    errno.EFBIG: "too large for this file system",
    errno.EOPNOTSUPP: "this file system cannot do that (no hard links?)",
}
_LIBRARIES = frozenset({"aiobotocore", "aiohttp", "botocore", "fsspec", "s3fs"})
_PUBLIC_OPTIONS = frozenset(
    {"addressing_style", "endpoint_url", "mode", "profile", "region_name", "signature_version"}
)
_USERINFO = re.compile(r"(?<=://)[^/\s@]+@")
_KEY_VALUE = re.compile(
    r"(?i)([\w-]*(?:key|secret|token|password|signature|credential|sig)[\w-]*)"
    r"(?:[\"']?\s*=\s*|[\"']\s*:\s*)(?:\"[^\"]*\"|'[^']*'|[^\s,;&\"']+)"
)
_LINE_MAX_CHARS = 400


@contextlib.contextmanager
def storage_errors(
    what: str, secret_values: Sequence[str] = (), *, missing: str | None = None
) -> Iterator[None]:
    """Turn the storage trouble of a block into our errors; other exceptions pass unchanged.

    Args:
        what: Start of the message, such as `cannot read s3://bucket/file`.
        secret_values: Strings that must not appear in the message.
        missing: Raise FileNotFoundError, naming this, for a file that is not there; left out, that
            is a JobError, too.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        translated = _translate(error, what, secret_values, missing)
        if translated is error:
            raise
        raise translated from error


def classify(error: BaseException, what: str, secret_values: Sequence[str] = ()) -> PipelineError:
    """Return our error for a raw storage error: JobError, or InfraError where a retry may cure."""
    if isinstance(error, PipelineError):
        return error
    kind, advice = _diagnose(error)
    detail = redact(str(error) or type(error).__name__, secret_values)
    return kind(f"{redact(what, secret_values)}: {advice} ({detail})")


def redact(text: str, secret_values: Iterable[str] = ()) -> str:
    """Return text as one short line without credentials."""
    for value in sorted(secret_values, key=len, reverse=True):
        text = text.replace(value, "***")
    text = _KEY_VALUE.sub(r"\1=***", _USERINFO.sub("***@", text))
    return " ".join(text.split())[:_LINE_MAX_CHARS]


def _translate(
    error: Exception, what: str, secret_values: Sequence[str], missing: str | None
) -> Exception:
    if missing is not None and _is_missing(error):
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), missing)
    return classify(error, what, secret_values) if _is_storage_trouble(error) else error


def _diagnose(error: BaseException) -> tuple[type[PipelineError], str]:
    """Decide whether running again may cure an error, and what to tell the user."""
    if type(error).__name__ == "FileExpired":
        return InfraError, "it changed while it was read; run again"
    code, status = _response_code(error)
    if code:
        return _diagnose_code(code, status)
    names = (base.__name__ for cause in _causes(error) for base in type(cause).__mro__)
    known = next((name for name in names if name in _JOB_CLASSES), None)
    if known:
        return JobError, _JOB_CLASSES[known]
    number = getattr(error, "errno", None)
    if number in _JOB_ERRNOS:
        return JobError, _JOB_ERRNOS[number]
    if number in (errno.ENOSPC, errno.EDQUOT):
        return InfraError, "no space left: free some and run again"
    if isinstance(error, TypeError | ValueError):
        return JobError, "refused by the storage library: see storage_options and the URI"
    return InfraError, "the store cannot be reached or broke off; check it and run again"


def _diagnose_code(code: str, status: int) -> tuple[type[PipelineError], str]:
    if code in _JOB_CODES:
        return JobError, _JOB_CODES[code]
    throttled = status in _RETRY_STATUS or code.startswith(("Throttl", "SlowDown"))
    if 400 <= status < 500 and not throttled:
        return JobError, _JOB_CODES.get(str(status), f"refused with {code}")
    return InfraError, f"the store answered {code}; run again later"


def _response_code(error: BaseException) -> tuple[str, int]:
    """Find the code and HTTP status of a service's answer, without importing its library."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, Mapping):
            code = str(response.get("Error", {}).get("Code", ""))
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return code or str(status), int(status)
    return "", 0


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Follow declared causes only: the context may be an unrelated error handled further up."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        yield current
        seen.add(id(current))
        current = current.__cause__


def _is_missing(error: BaseException) -> bool:
    """Tell a file that is not there from a bucket that is not there."""
    return isinstance(error, FileNotFoundError) and _response_code(error)[0] != "NoSuchBucket"


def _is_conflict(error: BaseException) -> bool:
    """Tell whether a create was refused because the name is taken (by whom is yet unknown)."""
    code, status = _response_code(error)
    return isinstance(error, FileExistsError) or code == "PreconditionFailed" or status == 412


def _is_storage_trouble(error: BaseException) -> bool:
    """Tell trouble with storage from mistakes in our own code, which must stay visible."""
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _LIBRARIES:
        return True
    if not isinstance(error, TypeError | ValueError) or error.__traceback__ is None:
        return False
    innermost = error.__traceback__
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    module = str(innermost.tb_frame.f_globals.get("__name__", ""))
    return module.partition(".")[0] in _LIBRARIES


def _secret_values(options: Mapping[str, Any]) -> list[str]:
    """Collect the strings among storage options, but for those that help and are no secrets."""
    found: list[str] = []
    for name, value in options.items():
        if isinstance(value, Mapping):
            found += _secret_values(value)
        elif isinstance(value, str) and len(value) >= 4 and name not in _PUBLIC_OPTIONS:
            found.append(value)
    return found
