"""What is tried on a GPU, in which order, and how: no card is needed to decide it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.faults.fake_device import FakeGpu, installed
from support.runs.predicting import images, predictor, rows_of

from pipeline.inference.devices.accelerator import CONTEXT_BYTES
from pipeline.inference.devices.device_buffers import DeviceBuffer
from pipeline.inference.runtimes import all_runtimes
from pipeline.models.spec import ModelSpec
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.feature_input import FeatureInput
from pipeline.runs.tuning.selection import candidates
from pipeline.runs.tuning.trial import Trial
from pipeline.runs.tuning.trials.measure import Workload, overlapping, try_batch
from pipeline.runs.tuning.trials.memory import share_problem
from pipeline.runs.tuning.trials.search import Search
from pipeline.runs.tuning.trials.workload import RunBatch

MIB = 1 << 20
EAGER = [
    Trial("eager", "fp32", rows_per_s=100),
    Trial("eager", "tf32", rows_per_s=300),
    Trial("eager", "bf16", rows_per_s=700),
    Trial("compile-quick", "fp32", rows_per_s=900),
]


def spec(runtime: str) -> ModelSpec:
    task = TaskSpec("classify", labels=("a",))
    return ModelSpec("m", "factory", "", None, None, FeatureInput(), task, "auto", runtime)


def tried(runtime: str = "auto", *, known: list[Trial] = EAGER, **search: bool) -> set[str]:
    """The ways of torch that are tried once so many are known."""
    settings = {"is_on_gpu": True, "is_bounded": True, "varies": False, **search}
    wanted = candidates(spec(runtime), is_on_gpu=settings["is_on_gpu"])
    found = [w for w in wanted if Search(runtime == "auto", **settings).is_for(w, known)]
    return {" ".join(way) for way in found if way[0] in ("eager", "compile", "compile-quick")}


ALL_OF_EAGER = {"eager fp32", "eager tf32", "eager bf16", "eager fp16"}


def test_a_run_compiles_without_autotuning_and_only_in_the_precision_that_eager_found_best():
    assert tried() == {*ALL_OF_EAGER, "compile-quick bf16"}


def test_tune_tries_both_ways_to_compile_in_that_precision():
    assert tried(is_bounded=False) == {*ALL_OF_EAGER, "compile-quick bf16", "compile bf16"}


def test_what_tries_kernels_has_time_for_that_and_nothing_else_has():
    def patience_s(runtime: str, *, is_on_gpu: bool, varies: bool = False) -> float:
        search = Search(True, is_on_gpu=is_on_gpu, is_bounded=False, varies=varies)
        return search.patience_s(runtime)

    usual_s = patience_s("eager", is_on_gpu=True)
    assert patience_s("compile", is_on_gpu=True) > 3 * usual_s
    assert patience_s("compile", is_on_gpu=True, varies=True) == usual_s
    assert patience_s("compile", is_on_gpu=False) == usual_s
    assert patience_s("compile-quick", is_on_gpu=True) == usual_s


def test_of_many_shapes_nothing_is_autotuned_so_a_run_tries_it():
    assert tried(varies=True) >= {*ALL_OF_EAGER, "compile bf16"}


def test_a_job_that_names_what_compiles_gets_it_in_every_precision():
    for runtime in ("compile", "compile-quick"):
        assert len(tried(runtime)) == 4


@pytest.mark.parametrize("is_bounded", [True, False])
def test_on_the_cpu_nothing_is_left_out(is_bounded: bool):
    wanted = candidates(spec("auto"), is_on_gpu=False)
    search = Search(True, is_on_gpu=False, is_bounded=is_bounded, varies=False)
    assert all(search.is_for(way, EAGER) for way in wanted)
    assert "compile-quick" not in {runtime for runtime, _ in wanted}


def test_eager_is_tried_in_all_precisions_before_anything_compiles():
    order = [each.name for each in all_runtimes()]
    assert order[0] == "eager"
    assert order.index("compile-quick") < order.index("compile")


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=12))
def test_on_a_gpu_a_call_has_enough_batches_to_overlap_and_each_row_as_often(sizes: list[int]):
    ends = np.cumsum(sizes)
    batches = [
        RunBatch(np.arange(end - size, end), float(size))
        for end, size in zip(ends, sizes, strict=True)
    ]
    [call] = overlapping(batches)
    counts = np.bincount(call.rows)
    assert len(set(counts.tolist())) == 1
    assert counts[0] * len(batches) >= 4
    assert len(call.rows) >= 1024
    assert call.worth == pytest.approx(len(call.rows))


@pytest.mark.parametrize(("num_gpus", "at_once"), [(0, 1), (1, 2)])
def test_what_is_timed_on_a_gpu_overlaps_as_in_a_run(
    num_gpus: int, at_once: int, monkeypatch: pytest.MonkeyPatch
):
    in_flight, most = [0], [0]
    start, finish = DeviceBuffer.start, DeviceBuffer.finish

    def started(self: DeviceBuffer, *batch: Any) -> None:
        start(self, *batch)
        in_flight[0] += 1
        most[0] = max(most[0], in_flight[0])

    def finished(self: DeviceBuffer) -> Any:
        in_flight[0] -= 1
        return finish(self)

    with installed(FakeGpu()):
        model = predictor("models:colours", 16, num_gpus=num_gpus)
        sample = model._config.spec.input.arrays(rows_of(images(32)))
        monkeypatch.setattr(DeviceBuffer, "start", started)
        monkeypatch.setattr(DeviceBuffer, "finish", finished)
        Workload(model._config, sample).measure_rate(model, 0.0, for_s=0.0)
    assert most[0] >= at_once
    assert num_gpus or most[0] == 1


@pytest.mark.parametrize(
    ("reserved_mib", "reference_mib", "actors", "fits"),
    [
        (20_000, 30_000, 1, True),  # alone it can take its own model off meanwhile
        (24_000, 0, 1, False),
        (10_000, 0, 2, True),
        (10_000, 2_000, 2, False),
        (4_000, 1_000, 4, True),
        (5_500, 0, 4, False),
    ],
)
def test_all_that_an_actor_needs_counts_toward_its_share_of_the_card(
    reserved_mib: int, reference_mib: int, actors: int, fits: bool
):
    told = share_problem(reserved_mib * MIB, reference_mib * MIB, 1 / actors, 24_000 * MIB)
    assert (not told) is fits
    assert "\n" not in told


SIZES = st.integers(0, 1 << 40)


@given(SIZES, SIZES, st.integers(1, 8), SIZES)
def test_actors_that_fit_their_shares_fit_the_card_together(
    reserved_bytes: int, reference_bytes: int, actors: int, card_bytes: int
):
    if not share_problem(reserved_bytes, reference_bytes, 1 / actors, card_bytes):
        assert actors * (reserved_bytes + CONTEXT_BYTES) <= card_bytes * 1.0001


@pytest.mark.parametrize(
    ("total_mib", "row_mib", "words"),
    [
        (620, 2, "an actor needs 6"),
        pytest.param(2_000, 1, "", marks=pytest.mark.slow),
        pytest.param(2_000, 200, "OutOfMemoryError", marks=pytest.mark.slow),
    ],
)
def test_a_batch_size_that_does_not_fit_the_card_is_no_choice(
    total_mib: int, row_mib: int, words: str
):
    with installed(FakeGpu(total_bytes=total_mib * MIB, row_bytes=row_mib * MIB)):
        config = predictor("models:colours", 16, num_gpus=1)._config
        sample = config.spec.input.arrays(rows_of(images(32)))
        trial = try_batch(config, sample)
    assert trial.problem.startswith(words)
    assert bool(trial.problem) is bool(words)
