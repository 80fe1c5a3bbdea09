"""Stores have whole files only, one creator per name, and one clear error per problem."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import dataclasses
import datetime as dt
import errno
import functools
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import HANG_S
from support.servers.faultproxy import (
    CONFLICT,
    ERROR_BODY,
    RESET_AFTER,
    RESET_BEFORE,
    STALL,
    TRUNCATE,
    UNAVAILABLE,
    Chance,
    FaultProxy,
    Rule,
)
from support.servers.object_stores import AzureServer, GCSServer, LocalServer, S3Server
from support.servers.ports import free_ports

from pipeline.core.backoff import TRIES
from pipeline.core.errors import InfraError, JobError
from pipeline.job.source import Source
from pipeline.sources.listing.inputs import list_inputs
from pipeline.storage.create_once import CreateOutcome
from pipeline.storage.errors import secret_values
from pipeline.storage.local_disk import LocalDisk
from pipeline.storage.object_store import RemoteFile
from pipeline.storage.store import Store, retries_taken

pytestmark = [pytest.mark.usefixtures("impatient"), pytest.mark.early]
ODD_NAMES = ["a b/[1].jpg", "a b/1.jpg", "star*.bin", "per%41cent+#&=.bin", "deep/er/x"]
RACERS = 4

# Runs alone so that it imports only pipeline.storage.store; it uses the store before it forks,
# because a forked child must not use its parent's connections. All start together on the gated
# keys, then each goes through the others in its own order.
RACE = """
import json, multiprocessing, random, sys
from pipeline.storage.store import Store

def race(store, racer, keys, gated, gate, results):
    outcomes = {}
    order = random.Random(racer).sample(range(gated, keys), keys - gated)
    for key in [*range(gated), *order]:
        if key < gated:
            gate.wait(120)
        token = f"token-{racer}-{key}"
        outcomes[key] = store.create_once(f"race/{key:03}", f"by {token}.".encode(), token)
    results.put((racer, outcomes))

racers, keys, gated = map(int, sys.argv[1:])
store = Store(**json.load(sys.stdin))
store.put("warm", b"x")
context = multiprocessing.get_context("fork")
gate, results = context.Barrier(racers), context.Queue()
children = [
    context.Process(target=race, args=(store, racer, keys, gated, gate, results))
    for racer in range(racers)
]
for child in children:
    child.start()
print(json.dumps(dict(results.get(timeout=600) for _ in children)))
for child in children:
    child.join()
store.put("warm", b"still alive")
"""


def run_python(code: str, *args: str, stdin: str = "", **env: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        env={**clean, **env},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def through(proxy: FaultProxy, server: LocalServer, direct: Store) -> Store:
    """The same store, reached by way of a proxy."""
    return Store(direct.uri, server.options_at(proxy.url))


Proxies = Callable[..., FaultProxy]


@pytest.fixture(scope="module")
def proxies() -> Iterator[Proxies]:
    """One proxy for each server; a client of a new address takes up to a second to make."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def made(url: str) -> FaultProxy:
            return stack.enter_context(FaultProxy(url, seed=5))

        def of(server: LocalServer, *rules: Rule) -> FaultProxy:
            proxy = made(server.endpoint_url)
            proxy.rules = rules
            proxy.requests.clear()
            return proxy

        yield of


# ------------------------------------------------------------------ reading and writing


Fill = Callable[[Mapping[str, bytes]], Store]
"""Makes contents all that a store has, and returns it."""


def test_what_is_put_is_listed_read_and_described_alike(fill: Fill) -> None:
    contents = {name: name.encode() * 3 for name in ODD_NAMES} | {"empty": b""}
    store = fill(contents)
    listed = store.list_files()
    assert [f.path for f in listed] == sorted(contents)
    for file in listed:
        assert store.read_bytes(file.path) == contents[file.path]
        assert store.read_bytes(file.path, 2) == contents[file.path][:2]
        assert file.size_bytes == len(contents[file.path])
        stat = store.stat(file.path)
        assert stat is not None
        assert (stat.path, stat.size_bytes) == (file.path, file.size_bytes)
        assert stat.version == file.version != ""
        if store.is_read_only:
            continue
        assert stat.modified is not None
        assert abs(stat.modified - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=5)
    assert store.read_many([*contents, "empty"]) == contents


