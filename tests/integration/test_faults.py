"""The table of faults names a test for each line, and each of these tests exists."""

from __future__ import annotations

import functools
import re

import pytest
from support.runs.checkout import TESTS

from pipeline.core.errors import JobError
from pipeline.execution.cluster.connect import connect

NUM_LINES = {"F": 99, "S": 24}
"""At least so many of each kind."""
_ROW = re.compile(r"^\| ([FS]\d+) \| (.+?) \| (.+?) \|$", re.MULTILINE)
_FUNCTION = re.compile(r"^def (\w+)", re.MULTILINE)
_TEST = re.compile(r"`(\w+)::(\w+)`")
_BENCH = re.compile(r"`(bench/\w+\.py)`")


def table() -> list[tuple[str, str, str]]:
    return _ROW.findall((TESTS / "faults.md").read_text("ascii"))


@functools.cache
def named_in(file: str) -> set[str]:
    """Tests of all files of a name: folders have files of the same one."""
    texts = (path.read_text() for path in TESTS.rglob(f"{file}.py"))
    return {name for text in texts for name in _FUNCTION.findall(text)}


def test_every_fault_has_its_line():
    lines = [line for line, _, _ in table()]
    for letter, num_lines in NUM_LINES.items():
        numbers = sorted(int(line[1:]) for line in lines if line[0] == letter)
        assert numbers == [*range(1, max(num_lines, len(numbers)) + 1)]


def test_every_test_in_the_table_exists():
    for line, _, where in table():
        references = _TEST.findall(where)
        assert references or where == "-" or where.startswith("not held: "), line
        for file, name in references:
            assert name.startswith("test_"), line
            assert name in named_in(file), f"{line}: {file}::{name}"
        for bench in _BENCH.findall(where):
            assert (TESTS / bench).is_file(), f"{line}: {bench}"


@pytest.mark.parametrize("what", ["CLOUDPICKLE_TENSOR_METADATA", "PICKLE_OBJECT_SCALAR", "X"])
def test_an_environment_that_lets_files_run_code_is_refused(
    what: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(f"RAY_DATA_AUTOLOAD_{what}", "1")
    with pytest.raises(JobError, match=f"RAY_DATA_AUTOLOAD_{what}=1"), connect(None):
        pytest.fail("it started")
