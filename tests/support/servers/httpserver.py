"""A web server on loopback with chosen answers and misbehaviour."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DRIP_S = 0.02
PIECE = b"x" * 4096


@dataclass(frozen=True)
class Exchange:
    """One request that waits for its answer; what is sent is counted."""

    server: WebServer
    connection: Any

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)
        self.server.sent_bytes += len(data)

    def reset(self) -> None:
        """Drop the connection the hard way."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


Answer = Callable[[Exchange], None]


def raw(data: bytes) -> Answer:
    return lambda exchange: exchange.send(data)


def answer(status: int, body: bytes = b"", **headers: str) -> Answer:
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return raw("\r\n".join([*lines, "", ""]).encode() + body)


def ok(body: bytes) -> Answer:
    return answer(200, body)


def redirect(location: str, status: int = 302) -> Answer:
    return answer(status, b"elsewhere", Location=location)


def reset(exchange: Exchange) -> None:
    exchange.reset()


def silent(exchange: Exchange) -> None:
    """Answer nothing, and keep the connection."""
    exchange.server.stopping.wait()


def endless(head: bytes = b"HTTP/1.1 200 OK\r\n\r\n", piece: bytes = PIECE) -> Answer:
    """Send the head, then pieces as fast as they are taken."""

    def act(exchange: Exchange) -> None:
        exchange.send(head)
        while not exchange.server.stopping.is_set():
            exchange.send(piece)

    return act


def dripping(head: bytes, drop: bytes = b"x") -> Answer:
    """Send the head, then a drop now and then, for ever."""

    def act(exchange: Exchange) -> None:
        exchange.send(head)
        while not exchange.server.stopping.wait(DRIP_S):
            exchange.send(drop)

    return act


class WebServer:
    """Answers the n-th request for a path with the n-th answer of its script, then the last one."""

    def __init__(self, *, certificate: Path | None = None, keeps_open: bool = False) -> None:
        self.keeps_open = keeps_open
        """Whether a connection takes more than one request."""
        self.scripts: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        """Path and headers of each request."""
        self.bodies: list[bytes] = []
        """What was posted."""
        self.sent_bytes = 0
        self.most_at_once = 0
        self.stopping = threading.Event()
        self._at_once = 0
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server = _Threads(self, certificate)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str = "") -> str:
        return f"http://{self.authority}{path}"

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def __enter__(self) -> WebServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @contextlib.contextmanager
    def answering(self, path: str, headers: dict[str, str]) -> Iterator[Answer]:
        with self._lock:
            self.requests.append((path, headers))
            script = self.scripts.get(path, [answer(404)])
            chosen = script[min(self._seen[path], len(script) - 1)]
            self._seen[path] += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield chosen
        finally:
            with self._lock:
                self._at_once -= 1


class _Threads(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(self, web: WebServer, certificate: Path | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.web = web
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)

    def finish_request(self, request: Any, client_address: Any) -> None:
        with contextlib.suppress(OSError):  # a client that hangs up is part of the play
            if self._tls is not None:
                request = self._tls.wrap_socket(request, server_side=True)
            with request:
                self.RequestHandlerClass(request, client_address, self)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        web: WebServer = self.server.web  # type: ignore[attr-defined]
        with web.answering(self.path, dict(self.headers)) as act:
            act(Exchange(web, self.connection))
        self.close_connection = not web.keeps_open

    def do_POST(self) -> None:
        """Take the body, and answer as to a GET."""
        web: WebServer = self.server.web  # type: ignore[attr-defined]
        web.bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def make_certificate(folder: Path, host: str) -> Path:
    """Write a self-signed certificate for a host, with its key, to one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now, day = dt.datetime.now(dt.UTC), dt.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / f"{host}.pem"
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path