def test_a_listing_is_of_folders_and_not_of_name_prefixes(fill: Fill) -> None:
    store = fill(dict.fromkeys(("part/1", "part/sub/2", "part2/3", "part.4"), b"x"))
    assert [f.path for f in store.list_files("part")] == ["part/1", "part/sub/2"]
    assert store.list_files("par") == []
    assert store.list_files("part.4") == []
    assert store.list_files("no/such/folder") == []
    assert store.list_folders("part") == ["sub"]
    assert store.list_folders("no/such/folder") == []
    assert store.exists("part/sub")
    assert store.stat("part/sub") is None
    assert not store.exists("par")


def test_a_listing_is_never_stale_and_a_new_content_has_a_new_version(every_store: Store) -> None:
    versions = set()
    for number in range(3):
        every_store.put("folder/x", b"x" * (number + 1))
        every_store.put(f"folder/{number}", b"")
        files = {f.path: f for f in every_store.list_files("folder")}
        assert len(files) == number + 2
        versions.add(files["folder/x"].version)
    assert len(versions) == 3


def test_reading_what_is_not_there_is_left_to_the_caller(fill: Fill) -> None:
    store = fill({"there": b"x"})
    acts = [lambda: store.read_bytes("not there"), lambda: store.open("not there")]
    if not store.is_read_only:
        acts.append(lambda: store.copy("not there", "target"))
    for act in acts:
        with pytest.raises(FileNotFoundError) as caught:
            act()
        assert caught.value.filename == store.url("not there")
    contents = store.read_many(["there", "not there"])
    assert contents["there"] == b"x"
    assert isinstance(contents["not there"], FileNotFoundError)
    assert store.stat("not there") is None
    assert store.read_many([]) == {}


def test_reading_another_version_than_was_listed_is_refused(fill: Fill) -> None:
    names = ["kept", "replaced", "gone"]
    store = fill(dict.fromkeys(names, b"old"))
    listed = {file.path: file.version for file in store.list_files()}
    assert store.read_many(names, listed) == dict.fromkeys(names, b"old")
    store = fill({"kept": b"old", "replaced": b"new"})
    contents = store.read_many(names, listed)
    assert contents["kept"] == b"old"
    assert isinstance(contents["replaced"], InfraError)
    assert "changed since it was listed" in str(contents["replaced"])
    assert isinstance(contents["gone"], FileNotFoundError)


def test_a_file_on_disk_is_put_as_its_bytes_are(every_store: Store, tmp_path: Path) -> None:
    source, data = tmp_path / "source.bin", os.urandom((6 << 20) + 7)
    source.write_bytes(data)
    for content in (data, b"short"):
        source.write_bytes(content)
        every_store.put_file("deep/er/x.bin", str(source))
        assert every_store.read_bytes("deep/er/x.bin") == content
    source.write_bytes(b"changed later")
    assert every_store.read_bytes("deep/er/x.bin") == b"short"
    assert source.exists()


def test_a_copy_replaces_its_target_and_does_not_follow_its_source(every_store: Store) -> None:
    every_store.put("source", b"first")
    every_store.put("folder/target", b"old")
    for _ in range(2):  # the second time both names are one file on local disk
        every_store.copy("source", "folder/target")
        every_store.copy("source", "source")
    every_store.put("source", b"second")
    assert every_store.read_bytes("folder/target") == b"first"
    assert every_store.read_bytes("source") == b"second"
    assert [f.path for f in every_store.list_files()] == ["folder/target", "source"]
    assert every_store.list_leftovers() == []


