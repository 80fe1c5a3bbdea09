"""Decide what may be fetched: roots, hosts and addresses, each in one canonical spelling."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from pipeline.core.errors import JobError
from pipeline.core.failures import Reason, RowError
from pipeline.job.source import Source
from pipeline.storage.store import Store
from pipeline.storage.uris import unpinned

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_NUMERIC_NAME = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")
CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
URI_MAX_CHARS, _SHOWN_MAX_CHARS = 8192, 200
_RELATIVE_QUERY = re.compile(r"\?|#(?=[^/]*=)")
"""A query, or a fragment that may hold a value; `photo#1.jpg` is a name."""
PATH_SAFE = "%/:=&~+!$,;'@()*"
WEB_PORTS = {"http": 80, "https": 443}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(text)
    for text in (
        # Special ranges (6to4, Teredo, documentation) that some versions of Python call global.
        *("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20"),
        "168.63.129.16/32",  # looks public, but is the metadata service of Azure
    )
)
_INSIDE = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
        *("::1/128", "fc00::/7"),
    )
)
"""Networks in which the servers of `private_hosts` may be."""
_METADATA = tuple(
    ipaddress.ip_network(text) for text in ("100.100.100.200/32", "fd00:ec2::254/128")
)
"""Services inside these ranges that hand out the credentials of a machine: never allowed."""


@dataclass(frozen=True)
class FetchPolicy:
    """The URIs that may be fetched, and the limits; can be pickled."""

    max_bytes: int
    """Limit per file; a larger file fails its row, and is read no further."""
    uri_base: str | None = None
    """Base of relative URIs, which the next fields must allow; None refuses relative URIs."""
    roots: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False, hash=False)
    """Folders, buckets and prefixes that may be read, each with its storage options."""
    http_hosts: tuple[str, ...] = ()
    """Host names, exact: `host` allows ports 80 and 443, `host:port` another."""
    private_hosts: tuple[str, ...] = ()
    """Additional hosts, each `host:port`, whose address may be private or loopback."""
    allow_http: bool = False
    """Also allow http, which has neither encryption nor integrity protection."""
    ca_file: str | None = None
    """Certificate authorities to trust instead of those of this machine."""
    threads: int = 16
    """Files that are fetched at once; threads x max_bytes bounds the bytes in flight."""
    tries: int = 4
    try_timeout_s: float = 20.0
    """Seconds per try over http(s), redirects included."""
    timeout_s: float = 60.0
    """Seconds per URI over http(s), all tries and pauses included."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "threads", "tries", "try_timeout_s", "timeout_s"):
            if getattr(self, name) <= 0:
                raise JobError(f"{name}: {getattr(self, name)} is not above 0")
        roots = {Store(uri, options).uri: dict(options) for uri, options in self.roots.items()}
        object.__setattr__(self, "roots", roots)
        for name in ("http_hosts", "private_hosts"):
            entries = tuple(_host_entry(name, entry) for entry in getattr(self, name))
            object.__setattr__(self, name, entries)
        if self.uri_base is not None:
            object.__setattr__(self, "uri_base", self._checked_base(self.uri_base))

    def _checked_base(self, uri: str) -> str:
        try:
            if uri.lower().startswith(("http://", "https://")):
                target_of(uri, self)
                return uri.rstrip("/") + "/"
            base = Store(uri).uri
            rooted(base, self)
        except RowError as error:
            raise JobError(f"uri_base: {error}") from error
        return base


def policy_of(source: Source, root: str) -> FetchPolicy:
    """Return the policy for the URIs that rows of a job may name.

    Args:
        source: The section of a job with a `uri_column`.
        root: The folder or prefix of the shards, below which URIs may point as well.

    Raises:
        JobError: A root or a host of the job is invalid.
    """
    # Credentials go only to stores of the protocol that they were given for.
    protocol = root.partition("://")[0] if "://" in root else ""
    roots: dict[str, Mapping[str, Any]] = {root: source.storage_options}
    for folder in (Store(uri).uri for uri in source.uri_roots):
        is_same_protocol = (folder.partition("://")[0] if "://" in folder else "") == protocol
        roots[folder] = source.storage_options if is_same_protocol else {}
    return FetchPolicy(
        max_bytes=source.max_image_bytes,
        uri_base=source.uri_base or unpinned(root),
        roots=roots,
        http_hosts=source.http_hosts,
        private_hosts=source.private_hosts,
        allow_http=source.allow_http,
    )


def published_uri(uri: str) -> str:
    """Return a URI as it is published: without user, password, query and fragment.

    Queries of presigned URLs are credentials. URIs that no row may name, such as `data:` or those
    that are too long, are not published in full.
    """
    if uri.startswith("//"):
        return "//..."
    scheme, separator, rest = uri.partition("://")
    if separator:
        # Up to the last `@`, as a password may contain slashes and question marks.
        rest = f"***@{rest.rpartition('@')[2]}" if "@" in rest else rest
        rest = re.split("[?#]", rest)[0]
        return f"{scheme}{separator}{rest}"[:URI_MAX_CHARS]
    if opaque := SCHEME.match(uri):
        return f"{opaque[0]}..."
    if not uri.startswith("/"):
        uri = _RELATIVE_QUERY.split(uri)[0]
    return uri[:URI_MAX_CHARS]


def shown_uri(uri: str) -> str:
    """Return the published form of a URI, shortened for messages."""
    return published_uri(uri)[:_SHOWN_MAX_CHARS]


