"""The programs find what they import, and those for a GPU run on the CPU, as far as they can."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
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


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Files of programs, which can be imported until the test ends."""
    before = {*sys.modules}
    monkeypatch.syspath_prepend(BENCH)
    paths = [path for path in sorted(BENCH.glob("*.py")) if not path.stem.startswith("test_")]
    yield paths
    for name in {path.stem for path in paths} - before:
        sys.modules.pop(name, None)


def test_all_programs_find_what_they_import(programs: list[Path]):
    for path in programs:
        importlib.import_module(path.stem)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pipeline."):
                module = importlib.import_module(str(node.module))
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert missing == [], f"{path.name}: {node.module}"


@pytest.mark.slow
def test_a_detector_is_measured_beside_the_model_alone():
    done = run("gpu.py", "detector", "--detector-px", "64", "--rows", "24", "--cpu")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["skipped"] == {}
    [result] = document["results"]
    assert [result[name] for name in ("model", "runtime", "precision")] == [
        "detector",
        "eager",
        "fp32",
    ]
    for name in ("one_decoder", "model_alone", "whole", "steady"):
        assert result[f"{name}_rows_per_s"] > 0, name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_hour_on_a_gpu_gives_a_verdict_for_every_step_that_can_run_here():
    small = ["--rows", "32", "--seconds", "0.4", "--model", "mobilenet_v3_small"]
    done = run("gpu_hour.py", "--cpu", *small)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    verdicts = {step: outcome["verdict"] for step, outcome in outcomes.items()}
    assert verdicts == {
        **dict.fromkeys(("tests", "sticky", "races"), "pass"),
        **dict.fromkeys(("facts", "spin", "alone"), "figure"),
        "memory": "not here",
    }


def verdicts_of(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = run("gpu_hour.py", *arguments)
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_step_that_fails_or_does_not_end_stops_no_other_and_is_told():
    code, outcomes = verdicts_of("memory", "alone", "--cpu", "--rows=8", "--model=no_such_model")
    assert code == 1
    assert [outcome["verdict"] for outcome in outcomes.values()] == ["not here", "fail"]
    assert "Unknown model no_such_model" in outcomes["alone"]["said"]
    code, outcomes = verdicts_of("spin", "--cpu", "--minutes", "0.0001")
    assert (code, outcomes["spin"]["verdict"]) == (1, "fail")
    assert outcomes["spin"]["said"].startswith("no end after")