def test_delete_takes_names_literally_and_forgives_missing_ones(every_store: Store) -> None:
    for path in ("x/[1]", "x/1", "x/a*", "x/ab"):
        every_store.put(path, b"x")
    every_store.delete(["x/[1]", "x/a*", "x/none", "none/none", "x/1/below a file"])
    assert [f.path for f in every_store.list_files()] == ["x/1", "x/ab"]
    every_store.delete([])


def test_parquet_is_read_by_row_group(fill: Fill) -> None:
    table = pa.table({"n": range(1000), "text": [str(i) * 20 for i in range(1000)]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=100)
    store = fill({"t.parquet": buffer.getvalue()})
    with store.open("t.parquet") as handle:
        parquet = pq.ParquetFile(handle)
        assert parquet.num_row_groups == 10
        assert parquet.read_row_group(7).equals(table.slice(700, 100))
    with store.open("t.parquet") as handle:
        assert handle.read(4) == b"PAR1"
        handle.seek(-4, io.SEEK_END)
        assert (handle.read(), handle.read()) == (b"PAR1", b"")


@pytest.mark.slow
def test_a_large_object_is_put_and_read_whole(server: LocalServer) -> None:
    store = server.store()
    data = os.urandom(1 << 20) * 101  # above the limits for one request: an upload in parts
    store.put("large", data)
    assert store.create_once("large", b"my token", "my token") is CreateOutcome.OTHER
    assert store.read_bytes("large") == data


def test_the_clock_of_the_store_moves_on_and_leaves_nothing(every_store: Store) -> None:
    every_store.put("beat", b"x")
    first = every_store.now()
    beat = every_store.stat("beat")
    assert beat is not None
    assert beat.modified is not None
    assert dt.timedelta(0) <= first - beat.modified < dt.timedelta(minutes=1)
    assert every_store.now() >= first
    assert [f.path for f in every_store.list_files()] == ["beat"]


def test_a_read_of_many_files_that_fails_as_a_whole_is_trouble_with_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(LocalDisk, "read_many", broken)
    with pytest.raises(InfraError, match="cannot be reached"):
        Store(str(tmp_path)).read_many(["a", "b"])


# ------------------------------------------------------------------ create once


def test_of_many_racing_processes_exactly_one_creates_each_name(every_store: Store) -> None:
    value = json.dumps(
        {"uri": every_store.uri, "storage_options": dict(every_store.storage_options)}
    )
    # SeaweedFS makes those who meet at one name wait for whole seconds: few such meetings there.
    num_keys, gated = (4, "1") if every_store.is_object_store else (30, "30")
    outcomes = json.loads(run_python(RACE, str(RACERS), str(num_keys), gated, stdin=value))
    assert len(outcomes) == RACERS
    files = every_store.read_many([f"race/{key:03}" for key in range(num_keys)])
    for key in range(num_keys):
        by_racer = {racer: results[str(key)] for racer, results in outcomes.items()}
        # A winner that repeats its request after a hiccup finds its own object: still one winner.
        winners = [racer for racer, outcome in by_racer.items() if outcome != "other"]
        assert Counter(by_racer.values())["other"] == RACERS - 1, by_racer
        assert files[f"race/{key:03}"] == f"by token-{winners[0]}-{key}.".encode()
    assert every_store.list_leftovers() == []


def test_create_once_knows_its_own_object_and_keeps_the_first(every_store: Store) -> None:
    assert every_store.create_once("log/1", b"{mine}", "mine") is CreateOutcome.CREATED
    assert every_store.create_once("log/1", b"{mine}", "mine") is CreateOutcome.MINE
    assert every_store.create_once("log/1", b"{yours}", "yours") is CreateOutcome.OTHER
    assert every_store.read_bytes("log/1") == b"{mine}"


def test_create_once_needs_its_token_in_the_data(every_store: Store) -> None:
    for token in ("absent", ""):
        with pytest.raises(ValueError, match="token"):
            every_store.create_once("x", b"data", token)
    assert every_store.list_files() == []


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([Rule(RESET_AFTER, last=99)], {CreateOutcome.MINE}),
        ([Rule(UNAVAILABLE), Rule(RESET_AFTER)], {CreateOutcome.MINE}),
        ([Rule(CONFLICT, last=3)], {CreateOutcome.CREATED}),
        (
            [Rule(RESET_AFTER, last=99), Rule(RESET_BEFORE, method="GET|HEAD", last=3)],
            {CreateOutcome.MINE},
        ),
    ],
    ids=[
        "every answer lost",
        "throttled, then answer lost",
        "racing writers",
        "read back fails, too",
    ],
)
def test_a_lost_answer_is_never_taken_for_a_lost_race(
    server: LocalServer,
    proxies: Proxies,
    rules: list[Rule],
    expected: set[CreateOutcome],
) -> None:
    direct = server.store()
    proxy = proxies(server, *(dataclasses.replace(rule) for rule in rules))  # they count
    token = uuid.uuid4().hex
    data = json.dumps({"token": token, "padding": "x" * 200_000}).encode()
    outcome = through(proxy, server, direct).create_once("log/1", data, token)
    done = [action for _, _, action in proxy.requests]
    assert outcome in expected
    assert set(done) - {"forwarded"} == {rule.action for rule in rules}
    assert direct.read_bytes("log/1") == data
    assert direct.create_once("log/1", b"other", "other") is CreateOutcome.OTHER


