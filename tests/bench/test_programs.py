"""The programs of bench find their imports, and the one for GPUs runs on a CPU."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs.cli import environment

BENCH = Path(__file__).parent


PROGRAMS = {path.stem: path.read_text() for path in sorted(BENCH.glob("*.py"))}
OURS = ("pipeline", "support", "models")


def lacks(module: str, name: str) -> bool:
    """Programs are not imported: some need what only a measurement has."""
    if module in PROGRAMS:
        definition = rf"^(?:def |class |(?:\w+, )*){name}\b"
        return re.search(definition, PROGRAMS[module], re.MULTILINE) is None
    return module.split(".")[0] in OURS and not hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_finds_what_it_imports(program: str):
    imports = [n for n in ast.walk(ast.parse(PROGRAMS[program])) if isinstance(n, ast.ImportFrom)]
    names = [(str(node.module), alias.name) for node in imports for alias in node.names]
    assert [(module, name) for module, name in names if lacks(module, name)] == []


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
