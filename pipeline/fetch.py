"""Fetch the bytes behind a column of image URIs, which are data and therefore not to be trusted.

A URI is fetched only where the job allows it: below one of its `roots` (local folders, buckets,
prefixes) or over https from a host that it names. For http(s), a name is resolved here, once a
call; every address it has must be public; the connection goes to exactly such an address; and each
redirect starts again from the beginning. Otherwise a row could read `/etc/passwd`, another team's
bucket or the credentials that clouds serve on 169.254.169.254.

A row whose URI cannot be fetched fails alone. Trouble with a root is the job's own and is raised.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin

from pipeline.errors import JobError
from pipeline.schema import Reason, clean_message
from pipeline.storage import Store
from pipeline.storage_errors import redact

__all__ = ["FORBIDDEN_URI", "UNREACHABLE", "FetchPolicy", "Fetched", "Network", "fetch_many"]

FORBIDDEN_URI = "forbidden_uri"
"""The job does not allow this URI: its scheme, folder, host or address."""
UNREACHABLE = "unreachable"
"""The server refused, failed or was too slow, also when asked again."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_NUMERIC_LABEL = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_URI_MAX_CHARS, _SHOWN_MAX_CHARS = 8192, 200
_KEY_MAX_BYTES = 1024
_WEB_PORTS = {"http": 80, "https": 443}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REDIRECTS_MAX = 5
_GONE = frozenset({404, 410})
_TRANSIENT = frozenset({408, 425, 429})
_ADDRESSES_MAX = 4
_LOOKUP_THREADS = 4
_BUFFER_BYTES = 64 << 10
_OVERHEAD_BYTES = 1 << 20
_NOT_A_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
_OUR_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_INSIDE = [
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
    + ("::1/128", "fc00::/7")
]
"""Where the servers of `private_hosts` may be."""
_CLOUD = [ipaddress.ip_network(text) for text in ("100.100.100.200/32", "fd00:ec2::/32")]
_CLOUD.append(ipaddress.ip_network("168.63.129.16/32"))
"""Metadata services of clouds outside the link-local range: refused whatever the job allows."""
_NOT_PUBLIC = [
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20")
]
"""Special ranges (6to4, Teredo, documentation) that some versions of Python call global."""


@dataclass(frozen=True)
class FetchPolicy:
    """What may be fetched, and how patiently; a plain value that pickles."""

    max_bytes: int
    """A larger file fails its row; no more than this is read of it."""
    base_uri: str | None = None
    """Folder for relative URIs, itself allowed by what follows; None refuses relative URIs."""
    roots: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False, hash=False)
    """Folders, buckets and prefixes that may be read, each with its storage options."""
    http_hosts: tuple[str, ...] = ()
    """Host names, exact: `host` allows ports 80 and 443, `host:port` another."""
    private_hosts: tuple[str, ...] = ()
    """Further hosts, each `host:port`, whose address may be private or loopback."""
    allow_http: bool = False
    """Allow http, which anyone on the way can read and change; otherwise https only."""
    ca_file: str | None = None
    """Certificate authorities to trust in place of those of this machine."""
    threads: int = 16
    """How many files are fetched at once: threads x max_bytes bounds what is in flight."""
    tries: int = 4
    try_timeout_s: float = 20.0
    """For one try over http(s), with its redirects."""
    timeout_s: float = 60.0
    """For all tries and pauses of one URI over http(s)."""
    backoff_s: float = 0.2
    """The first pause; each further one is twice as long."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "threads", "tries", "try_timeout_s", "timeout_s"):
            if getattr(self, name) <= 0:
                raise JobError(f"{name}: {getattr(self, name)} is not above 0")
        roots = {Store(uri, options).uri: dict(options) for uri, options in self.roots.items()}
        object.__setattr__(self, "roots", roots)
        for name in ("http_hosts", "private_hosts"):
            entries = tuple(_host_entry(name, entry) for entry in getattr(self, name))
            object.__setattr__(self, name, entries)
        if self.base_uri is not None:
            object.__setattr__(self, "base_uri", self._checked_base(self.base_uri))

    def _checked_base(self, uri: str) -> str:
        try:
            if uri.lower().startswith(("http://", "https://")):
                _target(uri, self)
                return uri.rstrip("/") + "/"
            base = Store(uri).uri
            _rooted(base, self)
        except _RowError as error:
            raise JobError(f"base_uri: {error}") from error
        return base


@dataclass(frozen=True)
class Fetched:
    """The bytes behind one URI, or the reason and message of its failure."""

    data: bytes | None
    failure: tuple[str, str] | None


def system_addresses(host: str, port: int) -> Sequence[str]:
    """Resolve a host name as this machine does."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def connect_to(address: str, port: int, timeout_s: float) -> socket.socket:
    """Connect to an IP address."""
    return socket.create_connection((address, port), timeout_s)


@dataclass(frozen=True)
class Network:
    """How names are resolved and connections made."""

    resolve: Callable[[str, int], Sequence[str]] = system_addresses
    connect: Callable[[str, int, float], socket.socket] = connect_to


class _RowError(Exception):
    """This row fails, and asking again would not help."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Transient(Exception):
    """Asking again may help."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