def test_an_outcome_that_stays_unclear_is_said_and_nothing_is_deleted(
    server: LocalServer, proxies: Proxies
) -> None:
    direct = server.store()
    rules = Rule(RESET_AFTER, last=999), Rule(RESET_BEFORE, method="GET|HEAD", last=999)
    proxy = proxies(server, *rules)
    with pytest.raises(InfraError, match="unclear"):
        through(proxy, server, direct).create_once("log/1", b"my token", "my token")
    assert not [method for method, _, _ in proxy.requests if method == "DELETE"]
    assert direct.read_bytes("log/1") == b"my token"


# ------------------------------------------------------------------ retries


def test_whatever_passes_is_retried_and_counted(server: LocalServer, proxies: Proxies) -> None:
    direct = server.store()
    data = os.urandom(300_000)
    direct.put("x", data)
    direct.put("y/1", b"1")
    acts: list[tuple[str, Callable[[Store], object], object]] = [
        ("GET", lambda store: store.read_bytes("x"), data),
        ("GET", lambda store: store.read_many(["x", "y/1"]), {"x": data, "y/1": b"1"}),
        ("GET|HEAD", lambda store: read_range(store, "x"), data[100:200_000]),
        ("GET|HEAD", lambda store: [f.path for f in store.list_files("y")], ["y/1"]),
        ("GET|HEAD", lambda store: store.stat("x") is None, False),
        ("GET|HEAD", lambda store: store.exists("nothing"), False),
        ("PUT|POST", lambda store: store.put("z", data), None),
        ("PUT|POST", lambda store: store.copy("x", "copied"), None),
        ("DELETE", lambda store: store.delete(["y/1", "y/2", "y/3"]), None),
    ]
    # Of a connection that breaks, aiohttp has a second try of its own, which is not counted.
    faults = ((UNAVAILABLE, 1), (RESET_BEFORE, 2), (RESET_AFTER, 2))
    proxy = proxies(server)
    store = through(proxy, server, direct)
    for (method, act, expected), (fault, times) in product(acts, faults):
        proxy.rules, first = (Rule(fault, method=method, last=times),), len(proxy.requests)
        before = retries_taken()
        assert act(store) == expected
        # gcsfs looks for an object and a folder at once, and needs but one of the answers.
        is_look = method == "GET|HEAD"
        assert times > 1 or is_look or retries_taken() == before + 1
        assert [action for _, _, action in proxy.requests[first:]].count(fault) == times
    assert direct.read_bytes("z") == direct.read_bytes("copied") == data
    assert [f.path for f in direct.list_files()] == ["copied", "x", "z"]


def read_range(store: Store, path: str) -> bytes:
    with store.open(path) as handle:
        handle.seek(100)
        return handle.read(199_900)


