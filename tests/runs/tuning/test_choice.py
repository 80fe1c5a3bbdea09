"""Test the pure choice of a runtime for a job that leaves it open."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.job.model import Model
from pipeline.models.spec import ModelSpec
from pipeline.models.tasks.base import TaskSpec
from pipeline.planning.allocation import Allocation
from pipeline.planning.plan import model_digest
from pipeline.preprocessing.table_input import FeatureInput
from pipeline.runs.tuning.choice import Choice, measured, settled
from pipeline.runs.tuning.profile import Profile
from pipeline.runs.tuning.selection import (
    GIVEN_UP,
    LEAST_BUDGET_S,
    LEAST_RUN_S,
    MAX_ATTEMPTS,
    SHARE,
    UNASKED_ROWS,
    Budget,
    Trial,
    expected_s,
    fastest_known,
    has_rows_to_measure,
    is_worth_trying,
)

TWO = Allocation(2, 2, 0.9, 0.0, 1, 1, 0, 0)
EAGER = Trial("eager", "fp32", rows_per_s=100, load_s=1, agreement_pct=100)
FAST = Trial(
    *("openvino", "fp32", 200, 1, 100),
    num_compared=64,
    took_s=6,
    measured_by="20261127T000000Z-1",
    measured_at="2026-11-27",
)
LATE = Trial("onnxruntime", "fp32", problem=f"{GIVEN_UP} after 4 s", took_s=4, attempts=1)
OTHERS = ("openvino", "onnxruntime")
MANY = 100_000


def choice_of(
    *ways: Trial, num_rows: int | None = MANY, others: tuple[str, ...] = OTHERS
) -> Choice:
    return settled(Profile(ways), 99.0, num_rows, TWO, others)


def test_what_is_known_to_be_faster_is_taken_and_said():
    choice = choice_of(EAGER, FAST, others=("openvino",))
    assert (choice.way, choice.reason, choice.gain) == (FAST, "known", 2.0)
    assert choice.text == (
        "openvino fp32, as measured on 2026-11-27 by run 20261127T000000Z-1: 2 times eager fp32, "
        "agreement 100% of 64 rows"
    )
    assert choice_of(EAGER, FAST).text == f"{choice.text}; not measured: onnxruntime"
    assert choice_of(EAGER, FAST, replace(LATE, problem="crashed")).text == choice.text


@pytest.mark.parametrize(
    ("ways", "others", "reason", "says"),
    [
        ((), OTHERS, "unknown", "openvino is not measured, onnxruntime is not measured"),
        ((EAGER,), OTHERS, "unknown", "runs of a minute or more measure first"),
        ((EAGER, LATE), OTHERS, "unknown", "onnxruntime given up after 4 s"),
        ((FAST,), OTHERS, "unknown", "pipeline tune"),
        ((EAGER, FAST), (), "unknown", "no other runtime that is installed can run it"),
        ((EAGER, FAST), ("onnxruntime",), "unknown", "onnxruntime is not measured"),
        ((EAGER, replace(FAST, agreement_pct=98.9)), OTHERS, "unknown", "agrees on 98.9%"),
        ((EAGER, replace(FAST, agreement_pct=98.9)), OTHERS[:1], "known", "agrees on 98.9%"),
        ((EAGER, replace(FAST, problem="crashed")), OTHERS[:1], "known", "be used: crashed"),
        ((EAGER, replace(FAST, rows_per_s=105)), OTHERS[:1], "known", "1.1 times eager fp32"),
    ],
)
def test_it_stays_eager_and_says_why(
    ways: tuple[Trial, ...], others: tuple[str, ...], reason: str, says: str
):
    choice = choice_of(*ways, others=others)
    assert (choice.way.runtime, choice.way.precision, choice.reason) == ("eager", "fp32", reason)
    assert says in choice.text
    assert ("pipeline tune" in choice.text) == (reason == "unknown" and bool(others))


def test_fewer_bits_are_never_taken_unasked():
    coarse = replace(FAST, precision="bf16", rows_per_s=1_000)
    assert fastest_known([EAGER, coarse], 99.0, MANY, TWO) == EAGER


def test_a_run_that_is_over_before_the_start_has_paid_stays_eager():
    slow_start = replace(FAST, load_s=5.0)
    assert fastest_known([EAGER, slow_start], 99.0, 200, TWO) == EAGER
    assert fastest_known([EAGER, slow_start], 99.0, MANY, TWO) == slow_start
    assert fastest_known([EAGER, slow_start], 99.0, None, TWO) == slow_start
    # 2.5 s where eager takes 4 s, but 1.2 s more for the rows that are predicted twice.
    assert fastest_known([EAGER, FAST], 99.0, 600, TWO) == EAGER
    assert fastest_known([EAGER, FAST], 99.0, 900, TWO) == FAST


def test_a_choice_survives_the_store():
    choice = measured(Profile((EAGER, FAST)), FAST)
    assert choice.text == "auto chose openvino fp32: 2 times eager fp32, agreement 100% of 64 rows"
    assert Choice.from_dict(json.loads(json.dumps(choice.to_dict()))) == choice


@given(st.floats(0, 1e6), st.booleans())
def test_a_run_measures_for_a_tenth_of_its_time_and_unasked_only_from_a_minute_on(
    run_s: float, is_asked: bool
):
    assert SHARE <= 0.1
    assert LEAST_BUDGET_S <= 10
    assert LEAST_RUN_S >= 60
    budget = Budget(is_asked=is_asked, clock=lambda: 0.0)
    assert budget.left_s == (LEAST_BUDGET_S if is_asked else 0)
    budget.expect(run_s)
    if is_asked:
        assert budget.left_s == max(LEAST_BUDGET_S, SHARE * run_s)
    else:
        assert budget.left_s == (SHARE * run_s if run_s >= LEAST_RUN_S else 0)


@given(st.integers(0, 10**9), st.integers(1, 1_000), st.integers(1, 10_000))
def test_what_an_actor_predicts_to_measure_eager_is_a_tenth_of_its_rows_at_most(
    num_rows: int, num_actors: int, batch_rows: int
):
    if has_rows_to_measure(num_rows, num_actors, batch_rows):
        assert UNASKED_ROWS + 2 * batch_rows <= SHARE * num_rows / num_actors
    assert has_rows_to_measure(10**10, num_actors, batch_rows)
    assert not has_rows_to_measure(None, num_actors, batch_rows)


def test_the_budget_counts_from_the_beginning_on():
    now = [100.0]
    budget = Budget(clock=lambda: now[0])
    now[0] += 2
    assert budget.left_s == LEAST_BUDGET_S - 2
    budget.expect(1_000)
    assert budget.left_s == 98
    now[0] += 100
    assert budget.left_s < 0
    assert Budget(is_bounded=False, clock=lambda: now[0]).left_s == math.inf


def test_how_long_a_run_takes_follows_from_its_rows_and_the_rate_of_eager():
    assert expected_s(EAGER, 20_000, TWO) == 101
    assert expected_s(EAGER, None, TWO) == 0


def test_what_was_given_up_is_tried_a_few_times():
    assert is_worth_trying(None, 4.0)
    assert not is_worth_trying(FAST, math.inf)
    assert is_worth_trying(LATE, 4.0)
    assert not is_worth_trying(replace(LATE, attempts=MAX_ATTEMPTS), math.inf)
    assert not is_worth_trying(None, 0.0)


def test_a_profile_keeps_what_was_known_of_other_ways():
    known = Profile((EAGER, replace(FAST, batches=[(8, 10.0), (32, 12.5)])))
    newer = replace(FAST, rows_per_s=300)
    profile = known.with_way(newer)
    assert (profile.of("openvino", "fp32"), profile.eager) == (newer, EAGER)
    assert profile.gain(newer) == 3.0
    assert Profile.from_dict(json.loads(json.dumps(known.to_dict()))) == known


@pytest.mark.parametrize(
    ("fields", "is_pinned"),
    [
        ({}, False),
        ({"runtime": None}, False),
        ({"runtime": "eager"}, True),
        ({"precision": "fp32"}, True),
        ({"runtime": "auto"}, True),
    ],
)
def test_only_a_job_that_says_neither_leaves_the_runtime_open(
    fields: dict[str, str | None], is_pinned: bool
):
    assert Model(name="resnet18", **fields).is_pinned == is_pinned


def test_a_job_that_pins_eager_is_another_than_one_that_leaves_it_open():
    task = TaskSpec("classify", labels=("a",))
    free = ModelSpec("m", "factory", "", None, None, FeatureInput(), task, "fp32")
    pinned = replace(free, is_pinned=True)
    assert (free.takes_fastest, pinned.takes_fastest) == (True, False)
    assert model_digest(free) != model_digest(pinned)
    fast, other = replace(free, runtime="openvino"), replace(pinned, runtime="openvino")
    assert model_digest(fast) == model_digest(other)