def rooted(uri: str, policy: FetchPolicy) -> tuple[str, str]:
    """Split a URI into the longest root above it and the path below that root."""
    path = _without_dots(uri.removeprefix("file://") if uri.startswith("file:///") else uri)
    # The root decides the revision: rows name files without one, as their own URLs do.
    above = [(root, top) for root in policy.roots for top in (root, unpinned(root))]
    inside = [(r, t) for r, t in above if path == t or path.startswith(f"{t.rstrip('/')}/")]
    if not inside:
        raise RowError(
            Reason.FORBIDDEN_URI, f"{shown_uri(uri)}: not below any root that the job allows"
        )
    root, top = max(inside, key=lambda pair: (len(pair[1]), pair[0] == pair[1]))
    return root, path[len(top.rstrip("/")) + 1 :]


def _without_dots(uri: str) -> str:
    scheme, separator, path = uri.partition("://") if SCHEME.match(uri) else ("", "", uri)
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == ".." and segments:
            segments.pop()
        elif segment not in (".", ".."):
            segments.append(segment)
    return f"{scheme}{separator}{'/'.join(segments)}"


def check_size(num_bytes: int, policy: FetchPolicy) -> None:
    if num_bytes > policy.max_bytes:
        message = f"{num_bytes} bytes, the limit is {policy.max_bytes}"
        raise RowError(Reason.TOO_LARGE, message)


@dataclass(frozen=True)
class Target:
    """A URL whose host is allowed; its addresses are still to be checked."""

    scheme: str
    host: str
    port: int
    path: str
    may_be_private: bool

    @property
    def authority(self) -> str:
        return _authority(self.host, None if self.port == WEB_PORTS[self.scheme] else self.port)


def target_of(url: str, policy: FetchPolicy, came_by: str = "") -> Target:
    """Check the scheme, host and port of a URL against the policy.

    Args:
        url: Absolute.
        came_by: The scheme of the redirect that led here.
    """
    shown = shown_uri(url)
    if "\\" in url or CONTROL.search(url):  # some parsers read these as `/` or drop them
        raise RowError(Reason.FORBIDDEN_URI, f"{shown}: malformed")
    try:
        parts = urlsplit(url)
        has_user, host, port = "@" in parts.netloc, _host(parts.hostname or ""), parts.port
    except ValueError as error:
        raise RowError(Reason.FORBIDDEN_URI, f"{shown}: malformed host or port") from error
    if parts.scheme not in WEB_PORTS:
        raise RowError(Reason.FORBIDDEN_URI, f"{shown}: {parts.scheme}:// is not allowed here")
    if parts.scheme == "http" and (came_by == "https" or not policy.allow_http):
        raise RowError(Reason.FORBIDDEN_URI, f"{shown}: http is not allowed here, only https")
    if has_user:
        raise RowError(
            Reason.FORBIDDEN_URI, f"{shown}: a user or password does not belong in a URI"
        )
    port = WEB_PORTS[parts.scheme] if port is None else port
    named = _authority(host, port)
    is_private = named in policy.private_hosts
    is_public = named in policy.http_hosts or (
        port in WEB_PORTS.values() and _authority(host) in policy.http_hosts
    )
    if not is_private and not is_public:
        raise RowError(Reason.FORBIDDEN_URI, f"{shown}: {named} is not among the allowed hosts")
    path = quote(parts.path or "/", safe=PATH_SAFE)
    path += f"?{quote(parts.query, safe=PATH_SAFE + '?')}" if parts.query else ""
    return Target(parts.scheme, host, port, path, is_private)


def _authority(host: str, port: int | None = None) -> str:
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port is None else f"{bracketed}:{port}"


def _host(text: str) -> str:
    """Return a host name or IP address in its canonical spelling.

    Raises:
        ValueError: The text is neither, or is a number that some resolvers take for an address.
    """
    if ":" in text:
        return str(ipaddress.IPv6Address(text))
    name = text.encode("idna").decode("ascii").lower().removesuffix(".")
    if _NUMERIC_NAME.fullmatch(name):
        return str(ipaddress.IPv4Address(name))
    if not _HOST_NAME.fullmatch(name):
        raise ValueError("not a host name")
    return name


def _host_entry(name: str, entry: str) -> str:
    """Normalise an entry of the allowlist `name`."""
    needs_port = name == "private_hosts"
    try:
        if set(entry) & set("/@?#\\ "):
            raise ValueError("more than a host and a port")
        parts = urlsplit(f"//{entry}")
        host, port = _host(parts.hostname or ""), parts.port
        if needs_port and port is None:
            raise ValueError("no port")
    except ValueError as error:
        expected = "host:port" if needs_port else "host or host:port"
        shown = entry.rpartition("@")[2]
        raise JobError(f"{name}: expected {expected} and nothing else, not {shown!r}") from error
    return _authority(host, port)


def is_allowed(address: Address, *, may_be_private: bool) -> bool:
    """Tell whether to connect to an address; an embedded IPv4 address decides."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_allowed(address.ipv4_mapped, may_be_private=may_be_private)
        if address in _NAT64:
            inner = ipaddress.IPv4Address(address.packed[-4:])
            return is_allowed(inner, may_be_private=may_be_private)
    if may_be_private and any(address in network for network in _INSIDE):
        return not any(address in network for network in _METADATA)
    if address.version == 6 and address not in _PUBLIC_V6:
        return False
    is_special = any(address in network for network in _NOT_PUBLIC)
    return address.is_global and not address.is_multicast and not is_special
