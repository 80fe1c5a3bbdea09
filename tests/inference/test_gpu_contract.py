"""The predictor on a stand-in for a GPU: no unready memory is read, and no error costs a good row.

Memory is poisoned until what fills it has run (`fake_device`), so that a copy or a batch that is
not waited for changes predictions.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.faults.fake_device import FakeGpu, installed
from support.runs.checkout import PYTHONPATH
from support.runs.predicting import (
    BAD,
    BLACK,
    WHITE,
    images,
    is_predicted,
    predict,
    predictor,
    rows_of,
)
from support.runs.selection import examples
from torch import nn

from pipeline.core.errors import InfraError, JobError
from pipeline.core.private_files import one_at_a_time
from pipeline.execution.environment import WORKER_ENVIRONMENT
from pipeline.inference import slice_run
from pipeline.inference.devices.accelerator import PAUSES_S
from pipeline.inference.devices.device_errors import OutOfDeviceMemory
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.inference.runtimes.runtime import Runner
from pipeline.models.agreement import AgreementLimits
from pipeline.process.memory import MIB

KIB = 1 << 10
LIMITS = AgreementLimits(0.1, 0.99, 0.1)


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with installed(FakeGpu()) as made:
        yield made


def scores(row: dict[str, Any]) -> Any:
    scores = row["top_k"] and {entry["label"]: entry["score"] for entry in row["top_k"]}
    return scores and pytest.approx(scores, abs=1e-5)


def same(predicted: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Predicted alike, whatever the batches; and failed alike."""
    for mine, theirs in zip(predicted, expected, strict=True):
        assert (mine["row_id"], mine["error"]) == (theirs["row_id"], theirs["error"])
        assert is_predicted(mine) == is_predicted(theirs)
        if mine["error"] is None:
            assert {e["label"]: e["score"] for e in mine["top_k"]} == scores(theirs)


# ---------------------------------------------------------------------------- streams and buffers


@examples(8)
@given(
    kinds=st.lists(
        st.sampled_from(["good", "good", "good", "dark", "white", "bad"]), min_size=1, max_size=40
    ),
    batch_size=st.sampled_from([1, 4, 7]),
)
def test_no_buffer_is_read_before_what_fills_it_has_run(kinds: list[str], batch_size: int):
    pixels = images(len(kinds))
    for row, row_type in enumerate(kinds):
        if row_type in ("dark", "white"):
            pixels[row] = BLACK if row_type == "dark" else WHITE
    rows = rows_of(pixels, [BAD if row_type == "bad" else None for row_type in kinds])
    expected, _ = predict(predictor("models:fussy", batch_size), rows)
    with installed(FakeGpu(copy_s=0.001, rows_per_s=20_000)):
        model = predictor("models:fussy", batch_size, num_gpus=1)
        for _ in range(2):
            predicted, _ = predict(model, rows)
            same(predicted, expected)


def test_each_value_crosses_to_the_device_once_as_a_byte(gpu: FakeGpu):
    pixels = images(21)
    model = predictor("models:colours", 8, num_gpus=1)
    predict(model, rows_of(pixels))  # of the first slice some rows go there alone as well
    gpu.copied_bytes = 0
    predict(model, rows_of(pixels))
    assert gpu.copied_bytes == pixels.nbytes


def test_one_thread_loads_and_launches_also_for_other_callers(gpu: FakeGpu):
    from concurrent.futures import ThreadPoolExecutor

    model = predictor("models:colours", 8, num_gpus=1)
    with ThreadPoolExecutor(1, "caller") as other, gpu.away():
        other.submit(predict, model, rows_of(images(20))).result()
    model.close()
    predict(predictor("models:colours", 8, num_gpus=1), rows_of(images(20)))
    assert gpu.thread_names == {"gpu_0"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_row_whose_output_is_not_finite_fails_alone(gpu: FakeGpu, precision: str):
    pixels = images(20)
    pixels[[3, 11]] = WHITE
    rows, _ = predict(
        predictor("models:fussy", 8, num_gpus=1, precision=precision), rows_of(pixels)
    )
    failed = {n: row["message"] for n, row in enumerate(rows) if not is_predicted(row)}
    assert failed == dict.fromkeys((3, 11), slice_run.not_finite(precision).message)


@pytest.mark.parametrize(
    ("precision", "wider"),
    [("fp32", ""), ("bf16", "precision fp32"), ("fp16", "precision bf16 or fp32")],
)
def test_what_is_not_finite_names_the_types_that_hold_more(precision: str, wider: str):
    failure = slice_run.not_finite(precision)
    assert failure.reason.value == "non_finite"
    assert wider in failure.message
    assert ("precision" in failure.message) == bool(wider)


def test_what_the_host_takes_to_launch_is_counted_beside_what_the_device_takes(gpu: FakeGpu):
    rows = rows_of(images(20))
    _, counters = predict(predictor("models:colours", 8, num_gpus=1), rows)
    assert counters["launch"]["busy_s"] > 0
    assert counters["launch"]["rows_in"] == 20
    assert "launch" not in predict(predictor("models:colours", 8), rows)[1]


# ---------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    "room_rows",
    [9, *(pytest.param(rows, marks=pytest.mark.slow) for rows in (1, 2, 5, 8, 16, 100))],
)
def test_lack_of_memory_costs_no_row(gpu: FakeGpu, room_rows: int):
    gpu._row_bytes, gpu.total_bytes = KIB, room_rows * KIB
    rows = rows_of(images(40))
    model = predictor("support.runs.predicting:convolved", 8, num_gpus=1)
    same(
        predict(model, rows)[0], predict(predictor("support.runs.predicting:convolved", 8), rows)[0]
    )
    assert max(gpu.batches) <= room_rows


