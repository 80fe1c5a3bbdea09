"""Counters add up, and refuse what cannot be counted."""

import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.figures import (
    Counters,
    StageCounters,
    measure,
    merge,
    stages_with,
)


@pytest.mark.parametrize(
    "values",
    [
        {"rows_in": -1},
        {"rows_in": 1.5},
        {"busy_s": float("nan")},
        {"busy_s": float("inf")},
        {"rows_out": "7"},
    ],
)
def test_wrong_counters_are_refused(values):
    with pytest.raises(PipelineError, match=next(iter(values))):
        StageCounters.from_dict(values)


def test_an_input_brings_stages_of_its_own_and_merging_changes_neither_side():
    one, other = {"tokenize": {"rows_in": 1}}, {"tokenize": {"rows_in": 2}, "read": {"rows_in": 3}}
    assert merge(one, other) == {"tokenize": {"rows_in": 3}, "read": {"rows_in": 3}}
    assert (one["tokenize"], other["tokenize"]) == ({"rows_in": 1}, {"rows_in": 2})
    assert stages_with(["tokenize"])[1:4] == ("read", "tokenize", "transfer")


def test_a_field_of_a_newer_version_is_left_out():
    assert StageCounters.from_dict({"rows_in": 2, "pages_in": 3}) == StageCounters(rows_in=2)


def test_measure_adds_to_what_was_there():
    counters: Counters = {}
    for _ in range(3):
        with measure(counters, "decode") as m:
            m.rows_in, m.rows_out, m.rows_quarantined, m.bytes_in = 10, 9, 1, 50
            sum(range(1000))
    decode = counters["decode"]
    assert (decode["rows_in"], decode["rows_out"], decode["rows_quarantined"]) == (30, 27, 3)
    assert decode["bytes_in"] == 150
    assert decode["busy_s"] > 0


def test_measure_counts_the_time_of_a_body_that_raises():
    counters: Counters = {}

    def predict():
        with measure(counters, "predict") as m:
            m.rows_in = 4
            return m.rows_in / 0

    with pytest.raises(ZeroDivisionError):
        predict()
    assert counters["predict"]["rows_in"] == 4
    assert counters["predict"]["busy_s"] > 0
