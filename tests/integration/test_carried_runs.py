"""Whole runs that carry rows, one of which stands still while another one publishes."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from models import LABELS, TRANSFORM
from PIL import Image
from support.models.model_cases import colours_state
from support.runs.cli import pipeline, start, wait_until, working

NUM_ROWS = 60


def write_job(folder: Path) -> str:
    photos = folder / "in"
    photos.mkdir()
    for row in range(NUM_ROWS):
        colour = (4 * row, 255 - 4 * row, (16 * row) % 256)
        Image.new("RGB", (24, 24), colour).save(photos / f"{row:03d}.png")
    torch.save(colours_state(), folder / "weights.pt")
    job = {
        "source": {"uri": str(photos), "format": "images"},
        "model": {
            "factory": "models:colours",
            "labels": LABELS,
            "weights": str(folder / "weights.pt"),
        },
        "transform": TRANSFORM,
        "run": {"slice_rows": 8, "lease_ttl_s": 1},
        "sink": {"uri": str(folder / "out"), "partition": "date=${date}"},
        "resources": {"max_actors": 1},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return str(path)


def predictions(folder: Path, date: str) -> pa.Table:
    parts = sorted((folder / "out" / "predictions" / f"date={date}").glob("part-*"))
    return pa.concat_tables([pq.ParquetFile(part).read() for part in parts])


def assert_alike(found: pa.Table, expected: pa.Table) -> None:
    """Equal but for the last digits: in another batch a row may be rounded in another way."""
    for table in (found, expected):
        assert table.num_rows == NUM_ROWS
    exact = ["row_id", "label", "label_id"]
    assert found.select(exact).equals(expected.select(exact))
    assert np.allclose(found["score"], expected["score"], rtol=0, atol=1e-6)


def report(folder: Path, date: str) -> dict[str, Any]:
    found = (folder / "out" / "reports" / f"date={date}").glob("*/report.json")
    return dict(json.loads(max(found).read_bytes()))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("step", ["tiled", "compacted", "before_log", "before_current"])
def test_a_run_that_stood_still_while_another_published_changes_nothing(
    step: str, tmp_path: Path
) -> None:
    job, allowed = write_job(tmp_path), ("--allow-import", "models")
    assert pipeline("run", job, "--date", "2026-11-24", *allowed).code == 0
    second = ("run", job, "--date", "2026-11-25", *allowed)
    still = start(*second, env={"PIPELINE_FAILPOINT": f"{step}:stop"})
    try:
        process = working(still)
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, still)
        while (other := pipeline(*second)).code == 4:  # until the lease has run out
            pass
        assert other.code == 0, other.stderr
        published = predictions(tmp_path, "2026-11-25")
        process.send_signal(signal.SIGCONT)
        _, said = still.communicate(timeout=240)
    finally:
        still.kill()
    assert still.returncode in (0, 4, 5), said
    assert report(tmp_path, "2026-11-25")["carried"]["rows"] > 0
    assert predictions(tmp_path, "2026-11-25").equals(published)
    assert_alike(published, predictions(tmp_path, "2026-11-24"))
    ended = pipeline("verify", str(tmp_path / "out"), "--partition", "date=2026-11-25")
    assert ended.code == 0, ended.stdout
