"""Carried rows that are predicted again agree, or the run is refused with their names."""

from __future__ import annotations

import pytest

from pipeline.gates.gate import Figures
from pipeline.gates.history import Past
from pipeline.gates.judging import judge
from pipeline.gates.results import GateResult
from pipeline.job.gates import Gates

DIFFERING = [f"{name}.jpg: expected 'cat' 0.9800, found 'dog' 0.7000" for name in "abcde"]


def judged(
    carried: int, checked: int, differing: int = 0, mode: str = "fail", *, is_retry: bool = False
) -> GateResult:
    figures = Figures(
        1_000, 1_000, 0, 1, num_carried=carried, num_checked=checked,
        differing=DIFFERING[:differing], is_retry=is_retry,
    )  # fmt: skip
    results = judge(Gates.model_validate({"carried_mode": mode}), figures, Past())
    return next(result for result in results if result.name == "carried")


@pytest.mark.parametrize(
    ("carried", "checked", "differing", "mode", "status"),
    [
        (900, 16, 0, "fail", "pass"),
        (900, 16, 1, "fail", "fail"),
        (900, 16, 1, "warn", "warn"),
        (900, 16, 1, "off", "off"),
        (900, 0, 0, "fail", "warn"),
        (0, 0, 0, "fail", "off"),
        (0, 3, 0, "fail", "pass"),  # all of them were predicted again
        (0, 3, 1, "fail", "fail"),
    ],
)
def test_one_row_that_differs_refuses(
    carried: int, checked: int, differing: int, mode: str, status: str
):
    assert judged(carried, checked, differing, mode).status == status


def test_the_refusal_names_the_first_rows_and_says_how_to_go_on():
    result = judged(900, 16, 5)
    assert (result.value, result.limit) == (68.75, 100.0)
    assert result.message.startswith("11 of 16 carried rows agree when they are predicted again;")
    assert all(row in result.message for row in DIFFERING[:3])
    assert "; and 2 more; with --no-reuse the next run predicts all rows" in result.message
    assert "more" not in judged(900, 16, 3).message
    assert "--no-reuse" not in judged(900, 16).message


def test_why_it_is_off_is_said():
    assert judged(0, 0).message == "nothing was carried"
    assert judged(9, 9, mode="off").message == "not judged: the gate is off"
    assert judged(199, 0, is_retry=True).message.startswith("a retry")
