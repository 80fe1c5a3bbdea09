"""Fetch over http(s) from checked addresses; try again after transient errors.

The standard library parses answers, from a socket of ours: a deadline for a whole answer, dripped
headers included, cannot be set on urllib3, whose timeouts are those of single reads. Connections
stay open between the requests of a call.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import io
import ipaddress
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin

from pipeline.core.backoff import Retries
from pipeline.core.errors import InfraError, JobError
from pipeline.core.failures import Reason, RowError
from pipeline.sources.uris.policy import (
    PATH_SAFE,
    Address,
    FetchPolicy,
    Target,
    check_size,
    is_allowed,
    shown_uri,
    target_of,
)

_USER_AGENT = "batch-inference-pipeline"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REDIRECTS_MAX = 5
_GONE = frozenset({404, 410})
_TRANSIENT = frozenset({408, 425, 429})
_ADDRESSES_MAX = 4
_LOOKUP_THREADS = 4
_BUFFER_BYTES = 64 << 10
_OVERHEAD_BYTES = 1 << 20
_OUR_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def system_addresses(host: str, port: int) -> Sequence[str]:
    """Resolve a host name as this machine does."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in addresses]


def connect_to(address: str, port: int, timeout_s: float) -> socket.socket:
    """Connect to an IP address."""
    return socket.create_connection((address, port), timeout_s)


@dataclass(frozen=True)
class Network:
    """The functions that resolve names and make connections."""

    resolve: Callable[[str, int], Sequence[str]] = system_addresses
    connect: Callable[[str, int, float], socket.socket] = connect_to