def test_a_truncated_answer_is_never_taken_for_the_whole(
    server: LocalServer, proxies: Proxies
) -> None:
    direct = server.store()
    data = os.urandom(400_000)
    paths = [f"folder/{number}" for number in range(8)]
    for path in paths:
        direct.put(path, data)
    cut_off = Chance(TRUNCATE, method="GET", probability=0.3)
    proxy = proxies(server, cut_off)
    store = through(proxy, server, direct)
    assert store.read_many(paths) == dict.fromkeys(paths, data)
    assert {store.read_bytes(path) for path in paths[:5]} == {data}
    for answer in (data[:-1], data + b"x"):
        with pytest.raises(OSError, match=f"got {len(answer)} of the 400000 bytes from 0 on"):
            RemoteFile(len(data), lambda *_, body=answer: body).read()
    assert [f.path for f in store.list_files()] == sorted(paths)
    assert read_range(store, paths[0]) == data[100:200_000]
    assert TRUNCATE in [action for _, _, action in proxy.requests]


def test_an_answer_that_stalls_is_asked_for_again(s3: S3Server) -> None:
    direct = s3.store()
    data = os.urandom(400_000)
    direct.put("x", data)
    with FaultProxy(s3.endpoint_url, Rule(STALL, method="GET")) as proxy:
        options = s3.options_at(proxy.url)
        patience = {"config_kwargs": {"read_timeout": 1, "connect_timeout": 1}}
        assert Store(direct.uri, {**options, **patience}).read_bytes("x") == data
        assert [action for _, _, action in proxy.requests].count(STALL) == 1


@pytest.mark.parametrize(
    ("is_upload", "size_mib", "rule"),
    [
        (False, 1, Rule(ERROR_BODY, method="PUT", head="x-amz-copy-source:")),
        # Above the limit for one request: an upload in parts.
        pytest.param(
            *(True, 101, Rule(ERROR_BODY, method="POST", path="uploadId=")), marks=pytest.mark.slow
        ),
    ],
    ids=["copy", "upload in parts"],
)
def test_an_error_under_status_200_is_an_error(
    s3: S3Server, proxies: Proxies, is_upload: bool, size_mib: int, rule: Rule
) -> None:
    direct, data = s3.store(), os.urandom(1 << 20) * size_mib
    direct.put("source", data)
    proxy = proxies(s3, dataclasses.replace(rule))  # it counts
    store = through(proxy, s3, direct)
    if is_upload:
        store.put("target", data)
    else:
        store.copy("source", "target")
    assert [action for _, _, action in proxy.requests].count(ERROR_BODY) == 1
    assert direct.read_bytes("target") == data


def test_probe_accepts_a_store_that_keeps_the_promise(every_store: Store) -> None:
    every_store.probe(single_writer=False)
    every_store.probe(single_writer=True)
    assert every_store.list_files() == []


class ForgetfulS3(BaseHTTPRequestHandler):
    """Just enough of an old S3 server: it stores objects and ignores If-None-Match."""

    protocol_version = "HTTP/1.1"  # botocore asks for `100 Continue`
    objects: ClassVar[dict[str, bytes]] = {}

    def do_PUT(self) -> None:
        self.objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200)

    def do_GET(self) -> None:
        if self.path in self.objects:
            self.answer(200, self.objects[self.path])
        else:
            self.answer(404)

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        self.objects.pop(self.path, None)
        self.answer(204)

    def answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_probe_refuses_a_store_that_ignores_the_condition() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), ForgetfulS3) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        options = {
            "key": "k",
            "secret": "s",
            "endpoint_url": f"http://127.0.0.1:{server.server_port}",
        }
        store = Store("s3://bucket/x", options)
        with pytest.raises(JobError, match=r"--set run\.single_writer=true"):
            store.probe(single_writer=False)
        store.probe(single_writer=True)
        server.shutdown()
    assert ForgetfulS3.objects == {}


# ------------------------------------------------------------------ local disk


