"""gpu.py measures a detector; here on the CPU, up to the device nothing is another."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli import environment

GPU = Path(__file__).with_name("gpu.py")


@pytest.mark.slow
def test_a_detector_is_measured_beside_the_model_alone():
    wanted = ["detector", "--detector-px", "64", "--rows", "24", "--cpu", "--decode"]
    done = subprocess.run(
        [sys.executable, GPU, *wanted],
        env=environment(),
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["skipped"] == {}
    [found] = document["results"]
    assert [found[name] for name in ("model", "runtime", "precision")] == [
        "detector",
        "eager",
        "fp32",
    ]
    for name in ("decoded_rows_per_s", "in_memory_rows_per_s", "whole_rows_per_s"):
        assert found[name] > 0, name
