"""A real run over a bad network: requests are refused, lost, cut off or answered wrongly."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
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
NUM_ROWS, NUM_SHARDS = 200, 4
CASES = {
    "photos": ({"format": "parquet", "pass_through": ["camera"]}, {}, 8),
    "texts": ({"format": "jsonl", "text_column": "body"}, {"transform": None}, NUM_SHARDS),
}
"""What is read -> fields of its source, sections of its job, and how many of its rows are bad."""


def put_photos(root: Store, folder: Path) -> None:
    num_bad = CASES["photos"][2]
    build_parquet(folder, NUM_ROWS, 11, num_shards=NUM_SHARDS, num_bad=num_bad, row_group_rows=20)
    for shard in folder.glob("*.parquet"):
        root.put(f"in/{shard.name}", shard.read_bytes())


def put_texts(root: Store, folder: Path) -> None:
    """Shards of texts, a null in each, and a model."""
    for shard in range(NUM_SHARDS):
        rows = [
            {"id": f"{shard}-{row:02d}", "body": TEXTS[row % len(TEXTS)] if row else None}
            for row in range(NUM_ROWS // NUM_SHARDS)
        ]
        root.put(f"in/{shard}.jsonl.gz", CODECS[".jsonl.gz"](lines(*rows)))
    model = make_snapshot(folder / "model", "bert", pooling="mean")
    for file in (path for path in model.rglob("*") if path.is_file()):
        root.put(f"model/{file.relative_to(model)}", file.read_bytes())


def run(
    folder: Path, root: Store, case: str, storage_options: dict[str, Any], output: str
) -> dict[str, Any]:
    """Run with a node cache of its own, so that a model is read from the store."""
    fields, sections, _ = CASES[case]
    options = {"storage_options": storage_options}
    if case == "texts":
        sections = {**sections, "model": {"path": root.url("model"), **options}}
    job = write_job(
        folder / "job.yaml",
        {"uri": root.url("in"), "id_column": "id", **fields, **options},
        root.url(output),
        sink=options,
        gates={"max_error_pct": 10},
        run={"slice_rows": 16},
        **sections,
    )
    cache = {"XDG_CACHE_HOME": str(folder / output)}
    result = pipeline("run", job, "--date", DATE, "--json", env=cache)
    assert result.code == 0, result.stderr
    return result.json


def predictions(root: Store, output: str) -> pa.Table:
    options = dict(root.storage_options)
    verify_output(root.url(output), PARTITION, options)
    return read_predictions(root.url(output), PARTITION, storage_options=options)


def certain_faults(case: str) -> list[Rule]:
    """One of each kind, so that no seed leaves one out; the others come by chance."""
    is_cut = [Rule(TRUNCATE, method="GET", path="/in/", first=2, last=2)]
    if case == "texts":
        is_cut.append(Rule(TRUNCATE, method="GET", path="/model/model.safetensors"))
    return [
        *is_cut,
        Rule(RESET_BEFORE, method=".*", first=40, last=40),
        Rule(RESET_AFTER, method="PUT", path="staging", first=3, last=3),
        Rule(ERROR_BODY, method="PUT", head="\nx-amz-copy-source:"),
        Rule(UNAVAILABLE, method="GET", path="/in/", first=3, last=4),
        Rule(UNAVAILABLE, method="PUT", path="staging", first=2, last=2),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "seeds"), [("photos", (1, 2, 3)), ("texts", (1,))])
def test_a_bad_network_changes_no_row(
    case: str, seeds: tuple[int, ...], s3: S3Server, tmp_path: Path
) -> None:
    root = s3.store()
    {"photos": put_photos, "texts": put_texts}[case](root, tmp_path)
    clean = run(tmp_path, root, case, s3.storage_options, "clean")
    assert sum(stage["retries"] or 0 for stage in clean["stages"]) == 0
    num_bad = CASES[case][2]
    for seed in seeds:
        rules = certain_faults(case)
        with FaultProxy(s3.endpoint_url, *rules, *bad_network(), seed=seed) as proxy:
            report = run(tmp_path, root, case, s3.options_at(proxy.url), f"out-{seed}")
        done = Counter(action.partition(":")[0] for _, _, action in proxy.requests)
        assert done.keys() >= {rule.action for rule in rules}
        assert predictions(root, f"out-{seed}").equals(predictions(root, "clean"))
        rows = report["rows"]
        assert (rows["predicted"], rows["quarantined"]) == (NUM_ROWS - num_bad, num_bad)
        retries = {stage["stage"]: stage["retries"] for stage in report["stages"]}
        assert min(retries["read"], retries["write"]) > 0, retries
