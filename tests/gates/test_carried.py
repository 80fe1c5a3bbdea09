"""Carried rows that are predicted again agree, or the run is refused with their names."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipeline.core.schema import CLASSIFY_FIELDS
from pipeline.gates.carried import differing_rows
from pipeline.gates.gate import Figures
from pipeline.gates.history import Past
from pipeline.gates.judging import judge
from pipeline.gates.results import GateResult
from pipeline.job.gates import Gates
from pipeline.models.agreement import AgreementLimits
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec

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


def test_rows_are_compared_by_the_agreement_of_their_task():
    task = make_task(TaskSpec("classify", labels=("cat", "dog", "cow"), top_k=2))
    limits = AgreementLimits(max_score_diff=0.01, min_cosine=1.0, max_relative_error=0.0)

    def rows(*scores: float) -> pa.Table:
        entries = [
            [{"label": "cat", "label_id": 0, "score": s}, {"label": "dog", "label_id": 1,
              "score": 0.1}]
            for s in scores
        ]  # fmt: skip
        return pa.Table.from_pylist(
            [{**each[0], "top_k": each} for each in entries], pa.schema(CLASSIFY_FIELDS)
        )

    ids, known = ["a.jpg", "b.jpg", "c.jpg"], rows(0.8, 0.7, 0.6)
    assert differing_rows(task, ids, known, known, limits) == []
    found = differing_rows(task, ids, known, rows(0.805, 0.5, 0.6), limits)
    assert found == ["b.jpg: expected 'cat' 0.7000, found 0.5000"]
    of_retry = judged(199, 0, is_retry=True)
    assert (of_retry.status, of_retry.message[:7]) == ("off", "a retry")
