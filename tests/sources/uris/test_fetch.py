"""Fetching untrusted URIs: only what the job allows, never more bytes than it allows.

Names and addresses are pretended by a real resolver function, and `connect` leads every address to
a server on loopback, so that no test leaves this machine; what was connected to is written down.
"""

from __future__ import annotations

import errno
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from support.inputs.shard_columns import read_all, source_of, write_columns
from support.servers.faultproxy import DENIED, FaultProxy, Rule
from support.servers.httpserver import (
    PIECE,
    Answer,
    WebServer,
    answer,
    dripping,
    endless,
    make_certificate,
    ok,
    raw,
    redirect,
    reset,
)
from support.servers.object_stores import LocalServer
from support.servers.ports import free_ports

from pipeline.core.errors import InfraError, JobError
from pipeline.core.failures import Reason
from pipeline.sources.listing.inputs import list_inputs
from pipeline.sources.uris.fetch import Fetched, FetchPolicy, Network, fetch_many

pytestmark = pytest.mark.usefixtures("impatient")
LIMIT_BYTES = 1 << 20
PUBLIC = "93.184.216.34"
OTHER_PUBLIC = "2606:4700::1111"
SECRET = "hunter2"


@dataclass
class Wires:
    """Resolves made-up names, connects every address to one local port, and records requests."""

    port: int
    names: dict[str, list[str]] = field(default_factory=dict)
    resolved: list[str] = field(default_factory=list)
    connected: list[tuple[str, int]] = field(default_factory=list)

    def resolve(self, host: str, port: int) -> Sequence[str]:
        self.resolved.append(host)
        return self.names.get(host, [PUBLIC])

    def connect(self, address: str, port: int, timeout_s: float) -> socket.socket:
        self.connected.append((address, port))
        return socket.create_connection(("127.0.0.1", self.port), timeout_s)

    @property
    def network(self) -> Network:
        return Network(self.resolve, self.connect)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as server:
        server.scripts["/a.jpg"] = [ok(b"bytes of a")]
        yield server


@pytest.fixture
def wires(web: WebServer) -> Wires:
    return Wires(web.port)


@pytest.fixture
def public() -> FetchPolicy:
    """Allows one public host, also by http."""
    return FetchPolicy(LIMIT_BYTES, http_hosts=("img.example",), allow_http=True)


@pytest.fixture
def private(web: WebServer) -> FetchPolicy:
    """Allows the server on loopback."""
    return FetchPolicy(
        LIMIT_BYTES, private_hosts=(web.authority,), allow_http=True, uri_base=web.url("/")
    )


def one(uri: str | None, policy: FetchPolicy, network: Network | None = None) -> Fetched:
    (fetched,) = fetch_many([uri], policy, network)
    return fetched


def reason(fetched: Fetched) -> str:
    assert fetched.data is None
    assert fetched.failure is not None, "it was fetched"
    return fetched.failure[0]


def message(fetched: Fetched) -> str:
    assert fetched.failure is not None, "it was fetched"
    return fetched.failure[1]


def assert_all(wanted: Reason, uris: Sequence[str], fetched: Sequence[Fetched]) -> None:
    reasons = {
        uri: outcome.failure and outcome.failure[0]
        for uri, outcome in zip(uris, fetched, strict=True)
    }
    assert reasons == dict.fromkeys(uris, wanted)


# What is allowed


def test_an_allowed_host_is_fetched(web: WebServer, public: FetchPolicy, wires: Wires):
    fetched = one("http://IMG.Example./a.jpg#part", public, wires.network)
    assert fetched == Fetched(b"bytes of a", None)
    assert wires.connected == [(PUBLIC, 80)]
    ((path, headers),) = web.requests
    assert (path, headers["Host"], headers["Accept-Encoding"]) == (
        "/a.jpg",
        "img.example",
        "identity",
    )


def test_proxies_from_the_environment_are_not_used(
    web: WebServer, private: FetchPolicy, monkeypatch: pytest.MonkeyPatch
):
    (port,) = free_ports(1)
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    assert one(web.url("/a.jpg"), private).data == b"bytes of a"