class _Transient(Exception):
    """An error after which another try may succeed."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class _Wire(io.RawIOBase):
    """The bytes of an answer, up to a deadline and a number of bytes, however slow they come."""

    def __init__(self, sock: socket.socket, deadline: float, max_bytes: int) -> None:
        self._sock, self._deadline, self._left_bytes = sock, deadline, max_bytes
        self.has_ended = False

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return a buffered reader; http.client needs nothing else of a socket."""
        return io.BufferedReader(self, _BUFFER_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._sock.settimeout(_seconds_until(self._deadline))
        count = self._sock.recv_into(buffer)
        self._left_bytes -= count
        self.has_ended = count == 0
        if self._left_bytes < 0:
            raise RowError(Reason.TOO_LARGE, "the server sends far more than the limit")
        return count


class Web:
    """Fetches over http(s); keeps resolved addresses and open connections for one call."""

    def __init__(self, policy: FetchPolicy, network: Network) -> None:
        self._policy, self._network = policy, network
        self._lock = threading.Lock()
        self._futures: dict[tuple[str, int], Future[Sequence[str]]] = {}
        self._idle: dict[tuple[str, str], list[socket.socket]] = {}
        """Open connections that wait for a request, by scheme and authority."""
        # A lookup takes no timeout, so it runs on a thread of its own.
        self._lookups = ThreadPoolExecutor(_LOOKUP_THREADS, "lookup")

    def close(self) -> None:
        self._lookups.shutdown(wait=False, cancel_futures=True)
        for socks in self._idle.values():
            for sock in socks:
                sock.close()

    def fetch(self, url: str) -> bytes:
        """Fetch a URL; try again after transient errors.

        Raises:
            RowError: The URL is not allowed or not reachable, or has no file or too large a file.
            InfraError: This machine has no more sockets.
        """
        policy = self._policy
        retries = Retries(policy.tries, policy.timeout_s)
        while True:
            deadline = min(retries.give_up_at, time.monotonic() + policy.try_timeout_s)
            try:
                return self._try(url, deadline)
            except _Transient as error:
                if retries.wait(error.wait_s):
                    continue
                raise RowError(
                    Reason.UNREACHABLE,
                    f"{shown_uri(url)}: {error}; gave up after try {retries.num_failed}",
                ) from None

    def _try(self, url: str, deadline: float) -> bytes:
        came_by = ""
        for _ in range(_REDIRECTS_MAX + 1):
            target = target_of(url, self._policy, came_by)
            answer = self._ask(target, deadline)
            if isinstance(answer, bytes):
                return answer
            url, came_by = _redirected(url, answer), target.scheme
        raise RowError(
            Reason.UNREACHABLE, f"{shown_uri(url)}: more than {_REDIRECTS_MAX} redirects"
        )

    def _connect(self, target: Target, deadline: float) -> socket.socket:
        addresses = self._addresses(target, deadline)[:_ADDRESSES_MAX]
        trouble: OSError | None = None
        for index, address in enumerate(addresses):
            timeout_s = _seconds_until(deadline) / (len(addresses) - index)
            try:
                sock = self._network.connect(str(address), target.port, timeout_s)
            except OSError as error:
                if error.errno in _OUR_LIMITS:
                    raise InfraError(f"cannot open a connection: {error.strerror}") from error
                trouble = error
                continue
            return self._secure(sock, target, deadline) if target.scheme == "https" else sock
        raise _Transient(f"cannot connect to {target.authority}: {trouble or 'no address'}")

    def _addresses(self, target: Target, deadline: float) -> list[Address]:
        """Resolve a host; if one of its addresses is not allowed, refuse the host."""
        try:
            texts = self._look_up(target.host, target.port).result(_seconds_until(deadline))
        except TimeoutError as error:
            raise _Transient(f"{target.host}: the name was not resolved in time") from error
        except OSError as error:
            message = f"{target.host}: {error.strerror or 'the name cannot be resolved'}"
            if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
                raise RowError(Reason.UNREACHABLE, message) from error
            raise _Transient(message) from error
        addresses = [ipaddress.ip_address(text) for text in dict.fromkeys(texts)]
        for address in addresses:
            if not is_allowed(address, may_be_private=target.may_be_private):
                message = f"{target.authority}: has address {address}, which is not public"
                raise RowError(Reason.FORBIDDEN_URI, message)
        return addresses

    def _look_up(self, host: str, port: int) -> Future[Sequence[str]]:
        with self._lock:
            future = self._futures.get((host, port))
            if future is None or (future.done() and future.exception() is not None):
                future = self._lookups.submit(self._network.resolve, host, port)
                self._futures[host, port] = future
        return future

    def _secure(self, sock: socket.socket, target: Target, deadline: float) -> socket.socket:
        context = _tls(self._policy.ca_file)
        try:
            sock.settimeout(_seconds_until(deadline))
            # A broken connection must not look like the end of a body without a length.
            return context.wrap_socket(
                sock, server_hostname=target.host, suppress_ragged_eofs=False
            )
        except (OSError, _Transient) as error:
            sock.close()
            message = f"{target.authority}: no TLS connection: {error}"
            if isinstance(error, ssl.SSLCertVerificationError):
                raise RowError(Reason.UNREACHABLE, message) from error
            raise _Transient(message) from error

    def _ask(self, target: Target, deadline: float) -> bytes | str:
        """Return the body behind a URL, or where its server redirects to."""
        while (idle := self._take_idle(target)) is not None:
            try:
                return self._exchange(idle, target, deadline)
            except _Transient as error:
                if not isinstance(error.__cause__, ConnectionError):
                    raise  # otherwise the server may have closed it just now, as it may any time
        return self._exchange(self._connect(target, deadline), target, deadline)

    def _take_idle(self, target: Target) -> socket.socket | None:
        """Return an open connection on which nothing has come unasked; None if there is none."""
        with self._lock:
            socks = self._idle.get((target.scheme, target.authority), [])
            while socks:
                sock = socks.pop()
                if _is_quiet(sock):
                    return sock
                sock.close()
        return None

    def _exchange(self, sock: socket.socket, target: Target, deadline: float) -> bytes | str:
        """Send a request and return the answer; the connection is kept if that is whole."""
        with contextlib.ExitStack() as stack:
            stack.callback(sock.close)
            answer, stays = _exchange(sock, target, deadline, self._policy)
            if stays:
                stack.pop_all()
                with self._lock:
                    self._idle.setdefault((target.scheme, target.authority), []).append(sock)
        return answer


def _exchange(
    sock: socket.socket, target: Target, deadline: float, policy: FetchPolicy
) -> tuple[bytes | str, bool]:
    """Return the body, or where the server redirects to; and whether it takes more requests."""
    request = (
        f"GET {target.path} HTTP/1.1\r\nHost: {target.authority}\r\nAccept: */*\r\n"
        f"Accept-Encoding: identity\r\nUser-Agent: {_USER_AGENT}\r\n\r\n"
    )
    max_bytes = policy.max_bytes
    wire: Any = _Wire(sock, deadline, 2 * max_bytes + _OVERHEAD_BYTES)
    try:
        sock.settimeout(_seconds_until(deadline))
        sock.sendall(request.encode("ascii"))
        with contextlib.closing(http.client.HTTPResponse(wire, method="GET")) as response:
            response.begin()
            if wire.has_ended:  # which http.client takes for the end of the headers
                raise _Transient(f"{target.authority}: broke off within the headers")
            location = _judge(response, target, policy)
            if location is not None:
                return location, False
            expected = response.length
            body = response.read(max_bytes + 1)
            stays = response.isclosed() and not response.will_close
    # ValueError: http.client does not catch that of a malformed length.
    except (OSError, http.client.HTTPException, ValueError) as error:
        message = f"{target.authority}: broke off: {error or type(error).__name__}"
        raise _Transient(message) from error
    if len(body) > max_bytes:
        raise RowError(Reason.TOO_LARGE, f"more than {max_bytes} bytes, which is the limit")
    if expected is not None and len(body) != expected:
        raise _Transient(f"{target.authority}: sent {len(body)} of {expected} bytes")
    return body, stays


def _is_quiet(sock: socket.socket) -> bool:
    """Tell whether an idle connection is open, and the server has sent nothing on it."""
    if isinstance(sock, ssl.SSLSocket) and sock.pending():
        return False
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


def _judge(response: http.client.HTTPResponse, target: Target, policy: FetchPolicy) -> str | None:
    """Return where a response redirects to, or None for a body to read."""
    headers, status = response.headers, response.status
    if status in _REDIRECTS and "location" in headers:
        # http.client decodes headers as latin-1: quoting them so restores the bytes that were sent.
        return quote(headers["location"], safe=PATH_SAFE + "?#[]", encoding="latin-1")
    if status in _GONE:
        raise RowError(Reason.MISSING, f"{target.authority}: HTTP {status}")
    if status in _TRANSIENT or status >= 500:
        wait = headers.get("retry-after", "")
        wait_s = float(wait) if wait.isdecimal() and wait.isascii() else 0.0
        raise _Transient(f"{target.authority}: HTTP {status}", wait_s)
    if status != 200:
        raise RowError(Reason.UNREACHABLE, f"{target.authority}: HTTP {status}")
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity") or (
        "transfer-encoding" in headers and not response.chunked
    ):
        message = "compressed although that was not asked for"
        raise RowError(Reason.UNREACHABLE, f"{target.authority}: {message}")
    if response.length is None and "content-length" in headers and not response.chunked:
        raise _Transient(f"{target.authority}: malformed Content-Length")
    check_size(response.length or 0, policy)
    return None


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise RowError(
            Reason.FORBIDDEN_URI, f"{shown_uri(url)}: redirects to a malformed URI"
        ) from error


def _seconds_until(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise _Transient("no answer in time")
    return left_s


@functools.lru_cache(maxsize=4)
def _tls(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise JobError(f"ca_file: {ca_file}: cannot be read as PEM: {error}") from error
