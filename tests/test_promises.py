"""Each promise and each fault has a test: tests/README.md and faults.md name it."""

from __future__ import annotations

import functools
import re

from support.runs.checkout import TESTS
from support.runs.documents import DOCUMENTS

README = DOCUMENTS["tests/README.md"]
NUM_LINES = {"F": 99, "S": 24}
"""The least number of faults of each letter."""
STARTS_RAY = re.compile(r"pytest\.mark\.(ray|one_ray|any_ray\w*)\b|\bray_head: ")
_FAULT = re.compile(r"^\| ([FS]\d+) \| (.+?) \| (.+?) \|$", re.MULTILINE)
_FUNCTION = re.compile(r"^def (\w+)", re.MULTILINE)
_TEST = re.compile(r"`(\w+)::(\w+)`")
_BENCH = re.compile(r"`(bench/\w+\.py)`")


def section(document: str, heading: str) -> str:
    return document.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def faults() -> list[tuple[str, str, str]]:
    return _FAULT.findall((TESTS / "faults.md").read_text("ascii"))


@functools.cache
def functions_of(module: str) -> set[str]:
    """Functions of all test modules of a name: several folders may have one of that name."""
    texts = (path.read_text() for path in TESTS.rglob(f"{module}.py"))
    return {name for text in texts for name in _FUNCTION.findall(text)}


def test_each_promise_of_the_readme_has_tests():
    promised = re.findall(r"^\| ([A-Z][^|]*\.) \|", section(README, "Promises"), re.MULTILINE)
    guarantees = section(DOCUMENTS["README.md"], "What a run guarantees")
    wanted = re.findall(r"^\| ([A-Z][^|]*\.) \|", guarantees, re.MULTILINE)
    assert len(wanted) >= 5
    assert set(wanted) <= set(promised)


def test_each_module_at_the_top_and_in_integration_holds_a_promise():
    table = section(README, "Promises")
    paths = [*TESTS.glob("test_*.py"), *TESTS.glob("integration/test_*.py")]
    names = {path.relative_to(TESTS).as_posix() for path in paths} - {"test_promises.py"}
    assert {name for name in names if f"]({name})" not in table} == set()


def test_the_table_of_tests_with_a_ray_names_the_files_that_have_some():
    table = section(README, "Tests with a Ray")
    listed = set(re.findall(r"\((\w+/[\w/]*test_\w+\.py)\)", table))
    files = {path for path in TESTS.rglob("test_*.py") if STARTS_RAY.search(path.read_text())}
    assert listed == {path.relative_to(TESTS).as_posix() for path in files}


def test_the_table_of_faults_leaves_out_no_number():
    lines = [line for line, _, _ in faults()]
    for letter, num_lines in NUM_LINES.items():
        numbers = sorted(int(line[1:]) for line in lines if line[0] == letter)
        assert numbers == [*range(1, max(num_lines, len(numbers)) + 1)]


def test_each_test_in_the_table_of_faults_exists():
    for line, _, where in faults():
        references = _TEST.findall(where)
        assert references or where == "-" or where.startswith("not held: "), line
        for module, name in references:
            assert name.startswith("test_"), line
            assert name in functions_of(module), f"{line}: {module}::{name}"
        for bench in _BENCH.findall(where):
            assert (TESTS / bench).is_file(), f"{line}: {bench}"