FORBIDDEN_BEFORE_RESOLVING = [
    "http://other.example/a.jpg",
    "http://img.example.evil.example/a.jpg",
    "http://evil.img.example/a.jpg",
    "http://img.example:8080/a.jpg",
    "http://img.example:99999/a.jpg",
    "http://img.example:x/a.jpg",
    "http:///a.jpg",
    "http://img.example\\@other.example/a.jpg",
    "http://img.example\\.other.example/a.jpg",
    "http://img.example%2eother.example/a.jpg",
    "http://img.example%00/a.jpg",
    "http://img.example /a.jpg",
    "http://img.example/a\r\nX-Forged: 1",
    "http://img.exam\tple/a.jpg",
    "http://[img.example]/a.jpg",
    "http://[::1/a.jpg",
    "//other.example/a.jpg",
    "ftp://img.example/a.jpg",
    "gopher://img.example/a.jpg",
    "data:image/png;base64,AAAA",
    "javascript:alert(1)",
    "http:img.example/a.jpg",
    "a.jpg",
    "../a.jpg",
    "http://img.example/" + "a" * 9000,
    "http://img.example/\ud800",
    # Spellings of 127.0.0.1, none of which is a listed host.
    "http://2130706433/a.jpg",
    "http://0x7f000001/a.jpg",
    "http://0x7f.1/a.jpg",
    "http://0177.0.0.1/a.jpg",
    "http://127.1/a.jpg",
    "http://127.0.0.1/a.jpg",
    "http://[::1]/a.jpg",
    "http://[::ffff:127.0.0.1]/a.jpg",
    "http://[fe80::1%25lo]/a.jpg",
    "http://\uff11\uff12\uff17.0.0.1/a.jpg",
    "http://169.254.169.254/latest/meta-data/",
]


def test_what_is_not_allowed_is_refused_before_anything_is_asked(
    web: WebServer, public: FetchPolicy, wires: Wires
):
    fetched = fetch_many(FORBIDDEN_BEFORE_RESOLVING, public, wires.network)
    assert_all(Reason.FORBIDDEN_URI, FORBIDDEN_BEFORE_RESOLVING, fetched)
    assert (wires.resolved, wires.connected, web.requests) == ([], [], [])
    assert all(message(outcome).isprintable() for outcome in fetched)


# Addresses


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], [PUBLIC, "::ffff:169.254.169.254"], [PUBLIC, "fe80::1%lo"]]
)
def test_a_listed_name_must_not_have_an_address_that_is_not_public(
    public: FetchPolicy, wires: Wires, addresses: list[str]
):
    wires.names["img.example"] = addresses
    fetched = one("http://img.example/a.jpg", public, wires.network)
    assert reason(fetched) == Reason.FORBIDDEN_URI
    assert "not public" in message(fetched)
    assert wires.connected == []


def test_a_listed_public_host_on_loopback_is_refused_by_the_real_resolver(web: WebServer):
    names = ("localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]")
    hosts = [f"{name}:{web.port}" for name in names]
    policy = FetchPolicy(LIMIT_BYTES, http_hosts=tuple(hosts), allow_http=True)
    uris = [f"http://{host}/a.jpg" for host in hosts]
    assert_all(Reason.FORBIDDEN_URI, uris, fetch_many(uris, policy))
    assert web.requests == []


@pytest.mark.parametrize("address", ["10.1.2.3", "fc00::1", PUBLIC])
def test_a_private_host_may_have_a_private_address(web: WebServer, wires: Wires, address: str):
    policy = FetchPolicy(LIMIT_BYTES, private_hosts=("store.internal:80",), allow_http=True)
    wires.names["store.internal"] = [address]
    assert one("http://store.internal/a.jpg", policy, wires.network).data == b"bytes of a"
    assert wires.connected == [(address, 80)]


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_name_that_changes_its_address_is_connected_to_the_checked_one_only(
    web: WebServer, public: FetchPolicy, wires: Wires, repeats: int
):
    answers = iter([[PUBLIC], ["127.0.0.1"], ["127.0.0.1"], ["127.0.0.1"]])
    network = Network(lambda host, port: next(answers), wires.connect)
    web.scripts["/a.jpg"] = [answer(503)] * (repeats - 1) + [ok(b"bytes of a")]
    assert one("http://img.example/a.jpg", public, network).data == b"bytes of a"
    assert wires.connected == [(PUBLIC, 80)] * repeats
    # The next call resolves the name again, and checks it again.
    assert reason(one("http://img.example/a.jpg", public, network)) == Reason.FORBIDDEN_URI
    assert len(wires.connected) == repeats