def fetch_many(
    uris: Sequence[str | None], policy: FetchPolicy, network: Network | None = None
) -> list[Fetched]:
    """Fetch files concurrently; the result is in the order of the URIs.

    Paths of `file://` and of object stores are literal: `%20` is not a space in them.

    Raises:
        JobError: A root cannot be read: access denied, no such bucket, wrong credentials.
        InfraError: The store of a root failed, or this machine has no more sockets.
    """
    if not uris:
        return []
    with contextlib.closing(_Web(policy, network or Network())) as web:
        # Where a store fails, leaving `map` cancels what has not started.
        with ThreadPoolExecutor(min(policy.threads, len(uris)), "fetch") as pool:
            return list(pool.map(functools.partial(_fetch, policy=policy, web=web), uris))


def _fetch(uri: str | None, policy: FetchPolicy, web: _Web) -> Fetched:
    try:
        if uri is None or not uri.strip():
            raise _RowError(Reason.NULL_INPUT, f"the URI is {'null' if uri is None else 'empty'}")
        absolute = _absolute(uri, policy.base_uri)
        if absolute.lower().startswith(("http://", "https://")):
            return Fetched(web.fetch(absolute), None)
        return Fetched(_read(absolute, policy), None)
    except _RowError as error:
        return Fetched(None, (error.reason, clean_message(redact(str(error)))))


def _absolute(uri: str, base: str | None) -> str:
    if len(uri) > _URI_MAX_CHARS or _CONTROL.search(uri):
        raise _RowError(FORBIDDEN_URI, "the URI has control characters or is too long")
    scheme = _SCHEME.match(uri)
    if scheme:
        if not uri.startswith("://", scheme.end(1)):
            message = f"{scheme[1]}: is no allowed scheme; a file of that name would be ./{scheme[1]}:"
            raise _RowError(FORBIDDEN_URI, message)
        return scheme[1].lower() + uri[scheme.end(1) :]
    if base is not None and base.lower().startswith(("http://", "https://")):
        try:
            return urljoin(base, uri)
        except ValueError as error:
            raise _RowError(FORBIDDEN_URI, "the URI is malformed") from error
    if uri.startswith("/"):
        return uri
    if base is None:
        raise _RowError(FORBIDDEN_URI, f"{_shown(uri)}: relative, and the job has no base_uri")
    return f"{base}/{uri}"


def _shown(uri: str) -> str:
    """Return a URI for messages: without user, password, query and fragment.

    The user ends at the last `@`: a password may have slashes and question marks in it.
    """
    before, at, rest = uri.rpartition("@")
    scheme, separator, tail = uri.partition("://")
    if at and (separator or uri.startswith("//")):
        hidden = f"{before.partition('://')[0] if '://' in before else ''}://***@{rest}"
        scheme, separator, tail = hidden.partition("://")
    if separator:
        tail = re.split("[?#]", tail, maxsplit=1)[0]
    return f"{scheme}{separator}{tail}"[:_SHOWN_MAX_CHARS]


# Files and objects


def _rooted(uri: str, policy: FetchPolicy) -> tuple[str, str]:
    """Split a URI into the longest root that it lies below and the path below that."""
    path = _without_dots(uri.removeprefix("file://") if uri.startswith("file:///") else uri)
    inside = [r for r in policy.roots if path == r or path.startswith(f"{r.rstrip('/')}/")]
    if not inside:
        raise _RowError(FORBIDDEN_URI, f"{_shown(uri)}: not below any root that the job allows")
    root = max(inside, key=len)
    return root, path[len(root.rstrip("/")) + 1 :]


def _without_dots(uri: str) -> str:
    scheme, separator, path = uri.rpartition("://")
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == ".." and segments:
            segments.pop()
        elif segment not in (".", ".."):
            segments.append(segment)
    return f"{scheme}{separator}{'/'.join(segments)}"


def _read(uri: str, policy: FetchPolicy) -> bytes:
    root, path = _rooted(uri, policy)
    missing = _RowError(Reason.MISSING, f"{_shown(uri)}: no such file")
    if "://" not in root:
        root, path = _resolve_links(root, path, missing)
    if not path or path.startswith("/") or path.endswith("/"):
        raise missing
    if len(path.encode()) > _KEY_MAX_BYTES and "://" in root:
        raise missing
    store = Store(root, policy.roots.get(root, {}))
    found = store.stat(path)
    if found is None:
        raise missing
    _check_size(found.size_bytes, policy)
    try:
        data = store.read_bytes(path)
    except FileNotFoundError:
        raise missing from None
    _check_size(len(data), policy)  # it may have grown meanwhile
    return data


def _resolve_links(root: str, path: str, missing: _RowError) -> tuple[str, str]:
    """Follow symbolic links, which must not leave the root, to a regular file."""
    real_root, real = os.path.realpath(root), os.path.realpath(os.path.join(root, path))
    if os.path.commonpath([real_root, real]) != real_root:
        raise _RowError(FORBIDDEN_URI, f"{path}: a symbolic link that leaves its root")
    try:
        os.stat(real)
    except OSError as error:
        if error.errno in _NOT_A_FILE:
            raise missing from error
    if os.path.exists(real) and not os.path.isfile(real):  # a pipe would block whoever opens it
        raise missing
    return real_root, os.path.relpath(real, real_root)


def _check_size(num_bytes: int, policy: FetchPolicy) -> None:
    if num_bytes > policy.max_bytes:
        message = f"{num_bytes} bytes, the limit is {policy.max_bytes}"
        raise _RowError(Reason.TOO_LARGE, message)
