"""A lost CUDA context costs the row that loses it, and none of the slices in flight another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.faults.gpu_worker import BATCH_SIZE, slice_of
from support.runs.checkout import PYTHONPATH
from support.runs.predicting import predictor, rows_of

from pipeline.execution.ray_options import CALLS_AT_ONCE

pytestmark = pytest.mark.early

NUM_ROWS, WHITE_ROW = 3 * BATCH_SIZE - 2, BATCH_SIZE + 3
MOST_WORKERS = 4


@pytest.mark.slow
def test_a_lost_context_costs_exactly_the_row_that_loses_it(tmp_path: Path):
    arguments = ("gpu_models:poisoned", NUM_ROWS, WHITE_ROW, str(tmp_path))
    program = f"from support.faults import gpu_worker; gpu_worker.main{arguments}"
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([PYTHONPATH, *sys.path])}
    messages: list[str] = []
    for _ in range(MOST_WORKERS):  # as Ray starts an actor again
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=200, check=False
        )
        messages.append(done.stderr)
        if done.returncode == 0:
            break
        assert done.returncode == 1, done.stderr
    assert len(messages) >= 2, messages
    assert "Fake L4 of " in messages[0]
    assert "its CUDA context is lost" in messages[0]
    on_cpu = predictor("models:colours", BATCH_SIZE)
    for number in range(CALLS_AT_ONCE):
        white = [WHITE_ROW] if number == 0 else []
        predicted = pq.read_table(tmp_path / f"{number}.parquet").to_pylist()
        errors = {row["row_id"]: row["error"] for row in predicted if row["error"]}
        assert errors == {f"r{row}": "native_crash" for row in white}
        expected = on_cpu.predict(rows_of(slice_of(NUM_ROWS, white)), {}).to_pylist()
        for index, (mine, theirs) in enumerate(zip(predicted, expected, strict=True)):
            assert index in white or mine["label"] == theirs["label"]