def test_a_name_is_resolved_once_a_call(public: FetchPolicy, wires: Wires):
    fetched = fetch_many(["http://img.example/a.jpg"] * 20, public, wires.network)
    assert [outcome.data for outcome in fetched] == [b"bytes of a"] * 20
    assert wires.resolved == ["img.example"]


@pytest.mark.parametrize("is_secure", [False, True])
def test_connections_stay_open_for_the_requests_of_a_call(tmp_path: Path, is_secure: bool):
    certificate = make_certificate(tmp_path, "img.example") if is_secure else None
    policy = FetchPolicy(
        LIMIT_BYTES,
        http_hosts=("img.example",),
        allow_http=True,
        threads=2,
        ca_file=certificate and str(certificate),
    )
    with WebServer(certificate=certificate, keeps_open=True) as server:
        wires = Wires(server.port)
        server.scripts |= {
            "/a.jpg": [ok(b"bytes of a")],
            "/none": [answer(404)],
            "/empty": [ok(b"")],
        }
        names = ["a.jpg", "none", "empty", "a.jpg"] * 5
        scheme = "https" if is_secure else "http"
        fetched = fetch_many([f"{scheme}://img.example/{n}" for n in names], policy, wires.network)
    assert [outcome.data for outcome in fetched] == [b"bytes of a", None, b"", b"bytes of a"] * 5
    assert len(wires.connected) <= 2 + 5, "an answer that is not read to its end closes its own"


def test_an_answer_that_comes_unasked_is_no_answer_to_the_next_request(
    public: FetchPolicy, wires: Wires, web: WebServer
):
    forged = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"
    web.keeps_open = True
    web.scripts["/two"] = [raw(forged + b"honest" + forged + b"forged")]
    uris = ["http://img.example/two", "http://img.example/a.jpg"] * 5
    fetched = fetch_many(uris, replace(public, threads=1), wires.network)
    assert [outcome.data for outcome in fetched] == [b"honest", b"bytes of a"] * 5


def test_the_next_address_is_tried_when_one_does_not_answer(public: FetchPolicy, wires: Wires):
    wires.names["img.example"] = [OTHER_PUBLIC, PUBLIC]

    def connect(address: str, port: int, timeout_s: float) -> socket.socket:
        if address == OTHER_PUBLIC:
            raise OSError(errno.ENETUNREACH, "no such way")
        return wires.connect(address, port, timeout_s)

    network = Network(wires.resolve, connect)
    assert one("http://img.example/a.jpg", public, network).data == b"bytes of a"


@pytest.mark.parametrize(
    ("code", "asked"), [(socket.EAI_NONAME, 1), (socket.EAI_AGAIN, 2)], ids=["none", "again"]
)
def test_a_name_that_cannot_be_resolved_fails_its_row(
    public: FetchPolicy, wires: Wires, code: int, asked: int
):
    calls = []

    def resolve(host: str, port: int) -> Sequence[str]:
        calls.append(host)
        raise socket.gaierror(code, "it is not known")

    network = Network(resolve, wires.connect)
    fetched = one("http://img.example/a.jpg", replace(public, tries=2), network)
    assert reason(fetched) == Reason.UNREACHABLE
    assert len(calls) == asked


def test_a_lookup_that_hangs_ends_at_the_deadline(public: FetchPolicy, web: WebServer):
    def resolve(host: str, port: int) -> Sequence[str]:
        web.stopping.wait()
        return []

    policy = replace(public, timeout_s=0.2)
    try:
        fetched = one("http://img.example/a.jpg", policy, Network(resolve))
    finally:
        web.stopping.set()
    assert (reason(fetched), "in time" in message(fetched)) == (Reason.UNREACHABLE, True)


def test_running_out_of_sockets_is_not_the_fault_of_a_row(public: FetchPolicy, wires: Wires):
    def connect(address: str, port: int, timeout_s: float) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    with pytest.raises(InfraError, match="Too many open files"):
        one("http://img.example/a.jpg", public, Network(wires.resolve, connect))


# Redirects


