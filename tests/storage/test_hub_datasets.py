"""Datasets of the hub are read at one commit, in counted requests, with the token in no line."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from models import LABELS, TRANSFORM
from support.runs.cli import photos_job, pipeline
from support.servers.hubserver import TOKEN, HubServer
from support.servers.ports import free_ports

from pipeline.core.errors import InfraError, InputMissing, JobError
from pipeline.job.source import Source
from pipeline.sources.uris.policy import policy_of, rooted
from pipeline.storage.store import Store, retries_taken

pytestmark = [pytest.mark.no_ray("huggingface_hub"), pytest.mark.usefixtures("impatient")]
DATASET = "org/data"
URI = f"hf://datasets/{DATASET}"
SETTINGS = {"model.labels": LABELS, **{f"transform.{name}": v for name, v in TRANSFORM.items()}}
FILES = {"a.bin": b"small", "large.bin": bytes(range(256)) * 500, "folder/b.bin": b"b"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with HubServer() as server:
        server.large = {"large.bin", "t.parquet"}
        server.push(DATASET, FILES)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def refusal(store: Store, error_type: type[Exception]) -> str:
    """The line with which reading a file is refused, each time without a retry."""
    before = retries_taken()
    with pytest.raises(error_type) as caught:
        store.read_bytes("a.bin")
    assert type(caught.value) is error_type
    assert retries_taken() == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("revision", ["", "@main", "@v1", "@refs/pr/1", "@refs%2Fpr%2F1"])
def test_a_pinned_store_stays_as_it_was(revision: str, hub: HubServer):
    branch = revision[1:].replace("%2F", "/") or "main"
    commit = hub.push(DATASET, FILES, branch)
    store = Store(URI + revision)
    pinned = store.pinned()
    assert pinned.uri == f"{URI}@{commit}"
    assert pinned.pinned() == pinned
    assert store.url("a.bin") == pinned.url("a.bin") == f"{URI}/a.bin"
    hub.push(DATASET, {"a.bin": b"replaced"}, branch)
    assert store.read_bytes("a.bin") == b"replaced"
    assert {f.path: pinned.read_bytes(f.path) for f in pinned.list_files()} == FILES


def test_an_open_file_stays_as_it_was(hub: HubServer):
    with Store(URI).open("large.bin") as handle:
        hub.push(DATASET, {"large.bin": b"replaced"})
        handle.seek(1000)
        assert handle.read(500) == FILES["large.bin"][1000:1500]


def test_of_parquet_only_the_bytes_that_arrow_wants_are_requested(hub: HubServer):
    buffer = io.BytesIO()
    columns = {name: [f"{name} {row}" * 20 for row in range(5000)] for name in "abcdefgh"}
    pq.write_table(pa.table(columns), buffer, compression="none", use_dictionary=False)
    hub.push(DATASET, {"t.parquet": buffer.getvalue()})
    with Store(URI).pinned().open("t.parquet") as handle:
        assert pq.ParquetFile(handle).read(["c"]).column("c").to_pylist() == columns["c"]
    ranges = [h["Range"] for _, path, h in hub.requests if path.startswith("/cdn/")]
    spans = [tuple(map(int, text.removeprefix("bytes=").split("-"))) for text in ranges]
    assert sum(end + 1 - start for start, end in spans) < len(buffer.getvalue()) / 4


def test_requests_are_retried_and_counted_by_us_alone(hub: HubServer):
    commit = hub.push(DATASET, FILES)
    store, path = Store(f"{URI}@{commit}"), f"/datasets/{DATASET}/resolve/{commit}/large.bin"
    version = {file.path: file.version for file in store.list_files()}["large.bin"]
    hub.cuts["large.bin"] = [100, 70_000]
    before = retries_taken()
    assert store.read_bytes("large.bin") == FILES["large.bin"]
    assert retries_taken() == before + 2
    for status in (429, 500, 503):
        hub.statuses[path] = [status]
        contents = store.read_many(["large.bin"], {"large.bin": version})
        assert contents == {"large.bin": FILES["large.bin"]}
    assert retries_taken() == before + 5
    hub.statuses[path] = [500] * 99
    asked = len(hub.requests)
    with pytest.raises(InfraError, match=rf"^{URI}@{commit}/large.bin: the hub answers with 500$"):
        store.read_bytes("large.bin")
    assert len(hub.requests) - asked == 6


def test_other_bytes_than_the_hub_listed_are_no_content(hub: HubServer):
    store = Store(URI).pinned()
    versions = {file.path: file.version for file in store.list_files()}
    hub.sent_instead = {name: b"other" for name in FILES}
    for error in store.read_many([*versions], versions).values():
        assert isinstance(error, InfraError)
        assert "changed since it was listed" in str(error)


def test_what_a_hub_that_ignores_ranges_sends_is_cut(hub: HubServer):
    hub.ignores_range = True
    with Store(URI).open("large.bin") as handle:
        handle.seek(1000)
        assert handle.read(500) == FILES["large.bin"][1000:1500]


def test_the_token_is_sent_to_the_hub_alone(hub: HubServer, monkeypatch: pytest.MonkeyPatch):
    hub.token = TOKEN
    line = refusal(Store(URI), JobError)
    assert line == f"{URI}/a.bin: access denied (401), and HF_TOKEN is not set"
    monkeypatch.setenv("HF_TOKEN", "hf_wrong-token-that-stays-secret")
    assert refusal(Store(URI), JobError).endswith("HF_TOKEN is not accepted")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    store, hub.requests = Store(URI).pinned(), []
    assert {f.path: store.read_bytes(f.path) for f in store.list_files()} == FILES
    tokens = {(path.startswith("/cdn/"), h.get("authorization")) for _, path, h in hub.requests}
    assert tokens == {(False, f"Bearer {TOKEN}"), (True, None)}
    with pytest.raises(JobError, match="the token is read from HF_TOKEN") as caught:
        Store(URI, {"token": TOKEN}).exists("a.bin")
    assert TOKEN not in str(caught.value) + repr(store._backend())


def test_what_cannot_be_read_is_one_line_with_the_cure(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
):
    other = refusal(Store("hf://datasets/org/other"), InputMissing)
    because = "no such repository, or a private one, and HF_TOKEN is not set"
    assert other == f"hf://datasets/org/other: {because}"
    assert refusal(Store(f"{URI}@v9"), InputMissing).startswith(f"{URI}@v9: ")
    hub.gated = {f"datasets/{DATASET}"}
    gated = refusal(Store(URI), JobError)
    assert gated.startswith(f"{URI}: is gated, and HF_TOKEN is not set: accept")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(InfraError, match=r"^hf://.*the hub does not answer \(Connect") as caught:
        Store(URI).read_bytes("a.bin")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["models/org/data", "spaces/org/data/x", "org/data", "datasets/data", "buckets/org/b"]
)
def test_of_a_hub_only_datasets_are_read(uri: str):
    with pytest.raises(JobError, match=r"expected hf://datasets/ORG/NAME@REVISION/path"):
        Store(f"hf://{uri}")


def test_nothing_is_written(hub: HubServer, tmp_path: Path):
    store, asked = Store(URI), len(hub.requests)
    (tmp_path / "x").write_bytes(b"x")
    for act in (
        lambda: store.put("x", b"x"),
        lambda: store.put_file("x", str(tmp_path / "x")),
        lambda: store.create_once("x", b"token", "token"),
        lambda: store.copy("a.bin", "x"),
        lambda: store.delete(["a.bin"]),
        lambda: store.probe(single_writer=True),
    ):
        with pytest.raises(JobError, match="read-only"):
            act()
    assert len(hub.requests) == asked


def test_rows_may_name_files_of_the_pinned_dataset(hub: HubServer):
    root = Store(URI).pinned().uri
    source = Source(uri=URI, format="parquet", uri_column="link")
    policy = policy_of(source, root)
    assert policy.uri_base == URI
    for uri in (f"{URI}/folder/b.bin", f"{root}/folder/b.bin"):
        assert rooted(uri, policy) == (root, "folder/b.bin")
    for uri in (f"{URI}@v1/folder/b.bin", f"{URI}2/b.bin", "hf://datasets/org"):
        with pytest.raises(Exception, match="not below any root"):
            rooted(uri, policy)


def test_commands_know_datasets_of_the_hub(hub: HubServer, tmp_path: Path):
    job = photos_job(tmp_path, 6)
    photos = {f"photos/{p.name}": p.read_bytes() for p in (tmp_path / "images").rglob("*.*")}
    commit = hub.push(DATASET, photos)
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}

    def done(command: str, *settings: str, code: int = 0) -> Any:
        arguments = [text for setting in settings for text in ("--set", setting)]
        ended = pipeline(command, job, "--date", "2026-11-24", "--json", *arguments, env=env)
        assert ended.code == code, ended.stderr
        return json.loads(ended.stdout)

    uri = f"source.uri={URI}/photos"
    assert done("run", uri)["rows"]["predicted"] == 6
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{URI}@{commit}/photos" in card
    assert done("run", f"{uri}/*.jpg", "sink.uri=" + str(tmp_path / "globbed"))
    assert done("plan", uri)["a_run_would"] == "nothing: this is published already"
    settings = (f"{name}={json.dumps(value)}" for name, value in SETTINGS.items())
    asked = [f"{URI}/photos", "--model", "models:colours", "--to", str(tmp_path / "predicted")]
    asked += [word for setting in settings for word in ("--set", setting)]
    first = pipeline("predict", *asked, "--json", env=env)
    assert first.json["rows"]["predicted"] == 6, first.stderr
    assert not (tmp_path / "home").exists(), "the library keeps nothing on disk"
    for code, setting, line in (
        (2, f"sink.uri={URI}/out", "nothing can be written there"),
        (2, "source.uri=hf://models/org/data", "only datasets are read"),
        (8, f"source.uri={URI}@v9/photos", "no such revision"),
        (8, "source.uri=hf://datasets/org/other", "no such repository"),
        (8, f"source.uri={URI}/no/such", "no object there"),
    ):
        error = done("run", *([uri] if "sink" in setting else []), setting, code=code)["error"]
        assert line in error
        assert "\n" not in error
