"""Figures of slices add up, survive the JSON of a footer, and refuse impossible numbers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import PipelineError
from pipeline.core.figures import (
    STAGES,
    STARTUP_PARTS,
    Comparison,
    Counters,
    Isolated,
    LookedUp,
    SliceFigures,
    StageCounters,
    Tokenised,
    Tokens,
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


FOOTER = """{
 "read": {"rows_in": 4, "rows_out": 4, "rows_quarantined": 0, "bytes_in": 90, "bytes_out": 90,
          "busy_s": 0.5, "retries": 1},
 "predict": {"rows_in": 3, "rows_out": 2, "rows_quarantined": 1, "bytes_in": 60, "busy_s": 0.25},
 "launch": {"rows_in": 3, "rows_out": 3, "busy_s": 0.125},
 "model_load": {"busy_s": 2.0},
 "reference_check": {"num_rows": 2, "num_agreed": 1, "busy_s": 0.75},
 "golden": {"num_rows": 8, "num_agreed": 7, "busy_s": 1.5},
 "looked_up": {"num_rows": 4, "num_known": 2, "num_failed": 1, "busy_s": 0.5},
 "tokenised": {"num_rows": 3, "num_truncated": 1},
 "tokens": {"num_tokens": 20, "num_padded": 24},
 "isolated": {"num_rows": 4, "num_quarantined": 1, "dead_processes": 2, "busy_s": 3.0},
 "devices": {"Xeon, 2.4 GHz": 4},
 "advice": {"fp32 is slow": 0}
}"""
FIGURES = SliceFigures(
    stages={
        "read": StageCounters(4, 4, 0, 90, 90, 0.5, 1),
        "predict": StageCounters(3, 2, 1, 60, 0, 0.25),
        "launch": StageCounters(3, 3, busy_s=0.125),
        "model_load": StageCounters(busy_s=2.0),
    },
    reference_check=Comparison(2, 1, 0.75),
    golden=Comparison(8, 7, 1.5),
    golden_actors=1,
    tokenised=Tokenised(3, 1),
    tokens=Tokens(20, 24),
    looked_up=LookedUp(4, 2, 1, 0.5),
    isolated=Isolated(4, 1, 2, 3.0),
    devices={"Xeon, 2.4 GHz": 4},
    advice={"fp32 is slow": 0},
)
COUNTS = st.integers(0, 2**50)
# Multiples of 2**-10 s below 2**20 s add without rounding, so associativity can be asked exactly.
SECONDS = st.integers(0, 2**30).map(lambda n: n / 1024)
STAGE = st.builds(StageCounters, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, SECONDS, COUNTS)
SOME = st.builds(
    SliceFigures,
    stages=st.dictionaries(st.sampled_from(STAGES + STARTUP_PARTS), STAGE),
    reference_check=st.none() | st.builds(Comparison, COUNTS, COUNTS),
    tokens=st.none() | st.builds(Tokens, COUNTS, COUNTS),
    isolated=st.none() | st.builds(Isolated, COUNTS, st.just(0), COUNTS),
    devices=st.dictionaries(st.sampled_from(["Xeon", "L4. Tesla"]), COUNTS),
)


def json_of(figures: SliceFigures) -> Counters:
    counters: Counters = {}
    figures.add_to(counters)
    return json.loads(json.dumps(counters))


def test_a_footer_is_read_as_what_it_says():
    assert SliceFigures.from_json(json.loads(FOOTER)) == FIGURES


def test_a_footer_is_written_as_it_is_read():
    before = json.loads(FOOTER)
    now = json_of(FIGURES)
    assert set(now) == set(before)
    for entry, values in before.items():
        assert {name: now[entry][name] for name in values} == values


@given(SOME, SOME, SOME)
def test_figures_add_up_whatever_the_order_as_their_json_does(
    a: SliceFigures, b: SliceFigures, c: SliceFigures
):
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert a + SliceFigures() == a
    assert SliceFigures.from_json(json_of(a)) == a
    both = json_of(a)
    b.add_to(both)
    assert SliceFigures.from_json(both) == a + b


def test_the_actors_that_predicted_golden_rows_are_counted():
    other = SliceFigures.from_json({"read": {"rows_in": 1}})
    total = FIGURES + other + FIGURES
    assert (total.golden_actors, total.golden) == (2, Comparison(16, 14, 3.0))