@pytest.mark.parametrize(
    ("status", "to"),
    [
        (301, "/a.jpg"),
        (302, "a.jpg"),
        (303, "http://img.example/a.jpg"),
        (307, "//IMG.example/a.jpg"),
        (308, "/\u00e4 b.jpg"),
    ],
)
def test_an_allowed_redirect_is_followed(
    web: WebServer, public: FetchPolicy, wires: Wires, status: int, to: str
):
    web.scripts["/start"] = [redirect(to, status)]
    web.scripts["/%C3%A4%20b.jpg"] = [ok(b"bytes of a")]
    assert one("http://img.example/start", public, wires.network).data == b"bytes of a"


FORBIDDEN_REDIRECTS = [
    "http://other.example/a.jpg",
    "http://127.0.0.1/a.jpg",
    "http://[::1]/a.jpg",
    "http://169.254.169.254/latest/meta-data/",
    "http://2130706433/",
    "http://img.example:22/",
    f"http://user:{SECRET}@img.example/a.jpg",
    "//other.example/a.jpg",
    "file:///etc/passwd",
    "ftp://img.example/a.jpg",
    "http://[::1/",
    "http://inside.example/a.jpg",
]


def test_a_redirect_is_checked_from_the_beginning(
    web: WebServer, public: FetchPolicy, wires: Wires
):
    policy = replace(public, http_hosts=("img.example", "inside.example"))
    wires.names["inside.example"] = ["127.0.0.1"]
    paths = [f"/{number}" for number in range(len(FORBIDDEN_REDIRECTS))]
    web.scripts |= {
        path: [redirect(to)] for path, to in zip(paths, FORBIDDEN_REDIRECTS, strict=True)
    }
    fetched = fetch_many([f"http://img.example{path}" for path in paths], policy, wires.network)
    assert_all(Reason.FORBIDDEN_URI, FORBIDDEN_REDIRECTS, fetched)
    assert sorted(web.paths) == sorted(paths)
    assert not any(SECRET in message(outcome) for outcome in fetched)


@pytest.mark.parametrize(("hops", "arrives"), [(5, True), (6, False)])
def test_five_redirects_are_enough(
    web: WebServer, public: FetchPolicy, wires: Wires, hops: int, arrives: bool
):
    for hop in range(hops):
        web.scripts[f"/{hop}"] = [redirect(f"/{hop + 1}" if hop + 1 < hops else "/a.jpg")]
    fetched = one("http://img.example/0", public, wires.network)
    assert (fetched.data == b"bytes of a") is arrives
    assert arrives or reason(fetched) == Reason.UNREACHABLE


# TLS


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return make_certificate(tmp_path, "img.example")


@pytest.fixture
def secure(certificate: Path) -> Iterator[WebServer]:
    with WebServer(certificate=certificate) as server:
        server.scripts["/a.jpg"] = [ok(b"bytes of a")]
        yield server


def test_https_is_verified_against_the_name_not_the_address(secure: WebServer, certificate: Path):
    policy = FetchPolicy(
        LIMIT_BYTES, http_hosts=("img.example", "other.example"), ca_file=str(certificate)
    )
    wires = Wires(secure.port)
    assert one("https://img.example/a.jpg", policy, wires.network).data == b"bytes of a"
    assert wires.connected == [(PUBLIC, 443)]
    wrong_name = one("https://other.example/a.jpg", policy, wires.network)
    assert (reason(wrong_name), len(wires.connected)) == (Reason.UNREACHABLE, 2)  # not tried again
    unknown_authority = one(
        "https://img.example/a.jpg", replace(policy, ca_file=None), wires.network
    )
    assert reason(unknown_authority) == Reason.UNREACHABLE
    assert "certificate" in message(unknown_authority)
    assert secure.paths == ["/a.jpg"]


def test_https_is_never_left_for_http(secure: WebServer, certificate: Path):
    policy = FetchPolicy(
        LIMIT_BYTES, http_hosts=("img.example",), ca_file=str(certificate), allow_http=True
    )
    wires = Wires(secure.port)
    secure.scripts["/start"] = [redirect("http://img.example/a.jpg")]
    fetched = one("https://img.example/start", policy, wires.network)
    assert (reason(fetched), secure.paths) == (Reason.FORBIDDEN_URI, ["/start"])


