"""gpu.py and gpu_hour.py run; here on the CPU, up to the device nothing is another."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.runs.cli import environment

BENCH = Path(__file__).parent


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCH / program, *arguments],
        env=environment(),
        capture_output=True,
        check=False,
        text=True,
    )


@pytest.mark.slow
def test_a_detector_is_measured_beside_the_model_alone(tmp_path: Path):
    page = tmp_path / "page.md"
    wanted = ["detector", "--detector-px", "64", "--rows", "24", "--cpu", "--page", str(page)]
    done = run("gpu.py", *wanted)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["skipped"] == {}
    [found] = document["results"]
    assert [found[name] for name in ("model", "runtime", "precision")] == [
        "detector",
        "eager",
        "fp32",
    ]
    for name in ("decoded_rows_per_s", "in_memory_rows_per_s", "whole_rows_per_s", "host_cpu_s"):
        assert found[name] > 0, name
    assert "| ours eager fp32 |" in page.read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_hour_on_a_gpu_gives_a_verdict_for_every_step_that_can_run_here():
    small = ["--rows", "32", "--seconds", "0.4", "--model", "mobilenet_v3_small"]
    done = run("gpu_hour.py", "--cpu", *small)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    verdicts = {step: each["verdict"] for step, each in found.items()}
    assert verdicts == {
        **dict.fromkeys(("tests", "sticky", "races"), "pass"),
        **dict.fromkeys(("facts", "spin", "alone", "gaps", "layout"), "figure"),
        "memory": "not here",
    }


def verdicts_of(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = run("gpu_hour.py", *arguments)
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_step_that_fails_or_does_not_end_stops_no_other_and_is_told():
    code, found = verdicts_of("memory", "layout", "--cpu", "--model", "no_such_model")
    assert code == 1
    assert [each["verdict"] for each in found.values()] == ["not here", "fail"]
    assert "Unknown model no_such_model" in found["layout"]["said"]
    code, found = verdicts_of("spin", "--cpu", "--minutes", "0.0001")
    assert (code, found["spin"]["verdict"]) == (1, "fail")
    assert found["spin"]["said"].startswith("no end after")
