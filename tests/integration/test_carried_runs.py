"""Whole runs that carry rows, one of which stands still while another one publishes."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from models import LABELS
from PIL import Image
from support.models.model_cases import colours_state
from support.runs.cli import pipeline, start, wait_until, working, write_job
from support.runs.published_rows import read_predictions

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import current_manifest
from pipeline.storage.store import Store

NUM_ROWS = 60


@pytest.mark.no_ray
@pytest.mark.slow
@pytest.mark.parametrize("step", ["tiled", "compacted", "before_log", "before_current"])
def test_a_run_that_stood_still_while_another_published_changes_nothing(step: str, tmp_path: Path):
    photos, out, weights = (tmp_path / name for name in ("in", "out", "weights.pt"))
    photos.mkdir()
    for row in range(NUM_ROWS):
        colour = (4 * row, 255 - 4 * row, (16 * row) % 256)
        Image.new("RGB", (24, 24), colour).save(photos / f"{row:03d}.png")
    torch.save(colours_state(), weights)
    job = write_job(
        tmp_path / "job.yaml",
        {"uri": str(photos), "format": "images"},
        str(out),
        model={"factory": "models:colours", "labels": LABELS, "weights": str(weights)},
        run={"slice_rows": 8, "lease_ttl_s": 1},
    )
    assert pipeline("run", job, "--date", "2026-11-24").code == 0
    second = ("run", job, "--date", "2026-11-25")
    still = start(*second, env={"PIPELINE_FAILPOINT": f"{step}:stop"})
    try:
        process = working(still)
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, still)
        while (other := pipeline(*second)).code == 4:  # until the lease has run out
            pass
        assert other.code == 0, other.stderr
        current = current_manifest(Store(str(out)), Layout("date=2026-11-25"))
        assert current is not None
        assert current.carried["rows"] > 0
        published = read_predictions(str(out), "date=2026-11-25")
        process.send_signal(signal.SIGCONT)
        _, stderr = still.communicate(timeout=240)
    finally:
        still.kill()
    assert still.returncode in (0, 4, 5), stderr
    assert read_predictions(str(out), "date=2026-11-25").equals(published)
    expected: pa.Table = read_predictions(str(out), "date=2026-11-24")
    exact = ["row_id", "label", "label_id"]
    assert expected.num_rows == NUM_ROWS
    assert published.select(exact).equals(expected.select(exact))
    # In another batch a row may be rounded in another way.
    assert np.allclose(published["score"], expected["score"], rtol=0, atol=1e-6)
    ended = pipeline("verify", str(out), "--partition", "date=2026-11-25")
    assert ended.code == 0, ended.stdout