def test_a_cut_tls_connection_is_not_the_end_of_a_body(secure: WebServer, certificate: Path):
    policy = FetchPolicy(
        LIMIT_BYTES, http_hosts=("img.example",), ca_file=str(certificate), tries=1
    )
    secure.scripts["/cut.jpg"] = [raw(b"HTTP/1.1 200 OK\r\n\r\nhalf")]
    fetched = one("https://img.example/cut.jpg", policy, Wires(secure.port).network)
    assert reason(fetched) == Reason.UNREACHABLE


def test_a_server_without_tls_fails_its_row(web: WebServer, wires: Wires):
    policy = FetchPolicy(LIMIT_BYTES, http_hosts=("img.example",), tries=1)
    assert reason(one("https://img.example/a.jpg", policy, wires.network)) == Reason.UNREACHABLE


def test_a_wrong_file_of_authorities_is_the_fault_of_the_job(wires: Wires, tmp_path: Path):
    policy = FetchPolicy(
        LIMIT_BYTES, http_hosts=("img.example",), ca_file=str(tmp_path / "none.pem")
    )
    with pytest.raises(JobError, match="ca_file"):
        one("https://img.example/a.jpg", policy, wires.network)


# Sizes


@pytest.mark.parametrize("framing", ["length", "chunks", "close"])
def test_the_limit_is_exact_however_a_body_is_framed(
    web: WebServer, private: FetchPolicy, framing: str
):
    policy = replace(private, max_bytes=1000)
    for num_bytes in (0, 999, 1000, 1001):
        web.scripts[f"/{num_bytes}"] = [framed(b"x" * num_bytes, framing)]
    uris = [web.url(f"/{num_bytes}") for num_bytes in (0, 999, 1000, 1001)]
    *small, large = fetch_many(uris, policy)
    assert [len(fetched.data or b"") for fetched in small] == [0, 999, 1000]
    assert reason(large) == Reason.TOO_LARGE


def framed(body: bytes, framing: str) -> Answer:
    if framing == "length":
        return ok(body)
    if framing == "close":
        return raw(b"HTTP/1.1 200 OK\r\n\r\n" + body)
    pieces = [body[i : i + 300] for i in range(0, len(body), 300)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s0\r\n\r\n" % chunks)


def test_a_body_that_says_that_it_is_too_large_is_not_read(web: WebServer, private: FetchPolicy):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 40)
    web.scripts["/big"] = [dripping(head, b"")]  # the rest would never come
    assert reason(one(web.url("/big"), replace(private, timeout_s=5))) == Reason.TOO_LARGE


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", PIECE),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1000\r\n%s\r\n" % PIECE),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n", PIECE),
        # A negative size makes http.client read up to the end.
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", PIECE),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    ],
    ids=["close", "chunks", "one chunk", "negative chunk", "continue"],
)
def test_a_body_without_end_is_cut_off(
    web: WebServer, private: FetchPolicy, head: bytes, piece: bytes
):
    web.scripts["/big"] = [endless(head, piece)]
    assert reason(one(web.url("/big"), private)) == Reason.TOO_LARGE
    assert web.sent_bytes < 32 << 20  # the limit, and the buffers of two sockets


def test_no_more_files_than_threads_are_in_flight(web: WebServer, private: FetchPolicy):
    policy = replace(private, threads=3)
    fetched = fetch_many([web.url("/a.jpg")] * 40, policy)
    assert [outcome.data for outcome in fetched] == [b"bytes of a"] * 40
    assert web.most_at_once <= 3


# Trouble that may pass


