"""An HTTP proxy on loopback that spoils answers: real requests, real servers, chosen faults.

It forwards requests byte for byte (so that signatures stay valid), one request a connection.
"""

from __future__ import annotations

import random
import re
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO
from urllib.parse import urlsplit

RESET_BEFORE = "reset-before"
"""Drop the connection; the server never sees the request."""
RESET_AFTER = "reset-after-forward"
"""Let the server do it, then drop the connection: the lost answer."""
CUT = "cut"
"""Let the server see half of the request's body, then drop both connections."""
UNAVAILABLE = "503"
"""Answer 503 SlowDown; the server never sees the request."""

CONFLICT = "409"
"""Answer 409 ConditionalRequestConflict, as S3 does to writes that race; nothing is stored."""

STALL = "stall"
"""Send half of the answer's body, and then nothing until the client gives up."""

DENIED = "403"
"""Answer 403 AccessDenied; the server never sees the request."""

EXPIRED = "400"
"""Answer 400 ExpiredToken, as for temporary credentials; the server never sees the request."""

DELAY = "delay"
"""Forward after some seconds: `delay:0.5`."""
TRUNCATE = "truncate"
"""Break off after half of the answer's body; an answer without a body is not touched."""
ERROR_BODY = "error-body"
"""Answer 200 with an error as its body, as S3 does when a copy fails after it had begun; the server
never sees the request."""

UNAUTHORIZED = "401"
"""Answer 401, as a server that asks for a token; it never sees the request."""

_SLOW_DOWN = (
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_CONFLICT = (
    b"<Error><Code>ConditionalRequestConflict</Code>"
    b"<Message>The conditional request cannot succeed due to a conflicting operation.</Message>"
    b"</Error>"
)
_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>"
_EXPIRED = (
    b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
)
_INTERNAL_ERROR = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>InternalError</Code><Message>We met an internal error.</Message></Error>"
)
_TIMEOUT_S = 60.0


@dataclass
class Rule:
    """Apply action to requests first..last (counted from 1) whose method, path and head match.

    A rule sees only requests that no earlier rule acted on.
    """

    action: str
    method: str = "PUT|POST"
    path: str = ".*"
    first: int = 1
    last: int = 1
    head: str = ""
    """Pattern to be found in the head, as of a header in lower case."""
    seen: int = field(default=0, init=False)

    def applies(self, method: str, path: str, head: str, _: random.Random) -> bool:
        return self.matches(method, path, head) and self.first <= self.seen <= self.last

    def matches(self, method: str, path: str, head: str) -> bool:
        if not re.fullmatch(self.method, method) or not re.search(self.path, path):
            return False
        if not re.search(self.head, head):
            return False
        self.seen += 1
        return True


@dataclass
class Chance(Rule):
    """Apply action to any request that matches, with a probability."""

    method: str = ".*"
    probability: float = 0.0

    def applies(self, method: str, path: str, head: str, dice: random.Random) -> bool:
        return self.matches(method, path, head) and dice.random() < self.probability


def bad_network(delay_s: float = 1.0) -> list[Rule]:
    """What a run may meet: each fault with its share of the requests."""
    return [
        Chance(ERROR_BODY, method="POST", path="uploadId=", probability=0.2),
        Chance(ERROR_BODY, method="PUT", head="\nx-amz-copy-source:", probability=0.2),
        Chance(UNAVAILABLE, probability=0.05),
        Chance(RESET_BEFORE, probability=0.01),
        Chance(RESET_AFTER, probability=0.01),
        Chance(TRUNCATE, method="GET", probability=0.005),
        Chance(f"{DELAY}:{delay_s}", probability=0.1),
    ]