def test_links_are_not_followed_in_listings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x")
    root = tmp_path / "root"
    root.mkdir()
    (root / "plain").write_text("x")
    (root / "file").symlink_to(tmp_path / "outside" / "secret")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "circle").symlink_to(root)
    (root / "dangling").symlink_to(tmp_path / "nothing")
    caplog.set_level("INFO", "pipeline")
    assert [f.path for f in Store(str(root)).list_files()] == ["plain"]
    assert "skipped 4 symbolic links" in caplog.text
    (tmp_path / "alias").symlink_to(root)
    assert [f.path for f in Store(str(tmp_path / "alias")).list_files()] == ["plain"]


def test_what_became_a_pipe_is_a_changed_file_at_once(tmp_path: Path) -> None:
    """Opening a pipe without a writer would block for ever."""
    store = Store(str(tmp_path))
    os.mkfifo(tmp_path / "pipe.jpg")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket.jpg"))
    with contextlib.closing(listener):
        for name in ("pipe.jpg", "socket.jpg"):
            error = store.read_many([name], {name: "1"})[name]
            assert isinstance(error, InfraError)
            assert "changed since it was listed" in str(error)
            with pytest.raises(InfraError, match="changed since it was listed"):
                store.open(name)
            assert store.stat(name) is None


def test_a_followed_link_has_the_version_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1").write_bytes(b"12345")
    os.utime(tmp_path / "blobs" / "1", ns=(1, 10**9))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").symlink_to("../blobs/1")
    store = Store(str(tmp_path / "in"))
    (listed,) = list_inputs(Source(uri=store.uri, format="images"), max_extent_rows=9).shards
    assert (listed.size_bytes, listed.version) == (5, str(10**9))
    assert store.stat("a.jpg") == listed
    assert store.read_many(["a.jpg"], {"a.jpg": listed.version}) == {"a.jpg": b"12345"}
    (tmp_path / "blobs" / "1").write_bytes(b"54321")
    changed = store.read_many(["a.jpg"], {"a.jpg": listed.version})["a.jpg"]
    assert isinstance(changed, InfraError)


