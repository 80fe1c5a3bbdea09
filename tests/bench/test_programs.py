"""The programs find what they import, and the one for a GPU runs on the CPU."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.runs.cli import environment

BENCH = Path(__file__).parent


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
    command = [sys.executable, BENCH / "gpu.py", "detector"]
    done = subprocess.run(
        [*command, "--detector-px", "64", "--rows", "24", "--cpu"],
        env=environment(),
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["skipped"] == {}
    [result] = document["results"]
    assert (result["model"], result["runtime"], result["precision"]) == (
        "detector",
        "eager",
        "fp32",
    )
    for name in ("one_decoder", "model_alone", "whole", "steady"):
        assert result[f"{name}_rows_per_s"] > 0, name