class FaultProxy:
    """Forwards to `upstream_url` while the context is open; the first rule that applies acts."""

    def __init__(self, upstream_url: str, *rules: Rule, seed: int = 0) -> None:
        self.rules: tuple[Rule, ...] = rules
        self.on_fault: Callable[[str], None] = lambda action: None
        """Called with the action when one is taken, before either side is told."""
        self.edit_head: Callable[[bytes], bytes] = lambda head: head
        """Makes of a request's head, as it came, the one that the server gets."""
        self._dice = random.Random(seed)
        self.requests: list[tuple[str, str, str]] = []
        """Method, path and what was done: `forwarded` or the action."""
        parts = urlsplit(upstream_url)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def handle(self, client: socket.socket, stream: BinaryIO) -> None:
        head = _read_head(stream)
        if not head:
            return
        method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        action = self._decide(method, path, head.decode("latin-1").lower())
        head = self.edit_head(head)
        if action not in ("forwarded", CUT):
            self.on_fault(action)
        if action == RESET_BEFORE:
            _reset(client)
            return
        if re.search(rb"(?i)\r\nexpect: *100-continue", head):
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = re.sub(rb"(?i)\r\nexpect:[^\r]*", b"", head)
        body = _read_body(stream, head)
        if action in _REPLIES:
            client.sendall(_reply(method, *_REPLIES[action]))
            return
        if action.startswith(DELAY):
            time.sleep(float(action.partition(":")[2]))
        if action == CUT:
            self._send_half(head, body)
            self.on_fault(action)
            _reset(client)
            return
        _answer(client, action, self._forward(head, body))

    def _decide(self, method: str, path: str, head: str) -> str:
        with self._lock:
            applies = (r.action for r in self.rules if r.applies(method, path, head, self._dice))
            action = next(applies, "forwarded")
            self.requests.append((method, path, action))
        return action

    def _send_half(self, head: bytes, body: bytes) -> None:
        with socket.create_connection(self._upstream, _TIMEOUT_S) as upstream:
            upstream.sendall(_closing(head) + body[: len(body) // 2])

    def _forward(self, head: bytes, body: bytes) -> bytes:
        head = _closing(head)
        with socket.create_connection(self._upstream, _TIMEOUT_S) as upstream:
            upstream.sendall(head + body)
            answer = b"".join(iter(lambda: upstream.recv(1 << 16), b""))
        answer_head, _, answer_body = answer.partition(b"\r\n\r\n")
        return _closing(answer_head + b"\r\n\r\n") + answer_body


def _answer(client: socket.socket, action: str, answer: bytes) -> None:
    """Pass the server's answer on, or a part of it, or nothing."""
    if action == RESET_AFTER:
        _reset(client)
        return
    if action in (TRUNCATE, STALL):
        end = answer.index(b"\r\n\r\n") + 4
        answer = answer[: end + (len(answer) - end) // 2]
    client.sendall(answer)
    if action == STALL:
        client.recv(1)  # nothing more comes from the client but its end


_REPLIES = {
    UNAVAILABLE: (b"503 Slow Down", _SLOW_DOWN),
    DENIED: (b"403 Forbidden", _DENIED),
    UNAUTHORIZED: (b"401 Unauthorized", b"Unauthorized: Missing authentication token"),
    EXPIRED: (b"400 Bad Request", _EXPIRED),
    CONFLICT: (b"409 Conflict", _CONFLICT),
    ERROR_BODY: (b"200 OK", _INTERNAL_ERROR),
}


def _reply(method: str, status: bytes, body: bytes) -> bytes:
    length = str(len(body)).encode()
    head = b"HTTP/1.1 " + status + b"\r\nConnection: close\r\nContent-Type: application/xml\r\n"
    return head + b"Content-Length: " + length + b"\r\n\r\n" + (b"" if method == "HEAD" else body)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128
    proxy: FaultProxy


class _Handler(socketserver.StreamRequestHandler):
    timeout = _TIMEOUT_S

    def handle(self) -> None:
        self.server.proxy.handle(self.connection, self.rfile)


def _read_head(stream: BinaryIO) -> bytes:
    lines = []
    for line in iter(stream.readline, b""):
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


def _read_body(stream: BinaryIO, head: bytes) -> bytes:
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    if length:
        return stream.read(int(length[1]))
    if not re.search(rb"(?i)\r\ntransfer-encoding: *chunked", head):
        return b""
    chunks = []
    while True:
        size_line = stream.readline()
        size = int(size_line.split(b";")[0], 16)
        chunks += [size_line, stream.read(size), stream.readline()]
        if size == 0:
            return b"".join(chunks)


def _closing(head: bytes) -> bytes:
    head = re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head)
    return head[:-2] + b"Connection: close\r\n\r\n"


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