def test_local_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        Store(str(tmp_path)).put("x", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


def test_local_roots_are_absolute_and_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = Store(str(tmp_path / "x"))
    assert expected == Store("x") == Store("./y/../x/") == Store(f"file://{tmp_path}/x")
    assert expected.url("a/b") == f"{tmp_path}/x/a/b"
    assert Store("/").url("etc") == "/etc"


def test_what_could_not_be_put_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That would be tried again and again where a store is down."""
    deleted: list[object] = []
    monkeypatch.setattr(Store, "delete", lambda _, paths: deleted.append(paths))
    (tmp_path / "file").write_text("x")
    store = Store(str(tmp_path / "file"))
    for act in (store.now, lambda: store.probe(single_writer=False)):
        with pytest.raises(JobError, match="file"):
            act()
    assert deleted == []


def test_a_file_in_the_way_is_the_users_to_cure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    store = Store(str(tmp_path / "file"))
    for act in (
        lambda: store.put("x", b"x"),
        lambda: store.put("a/b", b"x"),
        lambda: store.create_once("x", b"token", "token"),
        lambda: store.probe(single_writer=False),
        lambda: store.now(),
        lambda: store.read_bytes("x"),
        lambda: Store(str(tmp_path)).read_bytes(""),
        lambda: Store(str(tmp_path)).put("", b"x"),
    ):
        with pytest.raises(JobError, match=str(tmp_path)):
            act()
    assert store.list_files() == []
    assert store.stat("x") is None
    assert not store.exists("x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ------------------------------------------------------------------ errors


def everything(store: Store) -> list[concurrent.futures.Future[object]]:
    acts = [
        lambda: store.list_files(),
        lambda: store.stat("x"),
        lambda: store.exists("x"),
        lambda: store.read_bytes("x"),
        lambda: store.open("x"),
        lambda: store.put("x", b"token"),
        lambda: store.copy("x", "y"),
        lambda: store.delete(["x"]),
        lambda: store.now(),
    ]
    with concurrent.futures.ThreadPoolExecutor(len(acts)) as pool:
        futures = [pool.submit(act) for act in acts]
    return futures


def test_a_missing_bucket_is_the_users_to_cure_and_not_asked_for_again(server: LocalServer) -> None:
    uri = server.uri("x").replace(server.bucket, "no-such-bucket")
    store, before = Store(uri, server.storage_options), retries_taken()
    for future in everything(store):
        with pytest.raises(JobError, match=rf"{uri}.*no such bucket"):
            future.result()
    with pytest.raises(JobError, match="no such bucket"):
        store.create_once("x", b"token", "token")
    assert isinstance(store.read_many(["x"])["x"], JobError)
    with pytest.raises(FileNotFoundError):
        server.store().read_bytes("nothing")
    assert retries_taken() == before


def test_wrong_credentials_are_the_users_to_cure_and_stay_secret(s3: S3Server) -> None:
    wrong = {"secret": "Wrong" + "S" * 35}, {"key": "UNKNOWNKEY", "secret": "t" * 40}
    for options in wrong:
        assert_refused(s3.store(**options), [*options.values(), s3.access_key, s3.secret_key])


@pytest.mark.slow
def test_a_wrong_account_key_is_the_users_to_cure_and_stays_secret(azure: AzureServer) -> None:
    wrong_key = base64.b64encode(b"wrong" * 6).decode()
    store = azure.store(connection_string=azure.connection_string(wrong_key))
    assert_refused(store, [wrong_key, azure.account_key])


def assert_refused(store: Store, secrets: list[str]) -> None:
    for future in everything(store):
        with pytest.raises(JobError, match="credentials are wrong") as caught:
            future.result()
        for value in secrets:
            assert value not in str(caught.value)
    with pytest.raises(JobError, match="credentials are wrong"):
        store.create_once("x", b"token", "token")


def test_an_unreachable_store_is_worth_another_run(server: LocalServer) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    store = Store(server.uri("x"), server.options_at(url))
    for future in everything(store):
        with pytest.raises(InfraError, match="cannot be reached") as caught:
            future.result()
        for value in secret_values(server.storage_options):
            assert value not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_store_that_keeps_throttling_is_worth_another_run(
    server: LocalServer, proxies: Proxies
) -> None:
    proxy = proxies(server, Rule(UNAVAILABLE, method=".*", last=999))
    store = through(proxy, server, server.store())
    with pytest.raises(InfraError, match=r"SlowDown|503"):
        store.put("x", b"x")
    assert len(proxy.requests) == TRIES


def test_trouble_while_arrow_reads_is_ours_too(server: LocalServer, proxies: Proxies) -> None:
    direct = server.store()
    buffer = io.BytesIO()
    pq.write_table(pa.table({"n": range(10)}), buffer)
    direct.put("t.parquet", buffer.getvalue())
    proxy = proxies(server, Rule(RESET_AFTER, method="GET", first=3, last=99))
    store = through(proxy, server, direct)
    with store.open("t.parquet") as handle, pytest.raises(InfraError, match=r"t\.parquet"):
        [pq.ParquetFile(handle) for _ in range(9)]


def test_a_file_that_changes_while_it_is_read_is_noticed(server: LocalServer) -> None:
    store = server.store()
    store.put("x", b"first content")
    with store.open("x") as handle:
        assert handle.read(5) == b"first"
        store.put("x", b"other content")
        before = retries_taken()
        with pytest.raises(InfraError, match="changed since it was listed"):
            handle.read(5)
        assert retries_taken() == before


def test_options_that_the_library_refuses_are_the_users_to_cure(s3: S3Server) -> None:
    for options in ({"frobnicate": 1}, {"endpoint_url": "no-url"}, {"config_kwargs": {"x": 1}}):
        with pytest.raises(JobError, match="storage_options"):
            s3.store(**options).exists("x")
    with pytest.raises(JobError, match="not a valid name"):
        Store("s3://Not_A_Bucket!/x", s3.storage_options).exists("x")


@pytest.mark.slow
def test_environment_credentials_work(gcs: GCSServer, azure: AzureServer) -> None:
    code = (
        "import sys\nfrom pipeline.storage.store import Store\n"
        "print(Store(sys.argv[1]).exists('x'))"
    )
    assert run_python(code, gcs.uri("ready"), **gcs.env) == "True\n"
    assert run_python(code, azure.uri("ready"), **azure.env) == "True\n"


@pytest.mark.parametrize("has_key", [True, False])
def test_credentials_of_s3_are_those_of_the_environment_or_said_to_be_missing(
    s3: S3Server, has_key: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3.env.items():
        if has_key or "KEY" not in name:
            monkeypatch.setenv(name, value)
    for name in ("HOME", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    options = {"max_paths": 9 + has_key}  # of its own: a file system that is not cached
    store = Store(f"s3://{s3.bucket}/{uuid.uuid4().hex}", options)
    if has_key:
        store.probe(single_writer=False)
        return
    with pytest.raises(JobError, match=r"^cannot create s3://.*credentials.* missing") as caught:
        store.probe(single_writer=False)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("uri", "package", "extra"),
    [
        ("s3://b/x", "s3fs", "s3"),
        ("gs://b/x", "gcsfs", "gcs"),
        ("az://b/x", "adlfs", "azure"),
        ("abfs://b@account.dfs.core.windows.net/x", "adlfs", "azure"),
        ("hf://datasets/org/data", "huggingface_hub", "pull"),
    ],
)
def test_a_missing_extra_says_what_to_install(uri: str, package: str, extra: str) -> None:
    code = (
        "import sys\nsys.modules[sys.argv[2]] = None\nfrom pipeline.storage.store import Store\n"
        "from pipeline.core.errors import JobError\n"
        "try:\n    Store(sys.argv[1]).exists('y')\nexcept JobError as error:\n    print(error)"
    )
    assert f"pip install 'batch-inference-pipeline[{extra}]'" in run_python(code, uri, package)


def test_importing_it_imports_no_file_system() -> None:
    heavy = {"fsspec", "s3fs", "botocore", "gcsfs", "adlfs", "google", "azure", "aiohttp"}
    heavy |= {"huggingface_hub"}
    code = f"import sys, pipeline.storage.store; print({heavy} & set(sys.modules))"
    assert run_python(code) == "set()\n"


# ------------------------------------------------------------------ what a Store is


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/passwd", "..", "a/..", ".", "a/./b", "a\0b", "//x"]
)
def test_paths_outside_the_root_are_refused(every_store: Store, path: str) -> None:
    for act in (
        lambda: every_store.put(path, b"x"),
        lambda: every_store.read_bytes(path),
        lambda: every_store.list_files(path),
        lambda: every_store.stat(path),
        lambda: every_store.delete(["ok", path]),
        lambda: every_store.copy("ok", path),
        lambda: every_store.read_many(["ok", path]),
        lambda: every_store.create_once(path, b"token", "token"),
    ):
        with pytest.raises(JobError, match="must stay below"):
            act()


def test_a_store_travels_without_connections_and_hides_its_options(s3: S3Server) -> None:
    store = s3.store()
    before = pickle.dumps(store)
    store.put("x", b"x")
    after = pickle.dumps(store)
    assert after == before
    assert b"s3fs" not in after
    again = pickle.loads(after)
    assert again == store
    assert hash(again) == hash(store)
    assert again.read_bytes("x") == b"x"
    for value in (s3.access_key, s3.secret_key, s3.endpoint_url):
        assert value not in repr(store) + str(store) + store.url("x")


def test_a_file_that_vanishes_after_it_was_opened_is_missing(s3: S3Server):
    store = Store(s3.uri(f"vanish-{uuid.uuid4().hex}"), s3.storage_options)
    store.put("a", b"x" * 1000)
    with store.open("a") as handle:
        store.delete(["a"])
        with pytest.raises(FileNotFoundError, match="vanish-"):
            handle.read(10)
