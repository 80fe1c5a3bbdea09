"""Test that gates judge only the computed rows if rows are carried, which may hide a bad model."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.core.errors import GateRefused
from pipeline.core.histograms import Distribution, Numbers
from pipeline.gates.earlier_partitions import Past
from pipeline.gates.gate import Figures
from pipeline.gates.judging import all_gates, judge
from pipeline.gates.results import GateResult, require_pass
from pipeline.job.gates import Gates

OF_COMPUTED = {"constant", "label_drift", "score_drift"}
CARRIED = 100_000


def pets(cats: int, dogs: int) -> Distribution:
    numbers = {"score": Numbers(0.1, 0.9, {3: cats, 17: dogs})}
    return Distribution({"cat": cats, "dog": dogs}, numbers=numbers)


PAST = Past((CARRIED,), pets(CARRIED // 2, CARRIED // 2), "date=2026-11-23")


def results_of(computed: Distribution, num_computed: int, **section: Any) -> dict[str, GateResult]:
    """Judge a partition of carried rows, half cats and half dogs, and of computed ones."""
    figures = Figures(
        num_planned=CARRIED + num_computed,
        num_predicted=CARRIED + num_computed,
        num_quarantined=0,
        num_shards=9,
        distribution=pets(CARRIED // 2, CARRIED // 2) + computed,
        num_carried=CARRIED,
        num_checked=16,
        computed=computed,
        num_computed=num_computed,
    )
    gates = Gates.model_validate({"label_drift": {"mode": "fail"}, **section})
    return {result.name: result for result in judge(gates, figures, PAST)}


def failed(results: dict[str, GateResult]) -> set[str]:
    return {name for name, result in results.items() if result.status == "fail"}


def test_a_model_that_says_dog_to_all_new_rows_is_refused():
    numbers = {"score": Numbers(0.5, 0.5, {10: 2_000})}
    results = results_of(Distribution({"dog": 2_000}, numbers=numbers), 2_000)
    assert failed(results) == {"constant", "label_drift"}
    assert results["score_drift"].status == "warn"
    assert "of the computed rows: " in results["label_drift"].message
    with pytest.raises(GateRefused, match="--accept label_drift=REASON"):
        require_pass([*results.values()])


def test_good_computed_rows_pass():
    results = results_of(pets(1_000, 1_000), 2_000)
    assert not failed(results)
    for gate in all_gates():
        assert gate.judges_computed == (gate.name in OF_COMPUTED)
    assert {results[name].status for name in OF_COMPUTED} == {"pass"}


@pytest.mark.parametrize(
    ("num_rows", "min_rows", "least"),
    [(99, 0, 100), (99, 100, 100), (100, 0, None), (100, 100, None), (499, 500, 500)],
)
def test_few_computed_rows_prove_nothing(num_rows: int, min_rows: int, least: int | None):
    numbers = {"score": Numbers(0.5, 0.5, {10: num_rows})}
    dogs = Distribution({"dog": num_rows}, numbers=numbers)
    result = results_of(dogs, num_rows, min_rows=min_rows)["constant"]
    if least is None:
        assert result.status == "fail"
    else:
        message = f"{num_rows} computed predictions; not judged below {least}"
        assert (result.status, result.message) == ("off", message)
