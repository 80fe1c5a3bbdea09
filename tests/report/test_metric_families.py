"""Test that metrics have the figures of the report, and no new series every night."""

from __future__ import annotations

import math
from typing import Any

import pytest
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support.runs.report_examples import (
    CASES,
    FULL,
    Facts,
    document_of,
    expected,
    report_of,
    samples,
)

from pipeline.core.failures import Reason
from pipeline.report.metric_families import MEANINGS, Family, Outside, families_of
from pipeline.report.prometheus import as_text, registry_of

AT = 1795485600.0
ENDED = Outside("nightly", AT, is_running=False, published_at="2026-11-24T02:00:00+00:00")


def families(facts: Facts = FULL, outside: Outside = ENDED, **changes: Any) -> list[Family]:
    return families_of(report_of(facts, **changes), outside)


@pytest.mark.parametrize("name", CASES)
def test_the_figures_are_those_of_the_report(name: str):
    series = samples(as_text(families(CASES[name])))
    wanted = expected(document_of(CASES[name]), "nightly")
    assert {name: series.get(name) for name in wanted} == wanted


def test_the_same_series_are_there_every_night():
    later = {"run_id": "r-2", "partition": "date=2026-11-25", "fingerprint": "00" * 32}
    first, second = samples(as_text(families())), samples(as_text(families(**later)))
    assert first.keys() == second.keys()
    assert not [series for series in first if "2026" in series or "r-1" in series]
    assert all('job="nightly"' in series for series in first)


def test_every_state_of_a_set_is_there_once():
    series = samples(as_text(families()))
    for name in ("pipeline_run_status", 'pipeline_gate_result{gate="max_error_pct"'):
        values = [value for sample, value in series.items() if sample.startswith(name)]
        assert sum(values) == 1
        assert len(values) > 4
    reasons = [sample for sample in series if sample.startswith("pipeline_quarantined_rows_total")]
    assert len(reasons) == len(Reason), "a reason that appears is a step from 0, not a new series"


def test_what_is_unknown_is_no_number():
    running = Outside("nightly", AT)
    series = samples(as_text(families(CASES["stopped"], running)))
    assert math.isnan(series['pipeline_eta_seconds{job="nightly"}'])
    assert series['pipeline_run_status{job="nightly",status="running"}'] == 1
    assert 'pipeline_last_success_timestamp_seconds{job="nightly"}' not in series
    assert samples(as_text(families(rows={"left": 0})))['pipeline_eta_seconds{job="nightly"}'] == 0


def test_the_two_times_are_of_the_version_and_of_its_date():
    series = samples(as_text(families()))
    assert series['pipeline_last_success_timestamp_seconds{job="nightly"}'] == 1795485600.0
    assert series['pipeline_last_partition_timestamp_seconds{job="nightly"}'] == 1795478400.0
    undated = samples(as_text(families(partition="all")))
    assert 'pipeline_last_partition_timestamp_seconds{job="nightly"}' not in undated


def test_names_units_and_both_formats_are_prometheus_own():
    """Counters end in _total; a unit is the last word; the stricter format takes all of it."""
    made = families()
    assert {family.name.removeprefix("pipeline_") for family in made} == set(MEANINGS) - {
        "partitions"
    }
    text = generate_latest(registry_of(lambda: made)).decode()  # type: ignore[no-untyped-call]
    assert {family.name for family in text_string_to_metric_families(text)} == {  # type: ignore[no-untyped-call]
        family.name for family in made
    }
    for name in MEANINGS:
        assert not name.endswith(("_total", "_s", "_ms", "_pct", "_mib"))


@pytest.mark.parametrize(("sample", "shown"), [(5.0, 7.0), (9.0, 9.0), (None, 7.0)])
def test_a_gauge_that_outlives_its_run_never_becomes_less(sample: float | None, shown: float):
    samples = () if sample is None else (({}, sample),)
    family = Family("last", "gauge", "The last one.", samples)
    assert family.at_least({"last": 7.0}, {}).samples == (({}, shown),)
    assert family.at_least({"other": 7.0}, {}) == family
