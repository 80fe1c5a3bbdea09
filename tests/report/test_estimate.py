"""Test that an estimate for the rows of the past run is the time that it took."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.report_examples import FULL, ROWS, STREAMING_S, WALL_S, report_of

from pipeline.core.figures import StageCounters
from pipeline.report.estimate import NO_BASIS, estimate

# All rows of the partition were computed by this run.
WHOLE = FULL | dict(rows=FULL["rows"] | {"total": ROWS, "resumed": 0})
# Nothing is known of its limits and of what lies in the stream.
BARE = WHOLE | dict(startup={"ray_start": 7.0}, counters={})


@given(
    st.integers(100, 10**6),
    st.floats(1, 1e4),
    st.floats(0, 1e3),
    st.floats(0, 20),
    st.floats(0, 20),
)
def test_for_its_own_rows_the_estimate_is_the_time_that_it_took(
    rows, streaming_s, rest_s, load_s, publish_s
):
    counters = {
        "predict": StageCounters(rows, rows, busy_s=streaming_s).to_dict(),
        "publish": StageCounters(rows, rows, busy_s=min(publish_s, rest_s)).to_dict(),
    }
    past = report_of(
        WHOLE,
        rows={"total": rows, "computed": rows},
        wall_s=streaming_s + rest_s,
        streaming_wall_s=streaming_s,
        startup={"ray_start": rest_s / 2, "model_load": min(load_s, streaming_s)},
        counters=counters,
    )
    estimated = estimate(past, rows, rows, None)
    assert estimated.minutes * 60 == pytest.approx(streaming_s + rest_s)
    assert estimated.start_up_s >= 0
    # More rows never take less, and fewer never more.
    assert estimate(past, 2 * rows, 2 * rows, None).minutes >= estimated.minutes
    assert estimate(past, 0, rows, None).minutes <= estimated.minutes


def test_start_up_counts_once_and_rows_and_publishing_by_their_number():
    publish = StageCounters(ROWS, ROWS, busy_s=4.0).to_dict()
    past = report_of(BARE, counters={"publish": publish})
    estimated = estimate(past, 2 * ROWS, 3 * ROWS, None)
    assert estimated.rows_per_s == pytest.approx(ROWS / STREAMING_S)
    assert estimated.start_up_s == pytest.approx(WALL_S - STREAMING_S - 4)
    assert estimated.minutes * 60 == pytest.approx(16 + 2 * STREAMING_S + 3 * 4)


def test_loading_the_model_within_the_stream_is_not_counted_for_every_row():
    predict = StageCounters(500, 500, busy_s=8.0).to_dict()
    facts = BARE | dict(
        rows={"total": 500, "computed": 500},
        wall_s=40.0,
        streaming_wall_s=25.0,
        startup={"ray_start": 10.0, "model_load": 20.0},
        counters={"predict": predict},
    )
    # 500 rows in 5 s; the two actors could do 125 rows/s.
    assert estimate(report_of(facts), 500, 500, None).rows_per_s == pytest.approx(100)
    slower = {"predict": StageCounters(500, 500, busy_s=16.0).to_dict()}
    # Not more than what the actors could do: they worked while other actors were loading.
    assert estimate(report_of(facts, counters=slower), 500, 500, None).rows_per_s == 62.5


def test_cost_is_that_of_the_nodes_for_the_minutes():
    past = report_of(BARE, hardware={"nodes": 3, "cpus": 12.0, "gpus": 3.0, "gpu_name": "H100"})
    estimated = estimate(past, ROWS, ROWS, 2.0)
    assert estimated.cost == pytest.approx(WALL_S / 3600 * 3 * 2.0)
    assert (
        estimated.basis
        == "run r-1: 9,003 rows at 150 rows/s on 3 nodes, 12 CPU cores, 3 GPUs (H100)"
    )
    assert estimate(past, ROWS, ROWS, None).cost is None
    assert estimate(report_of(BARE, hardware={}), ROWS, ROWS, 2.0).cost is None


def test_what_is_not_known_is_null():
    none = estimate(None, 10, 10, 1.0)
    assert dataclasses.astuple(none)[:4] == (None, None, None, None)
    assert none.basis == NO_BASIS
    of_tars = estimate(report_of(BARE), None, None, 1.0)
    assert (of_tars.minutes, of_tars.cost) == (None, None)
    assert of_tars.rows_per_s is not None
    assert "known only when the input has been read" in of_tars.basis


def test_a_refused_run_is_a_basis_without_publishing():
    refused = report_of(BARE, status="refused", exit_code=3)
    assert "publishing is not counted" in estimate(refused, 10, 10, None).basis


@pytest.mark.parametrize(("status", "code"), [("stopped", 6), ("failed", 7)])
def test_an_interrupted_run_gives_an_estimate_of_the_rows_that_are_left(status: str, code: int):
    estimated = estimate(report_of(BARE, status=status, exit_code=code), 10 * ROWS, 10 * ROWS, None)
    assert estimated.minutes is not None
    assert estimated.rows_per_s == pytest.approx(ROWS / 60)
    assert "before its end, so publishing is not counted" in estimated.basis


def test_a_published_partition_costs_nothing():
    estimated = estimate(report_of(BARE), 0, ROWS, 2.0, is_published=True)
    assert (estimated.minutes, estimated.cost, estimated.rows_per_s) == (0.0, 0.0, None)
