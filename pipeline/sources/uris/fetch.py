"""Fetch the bytes behind a column of image URIs, which are untrusted data.

A URI is fetched only where the job allows it: below one of its `roots` (local folders, buckets,
prefixes) or over https from a host that it names. For http(s), the host is resolved here, once per
call; all of its addresses must be public; the connection goes to one of these addresses; and each
redirect is checked in the same way. Otherwise a row could read `/etc/passwd`, the bucket of another
team, or the credentials that clouds serve on 169.254.169.254.

If a URI cannot be fetched, only its row fails. Errors of a root concern all rows and are raised.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ClassVar
from urllib.parse import urljoin

import pyarrow as pa

from pipeline.core.arrays import as_array, binary_array
from pipeline.core.errors import AccessDenied, JobError
from pipeline.core.failures import Failure, Reason, RowError
from pipeline.core.figures import READ
from pipeline.core.printable import clean_message
from pipeline.job.source import Source
from pipeline.sources.columns.arrow_types import is_text, plain_type
from pipeline.sources.columns.input_reader import (
    Failures,
    InputReader,
    InputRows,
    Place,
)
from pipeline.sources.uris.http import Network, Web
from pipeline.sources.uris.policy import (
    CONTROL,
    SCHEME,
    URI_MAX_CHARS,
    FetchPolicy,
    check_size,
    policy_of,
    rooted,
    shown_uri,
)
from pipeline.storage.errors import redact
from pipeline.storage.store import Store

__all__ = ["FetchPolicy", "Fetched", "Network", "fetch_many"]

_KEY_MAX_BYTES = 1024
_NOT_A_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


@dataclass(frozen=True)
class Fetched:
    """The bytes behind one URI, or the reason and message of its failure."""

    data: bytes | None
    failure: tuple[Reason, str] | None


def fetch_many(
    uris: Sequence[str | None], policy: FetchPolicy, network: Network | None = None
) -> list[Fetched]:
    """Fetch files concurrently; the result is in the order of the URIs.

    Paths of `file://` and of object stores are literal: `%20` is not a space in them.

    Raises:
        JobError: A root cannot be read: no such bucket, wrong credentials.
        InfraError: The store of a root failed, or this machine has no more sockets.
    """
    if not uris:
        return []
    # If a store fails, leaving `map` cancels the fetches that have not started.
    with (
        contextlib.closing(Web(policy, network or Network())) as web,
        ThreadPoolExecutor(min(policy.threads, len(uris)), "fetch") as pool,
    ):
        return list(pool.map(functools.partial(_fetch, policy=policy, web=web), uris))


def _fetch(uri: str | None, policy: FetchPolicy, web: Web) -> Fetched:
    try:
        if uri is None or not uri.strip():
            raise RowError(Reason.NULL_INPUT, f"the URI is {'null' if uri is None else 'empty'}")
        absolute = _absolute(uri, policy.uri_base)
        if absolute.lower().startswith(("http://", "https://")):
            return Fetched(web.fetch(absolute), None)
        return Fetched(_read(absolute, policy), None)
    except RowError as error:
        return Fetched(None, (error.reason, clean_message(redact(str(error)))))
    except AccessDenied as error:
        return Fetched(None, (Reason.ACCESS_DENIED, error.why))


def _absolute(uri: str, base: str | None) -> str:
    if len(uri) > URI_MAX_CHARS or CONTROL.search(uri):
        raise RowError(Reason.FORBIDDEN_URI, "the URI has control characters or is too long")
    scheme = SCHEME.match(uri)
    if scheme:
        if not uri.startswith("://", scheme.end(1)):
            message = "expected scheme://, or ./ before a relative path with a colon in it"
            raise RowError(Reason.FORBIDDEN_URI, message)
        return scheme[1].lower() + uri[scheme.end(1) :]
    if base is not None and base.lower().startswith(("http://", "https://")):
        try:
            return urljoin(base, uri)
        except ValueError as error:
            raise RowError(Reason.FORBIDDEN_URI, "the URI is malformed") from error
    if uri.startswith("/"):
        return uri
    if base is None:
        raise RowError(
            Reason.FORBIDDEN_URI, f"{shown_uri(uri)}: relative, and the job has no uri_base"
        )
    return f"{base}/{uri}"


def _read(uri: str, policy: FetchPolicy) -> bytes:
    root, path = rooted(uri, policy)
    options = policy.roots[root]
    missing = RowError(Reason.MISSING, f"{shown_uri(uri)}: no such file")
    if "://" not in root:
        root, path = _follow_links(root, path.lstrip("/"), missing)
    elif not path or path[0] == "/" or path[-1] == "/" or len(path.encode()) > _KEY_MAX_BYTES:
        raise missing
    store, most = Store(root, options), None
    try:
        if (file := store.stat(path)) is None:
            raise missing
        check_size(file.size_bytes, policy)
    except AccessDenied:  # the answer to a HEAD does not say whether credentials are wrong
        most = policy.max_bytes + 1
    try:
        data = store.read_bytes(path, most)
    except FileNotFoundError:
        raise missing from None
    check_size(len(data), policy)  # the file may have grown meanwhile
    return data


def _follow_links(root: str, path: str, missing: RowError) -> tuple[str, str]:
    """Follow symbolic links to a regular file; they must not leave the root."""
    real_root, real = os.path.realpath(root), os.path.realpath(os.path.join(root, path))
    if os.path.commonpath([real_root, real]) != real_root:
        raise RowError(
            Reason.FORBIDDEN_URI, f"{shown_uri(path)}: a symbolic link that leaves its root"
        )
    try:
        is_file = stat.S_ISREG(os.stat(real).st_mode)
    except OSError as error:
        is_file = error.errno not in _NOT_A_FILE  # the store reports other errors
    if not os.path.isdir(real_root):  # perhaps not mounted, which is no fault of a row
        raise JobError(f"{root}: no such folder; correct the root or mount it")
    if not is_file:  # a folder, or a pipe, on which `open` would block
        raise missing
    return real_root, os.path.relpath(real, real_root)


@dataclass(frozen=True)
class UriColumn(InputReader):
    """A text column of URIs."""

    names: tuple[str, ...]
    source: Source
    rows_at_once = 64
    is_fetched: ClassVar[bool] = True

    def trouble(self, name: str, dtype: pa.DataType) -> str:
        return "" if is_text(plain_type(dtype)) else "expected URIs as text"

    def fields(self, schema: pa.Schema | None) -> pa.Schema:
        return self.source.encoded.fields

    def read(self, table: pa.Table, failures: Failures, place: Place) -> InputRows:
        given = uri_values(table.column(self.names[0]))
        [name] = self.source.encoded.fields.names
        contents = binary_array(self._fetch(given, failures, place))
        return InputRows({name: contents}, uris=given)

    def _fetch(
        self, uris: Sequence[str | None], failures: Failures, place: Place
    ) -> list[bytes | None]:
        """Return the bytes behind the URIs of the rows that have not failed yet."""
        policy = policy_of(self.source, place.store_uri)
        policy = replace(policy, timeout_s=place.row_timeout_s)
        wanted = [index for index, failure in enumerate(failures) if failure is None]
        images: list[bytes | None] = [None] * len(uris)
        results = fetch_many([uris[index] for index in wanted], policy)
        for index, fetched in zip(wanted, results, strict=True):
            images[index] = fetched.data
            if fetched.failure is not None:
                failures[index] = Failure(fetched.failure[0], READ, fetched.failure[1])
        return images


def uri_values(column: pa.ChunkedArray) -> list[str | None]:
    """Return the URIs; bytes that are not UTF-8 become replacement characters."""
    given = as_array(column)
    if pa.types.is_dictionary(given.type):
        given = given.dictionary_decode()
    values: list[bytes | None] = given.cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "replace") for value in values]
