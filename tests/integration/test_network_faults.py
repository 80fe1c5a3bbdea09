"""A real run over a bad network: requests are refused, lost, cut off or answered wrongly."""

from __future__ import annotations

import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.jsonl_shards import CODECS, lines
from support.inputs.photos import build_parquet
from support.models.snapshots import TEXTS, make_snapshot
from support.runs.cli import pipeline, write_job
from support.runs.published_rows import read_predictions
from support.servers.faultproxy import (
    ERROR_BODY,
    RESET_AFTER,
    RESET_BEFORE,
    TRUNCATE,
    UNAVAILABLE,
    FaultProxy,
    Rule,
    bad_network,
)
from support.servers.s3server import S3Server

from pipeline.commit.published.verify import verify_output
from pipeline.storage.store import Store

pytestmark = [pytest.mark.no_ray, pytest.mark.early]

DATE = "2026-11-24"
PARTITION = f"date={DATE}"
NUM_ROWS, NUM_BAD = 200, 8


@pytest.fixture(scope="module")
def root(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A prefix whose `in` holds shards of photos, some of them broken."""
    folder = tmp_path_factory.mktemp("shards")
    build_parquet(folder, NUM_ROWS, seed=11, num_shards=4, num_bad=NUM_BAD, row_group_rows=20)
    store = s3.store()
    for shard in folder.glob("*.parquet"):
        store.put(f"in/{shard.name}", shard.read_bytes())
    return store


@pytest.fixture(scope="module")
def expected(s3: S3Server, root: Store, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """What a run over a good network predicts."""
    report = run(tmp_path_factory.mktemp("clean"), root, s3.storage_options, "clean")
    assert retries_of(report) == 0
    return predictions(root, "clean")


def run(folder: Path, root: Store, storage_options: dict[str, Any], output: str) -> dict[str, Any]:
    source = {
        "uri": root.url("in"),
        "format": "parquet",
        "id_column": "id",
        "pass_through": ["camera"],
        "storage_options": storage_options,
    }
    sink = {"uri": root.url(output), "storage_options": storage_options}
    job = write_job(
        folder / "job.yaml",
        source,
        sink["uri"],
        sink={**sink, "partition": "date=${date}"},
        gates={"max_error_pct": 10},
        run={"slice_rows": 16},
    )
    result = pipeline("run", job, "--date", DATE, "--json")
    assert result.code == 0, result.stderr
    return result.json


def predictions(root: Store, output: str) -> pa.Table:
    options = dict(root.storage_options)
    verify_output(root.url(output), PARTITION, options)
    return read_predictions(root.url(output), PARTITION, storage_options=options)


def certain_faults() -> list[Rule]:
    """One of each kind, so that no seed leaves one out; the others come by chance."""
    return [
        Rule(RESET_BEFORE, method=".*", first=40, last=40),
        Rule(RESET_AFTER, method="PUT", path="staging", first=3, last=3),
        Rule(TRUNCATE, method="GET", path="/in/", first=7, last=7),
        Rule(ERROR_BODY, method="PUT", head="\nx-amz-copy-source:"),
        Rule(UNAVAILABLE, method="GET", path="/in/", first=14, last=15),
        Rule(UNAVAILABLE, method="PUT", path="staging", first=2, last=2),
    ]


def retries_of(report: dict[str, Any]) -> int:
    return sum(stage["retries"] or 0 for stage in report["stages"])


SLOW = pytest.mark.slow


@SLOW
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_bad_network_changes_no_row(
    s3: S3Server, root: Store, expected: pa.Table, tmp_path: Path, seed: int
) -> None:
    output = f"out-{uuid.uuid4().hex}"
    with FaultProxy(s3.endpoint_url, *certain_faults(), *bad_network(), seed=seed) as proxy:
        report = run(tmp_path, root, s3.options_at(proxy.url), output)
    done = Counter(action.partition(":")[0] for _, _, action in proxy.requests)
    assert done.keys() >= {rule.action for rule in certain_faults()}
    assert predictions(root, output).equals(expected)
    assert report["rows"]["predicted"] == NUM_ROWS - NUM_BAD
    assert report["rows"]["quarantined"] == NUM_BAD
    retries = {stage["stage"]: stage["retries"] for stage in report["stages"]}
    assert min(retries["read"], retries["write"]) > 0, retries


def put_texts(root: Store, suffix: str) -> None:
    """Four shards of texts, a null in each."""
    for shard in range(4):
        rows = [
            {"id": f"{shard}-{row:02d}", "body": TEXTS[row % len(TEXTS)] if row else None}
            for row in range(NUM_ROWS // 4)
        ]
        sink = pa.BufferOutputStream()
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=20)
        else:
            sink.write(CODECS[suffix](lines(*rows)))
        root.put(f"in/{shard}{suffix}", sink.getvalue().to_pybytes())


def embed_texts(
    folder: Path, root: Store, storage_options: dict[str, Any], suffix: str, output: str
) -> dict[str, Any]:
    """Run with a node cache of its own, so that the model is read from the store."""
    section = {"storage_options": storage_options}
    source = {
        "uri": root.url("in"),
        "format": "parquet" if suffix == ".parquet" else "jsonl",
        "text_column": "body",
        "id_column": "id",
    }
    job = write_job(
        folder / "job.yaml",
        {**source, **section},
        root.url(output),
        model={"path": root.url("model"), **section},
        transform=None,
        sink=section,
        gates={"max_error_pct": 10},
        run={"slice_rows": 16},
    )
    cache = {"XDG_CACHE_HOME": str(folder / output)}
    result = pipeline("run", job, "--date", DATE, "--json", env=cache)
    assert result.code == 0, result.stderr
    return result.json


@SLOW
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".jsonl.gz"])
def test_a_bad_network_changes_no_text(s3: S3Server, tmp_path: Path, suffix: str) -> None:
    root = s3.store()
    put_texts(root, suffix)
    model = make_snapshot(tmp_path / "model", "bert", pooling="mean")
    for file in (path for path in model.rglob("*") if path.is_file()):
        root.put(f"model/{file.relative_to(model)}", file.read_bytes())
    embed_texts(tmp_path, root, s3.storage_options, suffix, "clean")
    certain = [
        Rule(RESET_BEFORE, method=".*", first=40, last=40),
        Rule(TRUNCATE, method="GET", path="/model/model.safetensors"),
        Rule(TRUNCATE, method="GET", path="/in/", first=2, last=2),
        Rule(UNAVAILABLE, method="GET", path="/in/", first=3, last=4),
        Rule(RESET_AFTER, method="PUT", path="staging", first=3, last=3),
        Rule(UNAVAILABLE, method="PUT", path="staging", first=2, last=2),
    ]
    with FaultProxy(s3.endpoint_url, *certain, *bad_network(), seed=1) as proxy:
        report = embed_texts(tmp_path, root, s3.options_at(proxy.url), suffix, "bad")
    done = Counter(action.partition(":")[0] for _, _, action in proxy.requests)
    assert done.keys() >= {rule.action for rule in certain}
    assert predictions(root, "bad").equals(predictions(root, "clean"))
    assert (report["rows"]["predicted"], report["rows"]["quarantined"]) == (NUM_ROWS - 4, 4)
    retries = {stage["stage"]: stage["retries"] for stage in report["stages"]}
    assert min(retries["read"], retries["write"]) > 0, retries
