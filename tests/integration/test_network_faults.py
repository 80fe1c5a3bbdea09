"""A real run over a bad network: requests are refused, lost, cut off or answered wrongly."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.inputs.photos import build_parquet
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

from pipeline.published.verify import verify_output
from pipeline.storage.store import Store

pytestmark = [pytest.mark.no_ray, pytest.mark.early]

DATE = "2026-11-24"
PARTITION = f"date={DATE}"
NUM_ROWS, NUM_BAD = 200, 8


def run(folder: Path, root: Store, storage_options: dict[str, Any], output: str) -> dict[str, Any]:
    options = {"storage_options": storage_options}
    source = {"uri": root.url("in"), "format": "parquet", "id_column": "id", **options}
    job = write_job(
        folder / "job.yaml",
        {**source, "pass_through": ["camera"]},
        root.url(output),
        sink=options,
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
        Rule(TRUNCATE, method="GET", path="/in/", first=2, last=2),
        Rule(RESET_BEFORE, method=".*", first=40, last=40),
        Rule(RESET_AFTER, method="PUT", path="staging", first=3, last=3),
        Rule(ERROR_BODY, method="PUT", head="\nx-amz-copy-source:"),
        Rule(UNAVAILABLE, method="GET", path="/in/", first=3, last=4),
        Rule(UNAVAILABLE, method="PUT", path="staging", first=2, last=2),
    ]


@pytest.mark.slow
def test_a_bad_network_changes_no_row(s3: S3Server, tmp_path: Path) -> None:
    root, photos = s3.store(), tmp_path / "photos"
    build_parquet(photos, NUM_ROWS, 11, num_shards=4, num_bad=NUM_BAD, row_group_rows=20)
    for shard in photos.glob("*.parquet"):
        root.put(f"in/{shard.name}", shard.read_bytes())
    clean = run(tmp_path, root, s3.storage_options, "clean")
    assert sum(stage["retries"] or 0 for stage in clean["stages"]) == 0
    for seed in (1, 2, 3):
        rules = certain_faults()
        with FaultProxy(s3.endpoint_url, *rules, *bad_network(), seed=seed) as proxy:
            report = run(tmp_path, root, s3.options_at(proxy.url), f"out-{seed}")
        done = Counter(action.partition(":")[0] for _, _, action in proxy.requests)
        assert done.keys() >= {rule.action for rule in rules}
        assert predictions(root, f"out-{seed}").equals(predictions(root, "clean"))
        rows = report["rows"]
        assert (rows["predicted"], rows["quarantined"]) == (NUM_ROWS - NUM_BAD, NUM_BAD)
        retries = {stage["stage"]: stage["retries"] for stage in report["stages"]}
        assert min(retries["read"], retries["write"]) > 0, retries
