"""Test that agreement is decided per row, and that NaN never agrees."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.models.agreement import Agreement, AgreementLimits, compare_vectors, within
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec

LIMITS = AgreementLimits(max_score_diff=0.05, min_cosine=0.99, max_relative_error=0.01)


def compare(task: str, *pair: dict[str, np.ndarray]) -> Agreement:
    return make_task(TaskSpec(task)).compare(*pair, LIMITS)


def classified(ids: list[int], scores: list[float]) -> dict[str, np.ndarray]:
    return {
        "label_id": np.array([[i, 9] for i in ids], np.int32),
        "score": np.array([[s, 0.0] for s in scores], np.float32),
    }


def test_a_row_needs_the_same_label_and_nearly_the_same_score():
    reference = classified([1, 1, 1, 1], [0.5, 0.5, 0.5, 0.5])
    agreement = compare("classify", reference, classified([1, 2, 1, 1], [0.54, 0.5, 0.4, np.nan]))
    assert agreement.agrees.tolist() == [True, False, False, False]
    assert agreement.pct == 25.0
    assert compare("classify", reference, reference).worst == 0.0


def test_where_ties_are_allowed_either_of_two_labels_of_one_score_may_be_the_best():
    task, ties = make_task(TaskSpec("classify")), LIMITS.with_ties()
    reference = classified([1, 1, 1, 1], [0.5, 0.5, 0.5, 0.5])
    candidate = {
        "label_id": np.array([[2, 1], [2, 1], [2, 3], [2, 1]], np.int32),
        "score": np.array([[0.5, 0.48], [0.5, 0.4], [0.5, 0.2], [0.7, 0.69]], np.float32),
    }
    agreed = [
        task.compare(reference, candidate, limits).agrees.tolist() for limits in (ties, LIMITS)
    ]
    assert agreed == [[True, False, False, False], [False] * 4]


def test_each_limit_itself_is_allowed():
    differences = np.array([0.0, 0.25, 0.5])
    assert within(differences, 0.25).agrees.tolist() == [True, True, False]
    assert within(differences, 0.0).agrees.tolist() == [True, False, False]
    pair = np.array([[3.0, 4.0]]), np.array([[1.0, 0.0]])
    assert [compare_vectors(*pair, cosine).agrees.tolist() for cosine in (0.6, 0.61)] == [
        [True], [False]
    ]  # fmt: skip


def test_vectors_agree_by_their_direction():
    reference = {"embedding": np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])}
    candidate = {"embedding": np.array([[2.0, 0.1], [0.5, 0.5], [0.0, 0.0], [0.0, 1.0]])}
    agreement = compare("embed", reference, candidate)
    assert agreement.agrees.tolist() == [True, False, True, False]


def test_numbers_agree_relative_to_their_usual_size():
    reference = {"value": np.array([[100.0, 100.0], [100.0, 100.0], [0.0, 100.0]])}
    candidate = {"value": np.array([[100.5, 100.0], [100.0, 102.0], [0.5, 100.0]])}
    agreement = compare("regress", reference, candidate)
    # The error at the zero of the last row is relative to the RMS of the output.
    assert agreement.agrees.tolist() == [True, False, True]
    assert agreement.worst == pytest.approx(0.02)


def test_several_outputs_must_all_agree():
    reference = {"a": np.ones((2, 3)), "b": np.ones((2,))}
    candidate = {"a": np.ones((2, 3)), "b": np.array([1.0, 2.0])}
    assert compare("raw", reference, candidate).agrees.tolist() == [True, False]


def test_no_rows_agree_entirely():
    empty = classified([], [])
    empty = {name: values.reshape(0, 2) for name, values in empty.items()}
    assert compare("classify", empty, empty).pct == 100.0


@pytest.mark.parametrize("side", [0, 1])
def test_probabilities_that_are_not_numbers_agree_with_none(side: int):
    sides = [{"score": np.full((3, 2), 0.2)} for _ in range(2)]
    sides[side]["score"][1, 0] = np.nan
    sides[side]["score"][2] = np.nan
    task = make_task(TaskSpec("multilabel", labels=("a", "b"), min_score=0.5))
    assert task.compare(*sides, LIMITS).agrees.tolist() == [True, False, False]


def test_of_probabilities_only_those_that_either_side_keeps_must_agree():
    reference = {"score": np.array([[0.6, 0.1], [0.6, 0.1], [0.49, 0.1], [0.3, 0.1], [0.4, 0.6]])}
    candidate = {"score": np.array([[0.64, 0.4], [0.5, 0.1], [0.51, 0.1], [0.4, 0.4], [0.5, 0.4]])}
    task = make_task(TaskSpec("multilabel", labels=("a", "b"), min_score=0.5))
    agreement = task.compare(reference, candidate, LIMITS)
    assert agreement.agrees.tolist() == [True, False, True, True, False]
    assert agreement.worst == pytest.approx(0.2)
