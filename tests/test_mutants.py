"""What `make mutants` says is what mutmut found."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest
from support.runs.mutants import LISTED, Accepted, Mutant, judge, outcome_of, results

ROOT = LISTED.parent.parent
MUTATED = """
def x_limit__mutmut_orig(rows, least=1):
    why = "few rows"
    return rows >= least


def x_limit__mutmut_1(rows, least=2):
    why = "few rows"
    return rows >= least


def x_limit__mutmut_2(rows, least=1):
    why = "XXfew rowsXX"
    return rows >= least


def x_limit__mutmut_3(rows, least=1):
    why = "few rows"
    return rows > least


class Gate:
    def xǁGateǁon__mutmut_orig(self):
        return self.mode != "off"

    def xǁGateǁon__mutmut_1(self):
        return self.mode != "OFF"
"""
NAMES = ("x_limit__mutmut_1", "x_limit__mutmut_2", "x_limit__mutmut_3", "xǁGateǁon__mutmut_1")
FILE = "pipeline/gates/limits.py"
ACCEPTED = Accepted(FILE, "return rows >= least", "both are refused elsewhere")


def found(folder: Path, *exit_codes: int | None) -> list[Mutant]:
    path = folder / "mutants" / FILE
    path.parent.mkdir(parents=True)
    path.write_text(MUTATED)
    codes = {f"pipeline.gates.limits.{name}": c for name, c in zip(NAMES, exit_codes, strict=True)}
    path.with_name("limits.py.meta").write_text(json.dumps({"exit_code_by_key": codes}))
    return results(folder)


def test_each_fault_is_shown_as_the_line_that_it_changes(tmp_path: Path):
    one, wording, other, in_class = found(tmp_path, 1, 0, 36, 33)
    assert (one.line, one.becomes) == ("def f(rows, least=1):", "def f(rows, least=2):")
    assert (other.line, other.becomes) == ("return rows >= least", "return rows > least")
    assert in_class.becomes == 'return self.mode != "OFF"'
    assert [each.is_wording for each in (one, wording, other, in_class)] == [
        False,
        True,
        False,
        False,
    ]
    outcomes = [each.outcome for each in (one, wording, other, in_class)]
    assert outcomes == ["killed", "survived", "timeout", "no tests"]
    assert (outcome_of(None), outcome_of(0), outcome_of(2)) == ("not run", "survived", "survived")


@pytest.mark.parametrize(
    ("line", "becomes", "is_wording", "is_lenient"),
    [
        ('Check("a", "b", "no plan")', 'Check("a", "b", "NO PLAN")', True, False),
        ('Check("a", "b", "no plan")', 'Check("a", None, "no plan")', False, False),
        ('Check("a", "b", "no plan")', 'Check("a", "B", "no plan")', False, False),
        ("zip(a, b, strict=True)", "zip(a, b, strict=None)", False, True),
        ("zip(a, b, strict=True)", "zip(a, b, )", False, True),
        ("zip(a, b, strict=True)", "zip(a, None, strict=True)", False, False),
        ("f(a, b)", "f(a, )", False, False),
    ],
)
def test_faults_of_words_and_of_checks_that_cannot_fail_are_told_apart(
    line: str, becomes: str, is_wording: bool, is_lenient: bool
):
    mutant = Mutant("x", FILE, line, becomes, "survived")
    assert (mutant.is_wording, mutant.is_lenient) == (is_wording, is_lenient)


@pytest.mark.parametrize(
    ("codes", "accepted", "least_pct", "is_enough", "said"),
    [
        ((1, 0, 1, 1), [], 100, True, "pipeline/gates: 100.0% of 3 killed (3 killed, 1 wording)"),
        ((1, 0, 0, 1), [], 67, False, "66.7% of 3 killed"),
        ((1, 0, 0, 1), [], 66, True, "  + return rows > least"),
        ((1, 0, 0, 1), [ACCEPTED], 100, True, "100.0% of 2 killed"),
        ((1, 0, 1, 1), [ACCEPTED], 0, False, "killed by now, take it out of mutants.toml"),
        ((1, 0, None, 1), [], 0, False, "1 not run"),
        ((1, 0, 1, 33), [], 67, False, "no tests: pipeline.gates.limits.x"),
    ],
)
def test_a_part_is_fine_only_if_enough_of_its_faults_are_killed(
    codes: tuple[int | None, ...],
    accepted: list[Accepted],
    least_pct: float,
    is_enough: bool,
    said: str,
    tmp_path: Path,
):
    is_fine, lines = judge(found(tmp_path, *codes), accepted, least_pct)
    assert is_fine == is_enough
    assert said in "\n".join(lines)


def test_a_sample_says_nothing_of_what_was_not_tried(tmp_path: Path):
    accepted = [ACCEPTED, Accepted(FILE, 'return self.mode != "off"', "no mode is")]
    is_fine, lines = judge(found(tmp_path, 1, 0, None, None), accepted, 100, is_sample=True)
    assert is_fine
    assert lines == ["pipeline/gates: 100.0% of 1 killed (1 killed, 1 wording)"]


def test_what_is_listed_is_there_and_has_reasons():
    listed = tomllib.loads(LISTED.read_text())
    for part in listed["parts"].values():
        assert all([*ROOT.glob(name)] for name in (*part["mutate"], *part.get("skip", ())))
        assert all((ROOT / test).exists() for test in part["tests"])
    known = {field.name for field in dataclasses.fields(Accepted)}
    for each in listed.get("accepted", []):
        assert {*each} <= known
        assert each["reason"].strip()
        text = (ROOT / each["file"]).read_text()
        assert all(line in text for line in each["line"].split("\n")), each["line"]