def test_a_row_alone_waits_for_memory_that_another_holds(gpu: FakeGpu):
    gpu._row_bytes = KIB
    model = predictor("models:colours", 4, num_gpus=1)
    gpu.hold(gpu.total_bytes)

    def others_end() -> None:
        if len(gpu.pauses_s) == 2:
            gpu.give_back(gpu.total_bytes)

    gpu.on_pause = others_end
    rows, _ = predict(model, rows_of(images(6)))
    assert all(is_predicted(row) for row in rows)
    assert gpu.pauses_s == list(PAUSES_S[:2])


@pytest.mark.slow
def test_a_row_that_never_fits_ends_the_worker_and_has_failed_in_a_child(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
):
    class Ended(BaseException):
        pass

    def end(why: str) -> None:
        raise Ended(why)

    monkeypatch.setattr(slice_run, "end_process", end)
    gpu._row_bytes = KIB
    model = predictor("models:colours", 4, num_gpus=1)
    gpu.hold(gpu.total_bytes)
    rows, _ = predict(model, rows_of(images(3)))
    assert {row["error"] for row in rows} == {"out_of_memory"}
    model._ends_process = True
    with pytest.raises(Ended, match=r"^Fake L4: no memory for row r0 alone"):
        predict(model, rows_of(images(3)))


def static(model: TorchEngine) -> TorchEngine:
    """Batches of one size, as of `compile`."""
    model._model._runner = Runner(model._model.runner.run, is_static=True)
    return model


def test_batches_of_one_size_wait_for_memory_and_then_name_the_batch_size(gpu: FakeGpu):
    gpu._row_bytes = KIB
    rows = rows_of(images(20))
    expected, _ = predict(predictor("models:colours", 8), rows)
    model = static(predictor("models:colours", 8, num_gpus=1))
    same(predict(model, rows)[0], expected)
    held = gpu.total_bytes - 4 * KIB
    gpu.hold(held)
    gpu.on_pause = lambda: gpu.give_back(held)
    same(predict(model, rows)[0], expected)
    gpu.hold(held)
    gpu.on_pause = lambda: None
    with pytest.raises(OutOfDeviceMemory, match=r"a batch of 8 rows .* set model.batch_size to 4"):
        predict(model, rows)


def heavy(num_bytes: int, **options: Any) -> TorchEngine:
    """A model of so many bytes in fp32, half as many in bf16."""
    return predictor("gpu_models:heavy", 8, num_gpus=1, args={"num_bytes": num_bytes}, **options)


def test_a_model_larger_than_the_card_is_named_with_both_sizes(gpu: FakeGpu):
    gpu.total_bytes = 10
    with pytest.raises(OutOfDeviceMemory, match=r"its 20 parameters take .* of Fake L4 .* free"):
        heavy(11)


def test_a_model_that_has_no_room_for_one_row_is_named_when_it_is_loaded(gpu: FakeGpu):
    gpu._row_bytes, gpu.total_bytes = KIB, KIB - 1
    with pytest.raises(
        OutOfDeviceMemory, match=r"one row does not fit into Fake L4 \(.*; run fewer"
    ):
        predictor("models:colours", 8, num_gpus=1)


def test_a_model_is_given_no_more_than_its_share_of_the_card(gpu: FakeGpu):
    gpu.total_bytes = 20 * KIB
    assert heavy(10 * KIB)
    with pytest.raises(
        OutOfDeviceMemory, match=r"use a lower model.precision, fewer actors per GPU"
    ):
        predictor("gpu_models:heavy", 8, num_gpus=0.4, args={"num_bytes": 10 * KIB})


def test_a_model_that_another_leaves_no_room_waits_for_it(gpu: FakeGpu):
    gpu.total_bytes = 100 * KIB
    gpu.hold(90 * KIB)
    gpu.on_pause = lambda: gpu.give_back(90 * KIB)
    model = gpu.patiently(lambda: heavy(50 * KIB))
    assert len(gpu.pauses_s) == 1
    assert all(is_predicted(row) for row in predict(model, rows_of(images(9)))[0])