@pytest.mark.parametrize(
    "trouble",
    [
        answer(503, b"busy"),
        answer(500),
        answer(429, Retry_After="0"),
        answer(503, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"),
        answer(408),
        reset,
        raw(b""),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: ten\r\n\r\nshort"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Le"),
        raw(b"\x00\x01 this is no HTTP\r\n\r\n"),
    ],
    ids=[
        *("503", "500", "429", "date", "408", "reset", "nothing", "short", "length"),
        *("cut chunk", "chunk size", "cut head", "noise"),
    ],
)
def test_passing_trouble_is_tried_again(web: WebServer, private: FetchPolicy, trouble: Answer):
    web.scripts["/x"] = [trouble, ok(b"at last")]
    assert one(web.url("/x"), private).data == b"at last"
    web.scripts["/y"] = [trouble]
    fetched = one(web.url("/y"), replace(private, tries=2))
    assert (reason(fetched), web.paths.count("/y")) == (Reason.UNREACHABLE, 2)
    assert "try 2" in message(fetched)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (answer(404), Reason.MISSING),
        (answer(410), Reason.MISSING),
        (answer(401), Reason.UNREACHABLE),
        (answer(403), Reason.UNREACHABLE),
        (answer(204), Reason.UNREACHABLE),
        (answer(206, b"part"), Reason.UNREACHABLE),
        (answer(302), Reason.UNREACHABLE),
        (answer(304), Reason.UNREACHABLE),
        (answer(200, b"zipped", Content_Encoding="gzip"), Reason.UNREACHABLE),
        (
            raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
            Reason.UNREACHABLE,
        ),
    ],
)
def test_an_answer_that_will_not_change_is_not_asked_for_again(
    web: WebServer, private: FetchPolicy, answer: Answer, expected: str
):
    web.scripts["/x"] = [answer]
    assert reason(one(web.url("/x"), private)) == expected
    assert web.paths == ["/x"]


def test_a_server_that_asks_for_more_patience_than_there_is_is_left_alone(
    web: WebServer, private: FetchPolicy
):
    web.scripts["/x"] = [answer(503, Retry_After="99999")]
    assert reason(one(web.url("/x"), private)) == Reason.UNREACHABLE
    assert web.paths == ["/x"]


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\nX-Header: ", b"x"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b""),
    ],
    ids=["status", "header", "headers", "body", "chunks", "silence"],
)
def test_a_server_that_drips_meets_the_deadline(
    web: WebServer, private: FetchPolicy, head: bytes, drop: bytes
):
    web.scripts["/slow"] = [dripping(head, drop)]
    policy = replace(private, timeout_s=0.3, tries=100)
    fetched = one(web.url("/slow"), policy)
    assert reason(fetched) == Reason.UNREACHABLE


def test_a_stalled_try_leaves_time_for_another(web: WebServer, private: FetchPolicy):
    web.scripts["/x"] = [dripping(b""), ok(b"at last")]
    assert one(web.url("/x"), replace(private, try_timeout_s=0.2)).data == b"at last"


# Files and objects


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    folder = tmp_path / "lake"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"local a")
    (folder / "deep" / "b #?%20.jpg").write_bytes(b"local b")
    (tmp_path / "secret.txt").write_bytes(b"secret")
    return folder


@pytest.fixture
def local(lake: Path) -> FetchPolicy:
    return FetchPolicy(LIMIT_BYTES, uri_base=str(lake), roots={str(lake): {}})


def test_files_below_a_root_are_read(lake: Path, local: FetchPolicy):
    uris = ["a.jpg", "./deep/../a.jpg", f"{lake}/a.jpg", f"file://{lake}/a.jpg", f"{lake}//a.jpg"]
    assert [outcome.data for outcome in fetch_many(uris, local)] == [b"local a"] * 5
    assert one("deep/b #?%20.jpg", local).data == b"local b"
    assert one("deep/./a.jpg", local).failure is not None


def test_nothing_outside_a_root_is_read(lake: Path, local: FetchPolicy):
    (lake / "link-out.txt").symlink_to(lake.parent / "secret.txt")
    (lake / "deep-out").symlink_to(lake.parent)
    uris = [
        *("file:///etc/passwd", "FILE:///etc/passwd", "file://localhost/etc/passwd", "/etc/passwd"),
        *("//etc/passwd", "../../etc/passwd", "../" * 40 + "etc/passwd", "../secret.txt"),
        *("deep/../../secret.txt", "../lake-not/a.jpg", "link-out.txt", "deep-out/secret.txt"),
        *("a\0.jpg", "s3://lake/a.jpg"),
    ]
    assert_all(Reason.FORBIDDEN_URI, uris, fetch_many(uris, local))


def test_what_is_no_file_is_missing(lake: Path, local: FetchPolicy):
    os.mkfifo(lake / "pipe")
    (lake / "loop").symlink_to("loop")
    (lake / "dangling").symlink_to("nothing")
    uris = [
        *("none.jpg", "deep", "deep/", ".", "a.jpg/b", "pipe", "loop", "dangling", "~/a.jpg"),
        *("x" * 300, "d/" * 3000 + "x"),
    ]
    assert_all(Reason.MISSING, uris, fetch_many(uris, local))


