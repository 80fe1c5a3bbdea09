"""A task, a runtime, a table and a gate of another distribution carry a whole run."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import toy_gate
import toy_package
import toy_runtime
import toy_table
import toy_task
from checkout import PYTHONPATH
from cli import pipeline, write_job

from pipeline.commands.demo_photos import build_images
from pipeline.storage.store import Store

TOYS = {
    "pipeline.tasks": {toy_task.NAME: "toy_task:Spread"},
    "pipeline.runtimes": {toy_runtime.NAME: "toy_runtime:RUNTIME"},
    "pipeline.tables": {toy_table.NAME: "toy_table:PartList"},
    "pipeline.gates": {toy_gate.NAME: "toy_gate:GATE"},
}


def test_one_run_by_toys_of_every_kind(tmp_path: Path) -> None:
    site = toy_package.install(tmp_path / "site", TOYS)
    env = {"PYTHONPATH": f"{PYTHONPATH}{os.pathsep}{site}"}
    build_images(tmp_path / "images", 12, seed=3, num_bad=1)
    model = {"factory": "models:colours", "task": toy_task.NAME, "runtime": toy_runtime.NAME}
    job = write_job(
        tmp_path / "job.yaml",
        {"uri": str(tmp_path / "images"), "format": "images"},
        str(tmp_path / "out"),
        model=model,
        gates={"max_error_pct": 50.0, "options": {toy_gate.NAME: {"max_rows": 12}}},
    )
    asked = ("--date", "2026-11-24", "--set", f"sink.table={toy_table.NAME}")
    refused = pipeline(
        "run", job, *asked, "--set", f"gates.options.{toy_gate.NAME}.max_rows=11", env=env
    )
    assert refused.code == 3, refused.stderr
    assert "row_budget: 12 rows; limit 11" in refused.stderr
    done = pipeline("run", job, *asked, env=env)
    assert done.code == 0, done.stderr
    store = Store(str(tmp_path / "out"))
    parts = toy_table.listed(store)
    assert parts
    rows = [row for part in parts for row in pq.read_table(tmp_path / "out" / part).to_pylist()]
    assert len(rows) == 11
    assert all(row[toy_task.NAME] > 0 for row in rows)
    assert pipeline("verify", store.uri, "--partition", "date=2026-11-24", env=env).code == 0