@pytest.mark.parametrize(
    "room_kib",
    [pytest.param(151, marks=pytest.mark.slow), pytest.param(149, marks=pytest.mark.slow), 99],
    ids=["beside", "instead", "on the CPU"],
)
def test_the_reference_finds_a_place_and_the_model_is_back_after_it(gpu: FakeGpu, room_kib: int):
    gpu.total_bytes = room_kib * KIB
    model = heavy(100 * KIB, limits=LIMITS, precision="bf16")
    forgotten: list[int] = []
    gpu.forget = lambda: (forgotten.append(1), FakeGpu.forget(gpu))
    rows, counters = predict(model, rows_of(images(20)))
    assert all(is_predicted(row) for row in rows)
    assert counters["reference_check"]["num_rows"] == counters["reference_check"]["num_agreed"] > 0
    assert gpu.held_bytes == 50 * KIB
    assert not gpu.pauses_s
    assert bool(forgotten) == (room_kib < 150)  # what is compiled of the model stays as long as it
    assert all(is_predicted(row) for row in predict(model, rows_of(images(20)))[0])


def is_locked(name: str) -> bool:
    try:
        with one_at_a_time(name, waits=False):
            return False
    except BlockingIOError:
        return True


def test_one_actor_of_a_card_at_a_time_has_a_reference_on_it(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Where the locks lie: other processes of these tests have a stand-in of this name, too.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = heavy(100 * KIB, limits=LIMITS, precision="bf16")
    seen: list[tuple[int, bool]] = []
    run, before = gpu.run, gpu.held_bytes

    def looks(compute: Callable[..., Any], on_device: dict[str, torch.Tensor]) -> Any:
        seen.append((gpu.held_bytes, is_locked("reference-check-fake")))
        return run(compute, on_device)

    gpu.run = looks
    predict(model, rows_of(images(20)))
    # Locked while there is more than the own model, and at no other time.
    assert {is_held for _, is_held in seen} == {True, False}
    assert all(is_held == (num_bytes > before + 50 * KIB) for num_bytes, is_held in seen)
    assert not is_locked("reference-check-fake")


@pytest.mark.usefixtures("gpu")
def test_no_copy_of_weights_is_kept_in_more_bits_than_the_precision():
    size = 12_345
    model = predictor("gpu_models:wide", num_gpus=1, precision="bf16", args={"size": size})
    kept = [value for value in gc.get_objects() if isinstance(value, nn.Parameter)]
    assert {value.dtype for value in kept if value.numel() == size} == {torch.bfloat16}
    model.close()


@pytest.mark.slow
def test_the_host_keeps_no_copy_of_weights_that_are_on_the_device():
    """As workers are started, glibc keeps what is freed."""
    code = (
        "import os; from support.faults.fake_device import FakeGpu, installed\n"
        "from support.runs.predicting import predictor\n"
        "from pipeline.process.memory import taken_bytes\n"
        "with installed(FakeGpu()):\n"
        "    predictor('models:colours', num_gpus=1)\n"
        "    before = taken_bytes(os.getpid())\n"
        "    model = predictor('gpu_models:wide', num_gpus=1, precision='bf16')\n"
        "    print(taken_bytes(os.getpid()) - before)\n"
    )
    environment = {
        **os.environ,
        **WORKER_ENVIRONMENT,
        "PYTHONPATH": os.pathsep.join([PYTHONPATH, *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    # Memory of the stand-in is the host's: 128 MiB of bf16. 256 of fp32 were there before.
    assert 120 * MIB < int(done.stdout) < 200 * MIB


# ---------------------------------------------------------------------------- errors


def test_what_the_card_cannot_run_is_the_jobs_error(gpu: FakeGpu):
    no_kernel = "CUDA error: no kernel image is available for execution on the device"

    def refuses(*_: object) -> None:
        raise RuntimeError(no_kernel)

    gpu.run = refuses
    with pytest.raises(JobError, match=r"Fake L4 cannot run .* \(the card is sm_70, torch has ker"):
        predictor("models:colours", num_gpus=1)


def test_broken_hardware_fails_no_row_but_ends_the_run(gpu: FakeGpu):
    model = predictor("models:colours", 4, num_gpus=1)
    gpu.lost = RuntimeError("CUDA error: uncorrectable ECC error encountered")
    with pytest.raises(InfraError, match=r"^Fake L4 of .* has failed .*finished slices are kept"):
        predict(model, rows_of(images(9)))
    buffers = model._model.buffers
    ticket = buffers.ticket()
    assert all(buffers.take_spare(ticket) for _ in range(3)), "no other slice waits for ever"


def test_a_batch_that_fails_leaves_nothing_behind_that_the_next_one_reads(gpu: FakeGpu):
    gpu._copy_s = 0.02
    launched: list[int] = []
    run = gpu.run

    def fails_at_first(compute: Callable[..., Any], on_device: dict[str, torch.Tensor]) -> Any:
        launched.append(1)
        if len(launched) == 2:
            raise ValueError("raised while the copy to the device is under way")
        return run(compute, on_device)

    model = predictor("support.runs.predicting:convolved", 8, num_gpus=1)
    gpu.run = fails_at_first
    rows = rows_of(images(30, seed=3))
    same(
        predict(model, rows)[0], predict(predictor("support.runs.predicting:convolved", 8), rows)[0]
    )
    assert len(launched) > np.ceil(30 / 8)
