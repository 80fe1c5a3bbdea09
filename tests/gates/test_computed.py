"""The rows that a run computed are judged alone, too: carried rows must not hide a broken model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import GateRefused, JobError
from pipeline.core.figures.histograms import Distribution, Numbers
from pipeline.gates.gate import Figures
from pipeline.gates.history import Past
from pipeline.gates.judging import LEAST_ROWS, computed_alone, judge
from pipeline.gates.results import COMPUTED, GateResult, parse_accepted, require_pass
from pipeline.job.gates import Gates

TWICE = ["max_error_pct", "max_reason_pct", "constant", "label_drift", "score_drift"]
CARRIED = 100_000


def pets(cats: int, dogs: int) -> Distribution:
    numbers = {"score": Numbers(0.1, 0.9, {3: cats, 17: dogs})}
    return Distribution({"cat": cats, "dog": dogs}, numbers=numbers)


PAST = Past((CARRIED,), pets(CARRIED // 2, CARRIED // 2), "date=2026-11-23")


def figures_of(
    computed: Distribution,
    num_computed: int,
    *,
    reasons: Mapping[str, int] | None = None,
    before: int = 0,
) -> Figures:
    """A partition of carried rows, half cats and half dogs, and of computed ones."""
    reasons = reasons or {}
    failed = sum(reasons.values())
    whole = Figures(
        num_planned=CARRIED + num_computed,
        num_predicted=CARRIED + num_computed - failed,
        num_quarantined=failed,
        num_shards=9,
        reasons=reasons,
        distribution=pets(CARRIED // 2, CARRIED // 2) + computed,
        num_carried=CARRIED,
        num_checked=16,
    )
    return replace(whole, computed=computed_alone(whole, num_computed, computed, before))


def results_of(figures: Figures, **section: Any) -> dict[str, GateResult]:
    gates = Gates.model_validate({"label_drift": {"mode": "fail"}, **section})
    return {result.name: result for result in judge(gates, figures, PAST)}


def failed(results: dict[str, GateResult]) -> set[str]:
    return {name for name, result in results.items() if result.status == "fail"}


def test_a_model_that_says_dog_to_all_new_rows_is_refused_by_the_computed_rows_alone():
    numbers = {"score": Numbers(0.5, 0.5, {10: 2_000})}
    results = results_of(figures_of(Distribution({"dog": 2_000}, numbers=numbers), 2_000))
    assert failed(results) == {"constant_computed", "label_drift_computed"}
    assert results["score_drift_computed"].status == "warn"
    assert results["constant"].status == results["label_drift"].status == "pass"
    assert "of 2000 computed rows alone: " in results["label_drift_computed"].message
    with pytest.raises(GateRefused, match="--accept label_drift_computed=REASON"):
        require_pass([*results.values()])


def test_a_decoder_that_fails_every_new_row_is_refused_by_the_computed_rows_alone():
    figures = figures_of(Distribution(), 2_000, reasons={"truncated": 2_000})
    results = results_of(figures, max_reason_pct={"truncated": 3.0})
    assert failed(results) == {"max_error_pct_computed", "max_reason_pct_computed"}
    assert results["max_error_pct"].status == "pass"


def test_good_rows_pass_both_times_and_each_result_stands_behind_that_of_all_rows():
    results = results_of(figures_of(pets(1_000, 1_000), 2_000), max_reason_pct={"empty": 1.0})
    assert not failed(results)
    names = [*results]
    for name in TWICE:
        assert names.index(name + COMPUTED) == names.index(name) + 1
        assert (results[name].status, results[name + COMPUTED].status) == ("pass", "pass")
    assert sum(name.endswith(COMPUTED) for name in names) == len(TWICE)
    alone = replace(figures_of(pets(1_000, 1_000), 2_000), computed=None)
    assert not any(name.endswith(COMPUTED) for name in results_of(alone))


@pytest.mark.parametrize(
    ("num_rows", "min_rows", "least"),
    [(99, 0, 100), (99, 100, 100), (100, 0, None), (100, 100, None), (499, 500, 500)],
)
def test_few_computed_rows_prove_nothing(num_rows: int, min_rows: int, least: int | None):
    figures = figures_of(Distribution(), num_rows, reasons={"empty": num_rows})
    results = results_of(figures, min_rows=min_rows)
    result = results["max_error_pct_computed"]
    if least is None:
        assert result.status == "fail"
    else:
        told = f"{num_rows} computed rows; not judged alone below {least}"
        assert (result.status, result.message) == ("off", told)
        assert not failed(results)


@given(
    reasons=st.dictionaries(st.sampled_from(["empty", "truncated"]), st.integers(1, 5_000)),
    new=st.integers(0, 5_000),
)
def test_rows_that_had_failed_before_and_fail_again_refuse_nothing(
    reasons: dict[str, int], new: int
):
    num_failed = sum(reasons.values())
    figures = figures_of(
        pets(new // 2, new - new // 2), num_failed + new, reasons=reasons, before=num_failed
    )
    assert figures.computed is not None
    assert figures.computed.num_planned == figures.computed.num_predicted == new
    results = results_of(figures, max_error_pct=1.0, max_reason_pct={"empty": 1.0})
    assert not {"max_error_pct_computed", "max_reason_pct_computed"} & failed(results)


@given(old=st.integers(0, 3_000), new=st.integers(0, 3_000), good=st.integers(0, 3_000))
def test_of_the_failed_rows_only_those_beyond_the_failed_ones_of_before_count(
    old: int, new: int, good: int
):
    figures = figures_of(pets(good, 0), old + new + good, reasons={"empty": old + new}, before=old)
    alone = figures.computed
    assert alone is not None
    assert (alone.num_quarantined, alone.num_planned) == (new, new + good)
    assert alone.num_predicted == good


@pytest.mark.parametrize("num_rows", [LEAST_ROWS, 300, 1_000, 10_000])
@pytest.mark.parametrize("limit", [1.0, 5.0, 20.0])
def test_chance_refuses_one_night_of_a_thousand_at_most_and_a_limit_passed_threefold_is_seen(
    num_rows: int, limit: float
):
    """Nights of which each row fails with a probability: of half the limit, and of three times."""
    random = np.random.default_rng(31)

    def share_refused(rate: float) -> float:
        counts, nights = np.unique(random.binomial(num_rows, rate, 20_000), return_counts=True)
        refused = 0
        for count, number in zip(counts.tolist(), nights.tolist(), strict=True):
            figures = figures_of(pets(1, 1), num_rows, reasons={"empty": count})
            result = results_of(figures, max_error_pct=limit)["max_error_pct_computed"]
            refused += number * (result.status == "fail")
        return refused / 20_000

    assert share_refused(limit / 200) <= 1e-3
    if num_rows * limit >= 1_500:
        assert share_refused(3 * limit / 100) >= 0.99


def test_what_is_accepted_of_the_computed_rows_is_accepted_of_them_alone():
    accepted = parse_accepted(["label_drift_computed=a new camera"])
    figures = figures_of(pets(0, 2_000), 2_000)
    gates = Gates.model_validate({"label_drift": {"mode": "fail"}})
    results = {each.name: each for each in judge(gates, figures, PAST, accepted)}
    assert results["label_drift_computed"].status == "accepted"
    assert results["label_drift"].status == "pass"
    with pytest.raises(JobError, match="no such gate"):
        parse_accepted(["label_drift_alone=why"])
    with pytest.raises(JobError, match="no such gate"):
        parse_accepted(["volume_computed=why"])
    with pytest.raises(JobError, match="no such gate"):
        parse_accepted(["conservation_computed=why"])