def test_a_link_within_a_root_is_followed(lake: Path, local: FetchPolicy):
    (lake / "link.jpg").symlink_to("a.jpg")
    assert one("link.jpg", local).data == b"local a"


def test_relative_uris_need_a_base(lake: Path, local: FetchPolicy):
    assert reason(one("a.jpg", replace(local, uri_base=None))) == Reason.FORBIDDEN_URI


def test_null_and_empty_uris_are_null_inputs(local: FetchPolicy):
    assert [reason(outcome) for outcome in fetch_many([None, "", "  "], local)] == [
        Reason.NULL_INPUT
    ] * 3
    assert fetch_many([], local) == []


def test_objects_are_read_below_their_root_only(server: LocalServer):
    store = server.store()
    store.put("in/a.jpg", b"object a")
    store.put("in/big.jpg", b"x" * 2000)
    store.put("out/b.jpg", b"object b")
    root = store.url("in")
    policy = FetchPolicy(1000, uri_base=root, roots={root: store.storage_options})
    uris = [f"{root}/a.jpg", "a.jpg", "x/../a.jpg", "big.jpg", "none.jpg", "", "k" * 2000, "x//y"]
    fetched = fetch_many([*uris, "../out/b.jpg", store.url("out/b.jpg"), f"{root}x/a.jpg"], policy)
    assert [outcome.data for outcome in fetched[:3]] == [b"object a"] * 3
    assert [reason(outcome) for outcome in fetched[3:]] == [
        Reason.TOO_LARGE,
        Reason.MISSING,
        Reason.NULL_INPUT,
        Reason.MISSING,
        Reason.MISSING,
        *[Reason.FORBIDDEN_URI] * 3,
    ]


def test_a_key_that_no_object_can_have_is_not_asked_for():
    (port,) = free_ports(1)
    options = {"key": "k", "secret": "s", "endpoint_url": f"http://127.0.0.1:{port}"}
    policy = FetchPolicy(LIMIT_BYTES, roots={"s3://lake": options})
    uris = ["s3://lake/" + "k" * 1025, "s3://lake/", "s3://lake", "s3://lake/x/", "s3://lake//x"]
    assert [reason(outcome) for outcome in fetch_many(uris, policy)] == [Reason.MISSING] * 5


def test_a_root_that_is_not_there_is_the_fault_of_the_job(local: FetchPolicy, lake: Path):
    lake.rename(lake.parent / "elsewhere")
    with pytest.raises(JobError, match="no such folder"):
        fetch_many(["a.jpg", "b.jpg"], local)


def test_a_bucket_that_is_not_there_is_the_fault_of_the_job(server: LocalServer):
    root = server.store().url().partition("://")[0] + f"://no-bucket-{uuid.uuid4().hex[:8]}"
    policy = FetchPolicy(LIMIT_BYTES, roots={root: server.store().storage_options})
    with pytest.raises(JobError, match="no such"):
        fetch_many([f"{root}/a.jpg"] * 3, policy)


def test_wrong_credentials_are_the_fault_of_the_job(s3: LocalServer):
    options = {**s3.storage_options, "secret": "wrong" * 8}
    policy = FetchPolicy(LIMIT_BYTES, roots={s3.uri(""): options})
    with pytest.raises(JobError) as raised:
        fetch_many([s3.uri("a.jpg")] * 3, policy)
    assert "wrongwrong" not in str(raised.value)


def test_an_object_that_may_not_be_read_costs_its_row(s3: LocalServer):
    store = s3.store()
    for name in ("a.jpg", "b.jpg"):
        store.put(name, name.encode())
    with FaultProxy(s3.endpoint_url, Rule(DENIED, "GET|HEAD", "/a.jpg", last=99)) as proxy:
        policy = FetchPolicy(LIMIT_BYTES, roots={store.uri: s3.options_at(proxy.url)})
        denied, read = fetch_many([store.url("a.jpg"), store.url("b.jpg")], policy)
    assert (reason(denied), read.data) == (Reason.ACCESS_DENIED, b"b.jpg")
    assert message(denied).startswith("access denied: allow")


