"""Tasks whose columns are lists, halves or plain scores carry whole runs, with all that judges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.photos import build_images
from support.models.snapshots import make_snapshot
from support.runs.cli import pipeline, write_job
from support.runs.published_rows import read_predictions
from support.servers.forkedcommands import OF_TRANSFORMERS

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import current_manifest
from pipeline.storage.store import Store

TASKS: dict[str, dict[str, Any]] = {
    "multilabel": {"factory": "models:colours", "labels": models.LABELS, "min_score": 0.3},
    "score": {"factory": "models:redness"},
    "embed": {"factory": "models:channels", "layer": "pool", "embedding_dim": 3,
              "embedding_type": "float16"},
    "zero_shot": {"factory": "models:colours", "prompts": models.LABELS},
    "detect": {"factory": "models:spots", "labels": models.LABELS, "min_score": 0.3},
}  # fmt: skip
COUNTED = {
    "multilabel": {"num_labels", "score"},
    "score": {"score"},
    "embed": {"norm", *(f"direction_{index}" for index in range(4))},
    "zero_shot": {"score"},
    "detect": {"num_detections", "score"},
}
LIST = pa.list_(pa.struct({"label": pa.string(), "label_id": pa.int32(), "score": pa.float32()}))
CORNERS = {name: pa.float32() for name in ("x_min", "y_min", "x_max", "y_max")}
DETECTIONS = pa.list_(pa.struct([*LIST.value_type, *CORNERS.items()]))
TYPES = {
    "multilabel": ("labels", LIST),
    "score": ("score", pa.float32()),
    "embed": ("embedding", pa.list_(pa.float16(), 3)),
    "zero_shot": ("label", pa.string()),
    "detect": ("detections", DETECTIONS),
}


@pytest.mark.no_ray(*OF_TRANSFORMERS)
@pytest.mark.slow
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_photos_are_labelled_by_the_prompts_of_the_job(family: str, tmp_path: Path):
    build_images(tmp_path / "images", 12, seed=8, num_bad=1)
    make_snapshot(tmp_path / "model", family)
    prompts = {"cat": "the cat sat", "home": "a long way home by the river", "dog": "a dog"}
    job = write_job(
        tmp_path / "job.yaml",
        {"uri": str(tmp_path / "images"), "format": "images"},
        str(tmp_path / "out"),
        model={"path": str(tmp_path / "model"), "task": "zero_shot", "prompts": prompts},
        transform=None,
        gates={"max_error_pct": 20.0},
    )
    tried = pipeline("plan", job, "--date", "2026-11-24", "--json")
    assert tried.json["model"]["tried"].startswith("ok: "), tried.stderr
    done = pipeline("run", job, "--date", "2026-11-24", "--json")
    assert done.code == 0, done.stderr
    found = read_predictions(str(tmp_path / "out"), "date=2026-11-24")
    assert found.num_rows == 11
    assert set(found["label"].to_pylist()) <= {*prompts}
    assert all(len(top) == 3 for top in found["top_k"].to_pylist())


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_task_carries_two_partitions_with_golden_rows_and_drift(task: str, tmp_path: Path):
    build_images(tmp_path / "images", 40, seed=8, num_bad=2)
    out, golden = str(tmp_path / "out"), str(tmp_path / "golden.parquet")
    job = write_job(
        tmp_path / "job.yaml",
        {"uri": str(tmp_path / "images"), "format": "images"},
        out,
        model={"task": task, **TASKS[task]},
        run={"slice_rows": 16},
        gates={"max_error_pct": 20.0, "score_drift": {"mode": "fail", "min_rows": 10}},
    )
    made = pipeline("golden", job, "--rows", "6", "--out", golden, "--json")
    assert made.code == 0, made.stderr
    column, kind = TYPES[task]
    assert column in pq.read_schema(golden).names
    for date in ("2026-11-24", "2026-11-25"):
        asked = ("--date", date, "--set", f"gates.golden.uri={golden}", "--json")
        done = pipeline("run", job, *asked)
        assert done.code == 0, done.stderr
    results = {gate["name"]: gate for gate in done.json["gates"]}
    assert results["golden"]["status"] == "pass"
    assert results["score_drift"]["status"] == "pass"
    manifest = current_manifest(Store(out), Layout("date=2026-11-25"))
    assert manifest is not None
    assert set(manifest.distribution["numbers"]) == COUNTED[task]
    assert bool(manifest.distribution["labels"]) == (task in ("multilabel", "zero_shot", "detect"))
    predictions = read_predictions(out, "date=2026-11-25")
    assert predictions.num_rows == 38
    assert predictions.schema.field(column).type == kind
    for command in ("verify", "inspect"):
        seen = pipeline(command, out, "--partition", "date=2026-11-25", "--json")
        assert seen.code == 0, seen.stderr
