"""Test that forecasts follow from the measured service times, and stay within them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.report_examples import load_of

from pipeline.report.sections.bottleneck import Forecast, find_bottleneck, make_forecasts
from pipeline.report.sections.limits import Load, find_limits

SPARE = {"read": 1.0, "decode": 7.0, "transform": 1.0, "predict": 19.0, "write": 0.2}
CPU_SLOTS = {"reader": 1, "decoder": 1, "actor": 2, "writer": 1}
# Two actors on two cores do all the work but reading and writing.
FUSED = {"read": 0.5, "decode": 8.0, "transform": 2.0, "predict": 9.5, "write": 0.2}
FUSED_SLOTS = {"reader": 1, "decoder": 0, "actor": 2, "writer": 1}


def by_change(load: Load) -> dict[str, Forecast]:
    return {forecast.change: forecast for forecast, _ in make_forecasts(load)}


def fused(**more) -> Load:
    return load_of(FUSED, FUSED_SLOTS, in_actors=frozenset(["decoder"]), **{"cpus": 2, **more})


def test_the_usual_changes_of_a_cpu_run_in_order():
    assert list(by_change(load_of(SPARE, CPU_SLOTS, cpus=8))) == [
        "one more decoder core",
        "one more actor on the same cores",
        "half the decode time",
        "half the predict time",
    ]
    assert next(iter(by_change(fused()))) == "one more core with its actor"


def test_a_change_beside_the_limit_brings_nothing_and_one_at_it_leads_to_the_next():
    forecasts = by_change(load_of(SPARE, CPU_SLOTS, cpus=8))
    for change in ("one more decoder core", "half the decode time"):
        assert (forecasts[change].gain_pct, forecasts[change].limited_by) == (0.0, "actor")
    # Three actors could do 158 rows/s, but the decoder ends at 1000 rows / 8 s.
    more = forecasts["one more actor on the same cores"]
    assert more.rows_per_s == pytest.approx(125)
    assert (more.gain_pct, more.limited_by) == (25.0, "decoder")


def test_with_full_cores_only_less_work_or_more_cores_help():
    forecasts = by_change(fused())
    assert find_bottleneck(fused()).limit == "cores"
    assert forecasts["one more actor on the same cores"].gain_pct == 0.0
    assert forecasts["one more core with its actor"].rows_per_s == pytest.approx(150, rel=0.01)
    # Of two cores for ten seconds four are less.
    assert forecasts["half the decode time"].rows_per_s == pytest.approx(100 * 20 / 16)


def test_seconds_of_waiting_for_a_core_do_not_hide_what_one_more_core_brings():
    # Three processes at work on two cores: a third of each one's busy seconds is waiting.
    busy = {"decode": 9.5, "predict": 19.5}
    forecast = by_change(load_of(busy, CPU_SLOTS, cpus=2))["one more decoder core"]
    assert forecast.rows_per_s == pytest.approx(100 * 1.45 / 0.975, rel=0.01)


def test_decoding_in_the_actors_is_work_of_the_actors():
    load = fused(cpus=8)
    assert [limit.group for limit in find_limits(load)] == ["reader", "actor", "writer", "cores"]
    actor = next(limit for limit in find_limits(load) if limit.group == "actor")
    assert (actor.busy_s, actor.slots, actor.top_stage) == (195, 2, "predict")
    neck = find_bottleneck(load)
    assert (neck.limit, neck.utilisation_pct) == ("actor", 97.5)
    assert load.stage_slots("decode") == load.stage_slots("predict") == 2
    half = by_change(load)["half the decode time"]
    assert half.rows_per_s == pytest.approx(100 * 20 / 16)


def test_on_a_gpu_decoding_in_the_actors_still_takes_cores():
    load = fused(cpus=1, is_on_gpu=True, gpus=2)
    cores = find_limits(load)[-1]
    assert (cores.group, cores.busy_s) == ("cores", pytest.approx(102))


@pytest.mark.parametrize(
    ("actors", "gpus", "change", "rate"),
    [
        (1, 1, "one more GPU with its actor", 100 / (0.98 / 2 + 0.02)),
        (4, 2, "one more GPU with its actor", 100 / (0.98 / 1.5 + 0.02)),
        (1, 2, "one more actor on a GPU that is free", 100 / (0.98 / 2 + 0.02)),
    ],
)
def test_actors_follow_the_gpus(actors: int, gpus: int, change: str, rate: float):
    busy = {"read": 1.0, "decode": 2.0, "predict": 9.8 * actors}
    slots = {"reader": 4, "decoder": 4, "actor": actors, "writer": 1}
    forecasts = by_change(load_of(busy, slots, cpus=16, gpus=gpus, is_on_gpu=True))
    assert forecasts[change].rows_per_s == pytest.approx(rate)
    assert "one more actor on the same cores" not in forecasts


def test_what_was_not_measured_has_no_forecast():
    slots = {"reader": 1, "decoder": 1, "actor": 0, "writer": 1}
    forecasts = by_change(load_of({"read": 5.0, "write": 9.0}, slots, cpus=4))
    assert [*forecasts] == ["one more writer"]
    assert forecasts["one more writer"].rows_per_s == pytest.approx(100 / (0.9 / 2 + 0.1))
    assert make_forecasts(Load()) == []


def test_idle_time_and_short_streams_promise_nothing():
    half_busy = load_of({"predict": 10.6}, CPU_SLOTS, cpus=4)  # 53% of two actors
    half = by_change(half_busy)["half the predict time"]
    assert half.rows_per_s == pytest.approx(100 / (0.53 / 2 + 0.47))
    short = replace(half_busy, streaming_wall_s=29.9)
    assert make_forecasts(short) == []
    neck = find_bottleneck(short)
    assert (neck.limit, neck.predicted_rows_per_s) == ("actor", pytest.approx(10_000 / 29.9))
    assert "too short for a forecast" in neck.advice


def test_a_run_that_waited_gains_nothing_from_any_change():
    forecasts = by_change(load_of({"decode": 2.0, "predict": 3.0}, CPU_SLOTS, cpus=4)).values()
    assert forecasts
    assert all((f.gain_pct, f.limited_by) == (0.0, "waiting") for f in forecasts)


shares = st.floats(0.001, 1.5)


@given(
    st.tuples(shares, shares, shares, shares),
    st.tuples(st.integers(0, 16), st.integers(1, 16), st.integers(1, 32)),
    st.booleans(),
    st.booleans(),
)
def test_no_forecast_is_below_today_or_above_its_ceiling_and_the_advice_is_the_best(
    busy, sizes, is_fused, is_on_gpu
):
    decode, predict, read, write = busy
    decoders, actors, cpus = sizes
    load = load_of(
        {
            "read": 10 * read,
            "decode": 10 * decode * (actors if is_fused else decoders),
            "predict": 10 * predict * actors,
            "write": 10 * write,
        },
        {"reader": 1, "decoder": decoders, "actor": actors, "writer": 1},
        cpus=cpus,
        gpus=actors,
        is_on_gpu=is_on_gpu,
        in_actors=frozenset(["decoder"] if is_fused else []),
    )
    known = make_forecasts(load)
    for forecast, ceiling in known:
        assert load.rows_per_s <= forecast.rows_per_s <= ceiling * 1.0001
        assert forecast.gain_pct >= 0
    neck = find_bottleneck(load)
    if neck.predicted_rows_per_s is not None:
        best = max(forecast.rows_per_s for forecast, _ in known)
        assert neck.predicted_rows_per_s == pytest.approx(best, rel=1e-4)
