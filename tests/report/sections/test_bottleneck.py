"""Test that the advice names the actual limit, and promises no more than is possible."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.report_examples import counters_of, figures_of, load_of

from pipeline.core.figures import LAUNCH
from pipeline.report.sections.bottleneck import find_bottleneck
from pipeline.report.sections.limits import Load, find_limits, utilisation_pct


@given(st.floats(0.001, 1e6), st.floats(0.001, 1e4), st.floats(0, 1))
def test_utilisation_exceeds_100_only_when_busy_does(wall_s, slots, share):
    assert utilisation_pct(share * (wall_s * slots), slots, wall_s) <= 100
    assert utilisation_pct(1.01 * wall_s * slots, slots, wall_s) > 100


@pytest.mark.parametrize(("slots", "wall_s"), [(None, 1.0), (0.0, 1.0), (1.0, None), (1.0, 0.0)])
def test_utilisation_is_unknown_without_slots_or_wall(slots, wall_s):
    assert utilisation_pct(1.0, slots, wall_s) is None


ONE_EACH = {"reader": 1, "decoder": 1, "actor": 1, "writer": 1}
TWO_ACTORS = ONE_EACH | {"actor": 2}
# No stage of the decoder is busier than predict; together they fill their slot.
OF_DECODERS = {"read": 3.0, "decode": 6.0, "transform": 3.7, "predict": 10.0, "write": 0.5}
OF_ACTORS = {"read": 1.0, "decode": 7.0, "transform": 1.0, "predict": 19.0, "write": 0.2}
OF_CORES = {"read": 0.5, "decode": 5.0, "transform": 1.0, "predict": 13.0, "write": 0.5}
OF_STORAGE = {"read": 19.0, "decode": 0.5, "predict": 2.0}
IDLE = {"decode": 2.0, "predict": 3.0}
LONG = {"streaming_wall_s": 100.0, "wall_s": 250.0}
STARTS, LOADS = {"ray_start": 8.0, "imports": 3.0}, {"model_load": 140.0, "imports": 2.0}


@pytest.mark.parametrize(
    ("busy", "slots", "more", "limit", "stage", "advice"),
    [
        (OF_DECODERS, TWO_ACTORS, {"cpus": 8}, "decoder", "decode",
         ["one more decoder core (2 instead of 1)"]),
        (OF_ACTORS, TWO_ACTORS, {"cpus": 8}, "actor", "predict",
         ["one more actor on the same cores (3 instead of 2)",
          "where the decoders become the limit"]),
        (OF_CORES, TWO_ACTORS, {"cpus": 2}, "cores", "predict",
         ["more actors on the same cores would not help",
          "one more decoder core (2 instead of 1)"]),
        # Readers that wait for storage are not blamed on the cores.
        (OF_STORAGE, ONE_EACH | {"reader": 2}, {"cpus": 2, "gpus": 1, "is_on_gpu": True},
         "reader", "read", []),
        (IDLE, ONE_EACH, {"cpus": 2, "wall_s": 22.0, "startup": STARTS}, "startup", "ray_start",
         ["50% of the run"]),
        (IDLE, ONE_EACH, {"cpus": 4, "startup": LOADS, **LONG}, "startup", "model_load",
         ["most of it model load, 140.0 s", "more rows per run would help most"]),
        (IDLE, TWO_ACTORS, {"cpus": 4, "startup": {"ray_start": 1.0}, **LONG}, "waiting", "decode",
         ["No stage was the limit", "run.slice_rows"]),
    ],
)  # fmt: skip
def test_the_advice_names_the_limit_and_what_would_help(
    busy: dict[str, float], slots: dict[str, float], more: dict[str, Any], limit: str,
    stage: str, advice: list[str],
):  # fmt: skip
    neck = find_bottleneck(load_of(busy, slots, **more))
    assert (neck.limit, neck.stage) == (limit, stage)
    assert [words for words in advice if words not in neck.advice] == []


def test_what_the_advice_promises_ends_at_the_next_limit():
    neck = find_bottleneck(load_of(OF_DECODERS, TWO_ACTORS, cpus=8))
    assert neck.utilisation_pct == 97.0
    # Two decoders could do 206 rows/s, and are idle for 0.3 ms of a row as the one is. The actors'
    # limit is 200.
    assert neck.predicted_rows_per_s == pytest.approx(194.2, rel=0.001)
    assert neck.limit_rows_per_s == pytest.approx(200)
    # The same work with cores to spare is bound by something else.
    assert find_bottleneck(load_of(OF_CORES, TWO_ACTORS, cpus=8)).limit != "cores"


@pytest.mark.parametrize("transfer_s", [0.0, 3.0, 9.7])
def test_copies_to_a_gpu_overlap_with_its_computing(transfer_s: float):
    busy = {"transfer": transfer_s, "predict": 9.8}
    limits = find_limits(load_of(busy, ONE_EACH, cpus=16, gpus=1, is_on_gpu=True))
    assert [limit.busy_s for limit in limits if limit.group == "actor"] == [pytest.approx(98)]
    on_cpu = find_limits(load_of(busy, ONE_EACH, cpus=16))
    assert [limit.busy_s for limit in on_cpu if limit.group == "actor"] == [
        pytest.approx(98 + 10 * transfer_s)
    ]


@pytest.mark.parametrize(("launch_s", "is_launch_bound"), [(1.0, False), (7.7, False), (9.0, True)])
def test_a_gpu_that_waits_for_its_host_needs_no_other_gpu(launch_s: float, is_launch_bound: bool):
    busy = {"read": 1.0, "decode": 2.0, "predict": 9.8}
    slots = {"reader": 4, "decoder": 4, "actor": 1, "writer": 1}
    load = load_of(busy, slots, cpus=16, gpus=1, is_on_gpu=True)
    stages = {**load.figures.stages, LAUNCH: counters_of(10_000, 10 * launch_s)}
    load = replace(load, figures=figures_of(**stages))
    advice = find_bottleneck(load).advice
    assert ("compile-quick" in advice) is is_launch_bound
    assert ("one more GPU" in advice) is not is_launch_bound
    assert LAUNCH not in {limit.group for limit in find_limits(load)}


@pytest.mark.parametrize("stream_s", [0.4, 5.0, 29.9])
@pytest.mark.parametrize("startup_s", [0.1, 60.0])
def test_a_short_run_says_that_it_is_too_short_and_gives_no_advice(
    stream_s: float, startup_s: float
):
    busy = {"decode": 0.02 * stream_s, "predict": 0.03 * stream_s}
    times = {"streaming_wall_s": stream_s, "wall_s": stream_s + startup_s}
    neck = find_bottleneck(
        load_of(busy, ONE_EACH, cpus=4, startup={"ray_start": startup_s}, **times)
    )
    assert neck.limit in ("startup", "waiting")
    assert neck.advice.startswith("Too short a run to say")
    assert "would help" not in neck.advice


@pytest.mark.parametrize(
    "load",
    [
        Load(),
        Load(figures_of(predict=counters_of(10, 1.0))),
        Load(figures_of(predict=counters_of(0, 1.0)), slots={"predict": 1}, streaming_wall_s=1.0),
        Load(figures_of(predict=counters_of(10, 1.0)), slots={"predict": 1}, streaming_wall_s=0.0),
    ],
)
def test_what_was_not_measured_gives_no_advice(load: Load):
    neck = find_bottleneck(load)
    assert neck.limit == "unknown"
    assert neck.predicted_rows_per_s is None
