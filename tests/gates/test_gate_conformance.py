"""Test what every gate must do: pass, fail, obey its mode, be accepted."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from pipeline.core.errors import GateRefused, JobError
from pipeline.core.figures import (
    Comparison,
    Generated,
    SliceFigures,
    Tokenised,
)
from pipeline.core.histograms import Distribution, Numbers
from pipeline.core.registry import GATES, load, names
from pipeline.gates.earlier_partitions import Past
from pipeline.gates.gate import Figures
from pipeline.gates.judging import all_gates, certain_failures, judge, needs_of
from pipeline.gates.results import CONSERVATION, GateResult, parse_accepted, require_pass
from pipeline.job.gates import Gates

CATS = Distribution({"cat": 10_000}, numbers={"score": Numbers(0.1, 0.9, {2: 5000, 18: 5000})})
DOGS = Distribution({"dog": 10_000}, numbers={"score": Numbers(0.4, 0.6, {8: 5000, 11: 5000})})
ALIKE = Distribution({"cat": 10_000}, numbers={"score": Numbers(0.5, 0.5, {10: 10_000})})
MEASURED = SliceFigures(
    reference_check=Comparison(100, 100),
    golden=Comparison(8, 8),
    golden_actors=1,
    tokenised=Tokenised(9_000, 450),
    generated=Generated(9_000, num_repeating=450),
)
GOOD = Figures(10_000, 10_000, 0, 4, distribution=CATS, measured=MEASURED, num_carried=8_000,
               num_checked=16)  # fmt: skip
PAST = Past((10_000, 10_000), CATS, "date=2026-11-23")
SECTION = {
    "golden": {"uri": "golden.parquet"},
    "max_reason_pct": {"empty": 1.0},
    "skipped_mode": "fail",
    "truncated_mode": "fail",
    "repeating_mode": "fail",
    "label_drift": {"mode": "fail"},
    "score_drift": {"mode": "fail"},
}


class Case(NamedTuple):
    """What a gate refuses that passes otherwise, and how a job turns it off."""

    bad: dict[str, Any]
    off: dict[str, Any] | None = None


CASES = {
    "conservation": Case({"num_predicted": 9_999}),
    "not_empty": Case({"num_planned": 0, "num_predicted": 0, "num_shards": 0}),
    "max_error_pct": Case(
        {"num_predicted": 9_000, "num_quarantined": 1_000}, {"error_mode": "off"}
    ),
    "max_reason_pct": Case(
        {"num_predicted": 9_800, "num_quarantined": 200, "reasons": {"empty": 200}},
        {"reason_mode": "off"},
    ),
    "max_skipped_pct": Case({"num_skipped": 1}, {"skipped_mode": "off"}),
    "max_truncated_pct": Case(
        {"measured": replace(MEASURED, tokenised=Tokenised(9_000, 451))}, {"truncated_mode": "off"}
    ),
    "max_repeating_pct": Case(
        {"measured": replace(MEASURED, generated=Generated(9_000, num_repeating=451))},
        {"repeating_mode": "off"},
    ),
    "volume": Case({"num_planned": 1_000, "num_predicted": 1_000}, {"volume": {"mode": "off"}}),
    "constant": Case({"distribution": ALIKE}, {"constant": {"mode": "off"}}),
    "label_drift": Case({"distribution": DOGS}, {"label_drift": {"mode": "off"}}),
    "score_drift": Case({"distribution": DOGS}, {"score_drift": {"mode": "off"}}),
    "golden": Case({"measured": replace(MEASURED, golden=Comparison(8, 7))}, {"golden": None}),
    "min_agreement_pct": Case(
        {"measured": replace(MEASURED, reference_check=Comparison(100, 90))},
        {"agreement_mode": "off"},
    ),
    "carried": Case({"differing": ["a: expected x, found y"]}, {"carried_mode": "off"}),
}
ALL = pytest.mark.parametrize("name", CASES)


def section_of(**changes: Any) -> Gates:
    return Gates.model_validate_json(json.dumps({**SECTION, **changes}))


def results_of(figures: Figures, section: Gates | None = None) -> dict[str, GateResult]:
    results = judge(section or section_of(), figures, PAST)
    return {result.name: result for result in results}


def test_every_gate_is_tried_here_in_the_order_in_which_they_are_shown():
    assert names(GATES) == tuple(CASES)
    assert list(results_of(GOOD)) == list(CASES)
    assert [gate.name for gate in all_gates()] == list(CASES)


@ALL
def test_it_passes_good_figures_and_refuses_bad_ones(name: str):
    assert results_of(GOOD)[name].status == "pass"
    result = results_of(replace(GOOD, **CASES[name].bad))[name]
    assert result.status == "fail"
    assert result.message
    assert "\n" not in result.message
    assert json.loads(json.dumps(result.to_dict()))["name"] == name
    with pytest.raises(GateRefused, match=name):
        require_pass([result])


@ALL
def test_its_result_is_no_worse_than_its_mode(name: str):
    case = CASES[name]
    if case.off is not None:
        for figures in (GOOD, replace(GOOD, **case.bad)):
            result = results_of(figures, section_of(**case.off))[name]
            assert (result.status, result.value) == ("off", None)
            assert result.message


@ALL
def test_its_needs_are_met_only_while_it_is_on(name: str):
    gate, off = load(GATES, name), CASES[name].off
    assert gate.needs <= needs_of(section_of())
    assert gate.is_on(section_of())
    if off is not None:
        assert not gate.is_on(section_of(**off))
    golden = {"uri": "golden.parquet", "mode": "off"}
    assert "golden" not in needs_of(section_of(golden=golden))
    assert results_of(GOOD, section_of(golden=golden))["golden"].status == "off"
    off = {"mode": "off"}
    section = Gates.model_validate({"volume": off, "label_drift": off, "score_drift": off})
    assert needs_of(section) == {"reference_check", "carried"}


@ALL
def test_a_failure_that_only_worsens_is_certain_early(name: str):
    bad = replace(GOOD, **CASES[name].bad)
    early = certain_failures(
        section_of(), bad.num_planned, bad.num_quarantined, bad.reasons, {}, bad.causes
    )
    is_certain = name in {result.name for result in early}
    assert is_certain == load(GATES, name).only_worsens


@ALL
def test_a_failure_can_be_accepted_with_a_reason_unless_rows_are_missing(name: str):
    if name == CONSERVATION:
        with pytest.raises(JobError, match="cannot be accepted"):
            parse_accepted([f"{name}=fine"])
        return
    accepted = parse_accepted([f"{name}=fine"])
    results = judge(section_of(), replace(GOOD, **CASES[name].bad), PAST, accepted)
    [result] = [result for result in results if result.name == name]
    assert (result.status, result.reason) == ("accepted", "fine")
