"""Test which ways are tried on a GPU, in which order and how; the decisions need no card."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.faults.fake_device import FakeGpu, installed
from support.runs.predicting import images, predictor, rows_of

from pipeline.inference.devices.device_buffers import DeviceBuffer
from pipeline.inference.runtimes import all_runtimes
from pipeline.models.spec import ModelSpec
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.table_input import FeatureInput
from pipeline.runs.tuning import measure
from pipeline.runs.tuning.measure import Workload, overlapping
from pipeline.runs.tuning.selection import candidates
from pipeline.runs.tuning.workload import RunBatch


def tried(runtime: str = "auto", *, is_command: bool = False) -> set[str]:
    """The ways of torch that are tried on a GPU."""
    task = TaskSpec("classify", labels=("a",))
    spec = ModelSpec("m", "factory", "", None, None, FeatureInput(), task, "auto", runtime)
    wanted = candidates(spec, is_on_gpu=True, is_command=is_command)
    return {way[0] for way in wanted if way[0] in ("eager", "compile", "compile-quick")}


def test_only_tune_and_a_job_that_names_it_time_kernels_for_minutes():
    assert tried() == {"eager", "compile-quick"}
    assert tried(is_command=True) == {"eager", "compile-quick", "compile"}
    assert tried("compile") == {"compile"}


def test_eager_is_tried_in_all_precisions_before_anything_compiles():
    order = [runtime.name for runtime in all_runtimes()]
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

    monkeypatch.setattr(measure, "MEASURE_S", 0.0)
    with installed(FakeGpu()):
        model = predictor("models:colours", 16, num_gpus=num_gpus)
        sample = model._config.spec.input.arrays(rows_of(images(32)))
        monkeypatch.setattr(DeviceBuffer, "start", started)
        monkeypatch.setattr(DeviceBuffer, "finish", finished)
        Workload(model._config, sample).measure_rate(model)
    assert most[0] >= at_once
    assert num_gpus or most[0] == 1