def test_an_object_whose_size_is_denied_is_read_up_to_the_limit(s3: LocalServer):
    store = s3.store()
    for name, size in (("a.jpg", 1000), ("big.jpg", 100_000), ("empty.jpg", 0)):
        store.put(name, b"x" * size)
    with FaultProxy(s3.endpoint_url, Rule(DENIED, "HEAD", last=99)) as proxy:
        policy = FetchPolicy(1000, uri_base=store.uri, roots={store.uri: s3.options_at(proxy.url)})
        fetched = fetch_many(["a.jpg", "big.jpg", "none.jpg", "empty.jpg"], policy)
    assert fetched[0].data == b"x" * 1000
    assert [reason(outcome) for outcome in fetched[1:3]] == [Reason.TOO_LARGE, Reason.MISSING]
    assert message(fetched[1]).startswith("1001 bytes"), "no more was read"
    assert fetched[3].data == b""


def test_results_keep_their_order_whatever_each_does(
    web: WebServer, private: FetchPolicy, lake: Path, s3: LocalServer
):
    store = s3.store()
    store.put("c.jpg", b"object c")
    policy = replace(private, roots={str(lake): {}, store.url(): store.storage_options})
    web.scripts["/late"] = [answer(503), ok(b"late")]
    want: list[tuple[str | None, bytes | str]] = [
        (web.url("/late"), b"late"),
        (None, Reason.NULL_INPUT),
        (f"file://{lake}/a.jpg", b"local a"),
        (web.url("/none"), Reason.MISSING),
        (store.url("c.jpg"), b"object c"),
        ("http://169.254.169.254/", Reason.FORBIDDEN_URI),
        ("a.jpg", b"bytes of a"),
        (store.url("none"), Reason.MISSING),
    ]
    fetched = fetch_many([uri for uri, _ in want] * 3, replace(policy, threads=4))
    outcomes = [result.failure[0] if result.failure else result.data for result in fetched]
    assert outcomes == [outcome for _, outcome in want] * 3


@pytest.mark.parametrize(("row_timeout_s", "num_requests"), [(60.0, 1), (120.0, 2)])
def test_a_server_that_asks_for_patience_is_given_as_much_as_a_row_may_take(
    row_timeout_s: float,
    num_requests: int,
    web: WebServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    web.scripts["/late"] = [answer(429, Retry_After="61"), ok(b"late")]
    write_columns(tmp_path, at=[web.url("/late")])
    hosts = {"private_hosts": (web.authority,), "allow_http": True}
    source = source_of(tmp_path, uri_column="at", **hosts)
    inputs = list_inputs(source, max_extent_rows=9)
    [rows] = read_all(inputs, source, row_timeout_s=row_timeout_s)
    assert rows["image"].to_pylist() == [b"late" if num_requests == 2 else None]
    assert len(web.requests) == num_requests
    assert any(nap > 61.0 for nap in naps) == (num_requests == 2)


# Secrets and the policy itself


def test_users_are_refused_and_secrets_never_shown(public: FetchPolicy, wires: Wires):
    uris = [
        f"http://user:{SECRET}@img.example/a.jpg",
        f"http://{SECRET}@img.example/a.jpg",
        f"http://user:{SECRET}/x@img.example/a.jpg",
        f"http://user:{SECRET}?x@img.example/a.jpg",
        f"http://user:{SECRET}#x@img.example/a.jpg",
        f"http://img.example:{SECRET}@other.example/a.jpg",
        f"http://other.example/a.jpg?X-Amz-Signature={SECRET}",
        f"http://other.example/a.jpg#{SECRET}",
        f"http:user:{SECRET}@img.example/a.jpg",
        f"{SECRET}:user@img.example/a.jpg",
        f"//user:{SECRET}@img.example/a.jpg",
        f"ftp://user:{SECRET}@img.example/a.jpg",
        f"s3://key:{SECRET}@lake/a.jpg",
    ]
    fetched = fetch_many(uris, public, wires.network)
    assert_all(Reason.FORBIDDEN_URI, uris, fetched)
    assert not any(SECRET in message(outcome) for outcome in fetched)
    assert wires.connected == []


def test_a_signed_uri_that_fails_does_not_show_its_signature(web: WebServer, private: FetchPolicy):
    path = f"/none.jpg?X-Amz-Signature={SECRET}"
    for status in (404, 403, 503):
        web.scripts[path] = [answer(status)]
        fetched = one(web.url(path), replace(private, tries=1))
        assert SECRET not in message(fetched)
    assert len(web.requests) == 3
