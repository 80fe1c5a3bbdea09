"""Test that a stand-in for a GPU never waits between slices in flight, and that none mix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from threading import Condition
from time import monotonic, process_time, sleep

import numpy as np
import pyarrow as pa
import pytest
from support.faults.fake_device import FakeGpu, installed
from support.runs.predicting import BAD, BLACK, WHITE, config_of, images, predictor, rows_of
from support.runs.selection import quick_cases

from pipeline.core.figures import Counters
from pipeline.core.schema import IMAGE_FIELDS
from pipeline.execution.executors import CALLS_AT_ONCE
from pipeline.execution.isolation.crash_guard import Guard, StagePlan
from pipeline.execution.isolation.crash_marks import CrashMarks
from pipeline.execution.predictor_actor import ActorConfig, _Model
from pipeline.execution.stages import PREDICT, SliceWork
from pipeline.inference.devices.device_buffers import FreeBuffers
from pipeline.inference.devices.shared_lock import SharedLock
from pipeline.models.agreement import AgreementLimits
from pipeline.process.memory import MemoryShare

NUM_SLICES, SLICE_ROWS, BATCH_SIZE = 25, 256, 128
L4_ROWS_PER_S, H100_ROWS_PER_S = 1_000, 6_000
"""Of ViT-B/16."""
COPY_S, LAUNCH_S = 0.001, 0.002
BETWEEN_S = 0.03
"""What it takes from the end of a call of an actor to the begin of the next one, in Ray Data."""


class Actor:
    """The guard and the model of an actor, without Ray."""

    def __init__(
        self, gpu: FakeGpu, folder: Path, factory: str, batch_size: int, between_s: float
    ) -> None:
        predictor = config_of(factory, batch_size, num_gpus=1)
        self.gpu, self.between_s = gpu, between_s
        model = _Model(ActorConfig(predictor, 60.0, MemoryShare(1 << 40, 1), IMAGE_FIELDS), {})
        plans = [StagePlan(PREDICT, batch_size, model.predict)]
        work, marks = SliceWork(None, predictor), CrashMarks(folder)
        self.guard = Guard(work, plans, marks, 60.0, model.make_room, fields=IMAGE_FIELDS)
        self.guard.run("loads the model", rows_of(images(1)), {})

    def run(self, slices: Sequence[pa.Table], at_once: int) -> list[pa.Table]:
        """Predict slices, so many at once, as Ray calls an actor; return them in order."""
        left = iter(range(len(slices)))
        tables: dict[int, pa.Table] = {}

        def call() -> None:
            with self.gpu.host():
                for number in left:
                    self.gpu.clock.sleep(self.between_s)
                    tables[number] = self.guard.run(f"predict-{number}", slices[number], {})

        with ThreadPoolExecutor(at_once) as pool, self.gpu.away():
            for future in [pool.submit(call) for _ in range(at_once)]:
                future.result()
        return [tables[number] for number in range(len(slices))]


def idle_share(folder: Path, rows_per_s: float, at_once: int) -> tuple[float, float]:
    """Predict slices.

    Returns:
        The share of its own time in which the device has no batch, from the first to the last; and
        the CPU seconds of the actor per row, without those of the device's own arithmetic.
    """
    rows = rows_of(images(SLICE_ROWS))
    gpu = FakeGpu(rows_per_s=rows_per_s, copy_s=COPY_S, launch_s=LAUNCH_S)
    with installed(gpu):
        actor = Actor(gpu, folder, "models:colours", BATCH_SIZE, BETWEEN_S)
        actor.run([rows], 1)  # the first slice has rows that are predicted again
        gpu.main.ended_s, gpu.main.idle_s, gpu.main.busy_s = None, 0.0, 0.0
        started_s = process_time() - gpu.cpu_s
        actor.run([rows] * NUM_SLICES, at_once)
        host_s = process_time() - gpu.cpu_s - started_s
        assert gpu.thread_names == {"gpu_0"}
    # Of the first slice two rows are predicted again, alone.
    num_rows = NUM_SLICES * SLICE_ROWS + 2
    assert gpu.main.busy_s == pytest.approx(num_rows / rows_per_s, rel=1e-3)
    idle = gpu.main.idle_s / (gpu.main.idle_s + gpu.main.busy_s)
    return idle, host_s / (NUM_SLICES * SLICE_ROWS)


@pytest.mark.parametrize(
    "rows_per_s",
    [pytest.param(L4_ROWS_PER_S, marks=pytest.mark.slow), H100_ROWS_PER_S],
    ids=["L4", "H100"],
)
def test_a_gpu_works_95_percent_of_the_time_while_slices_come(
    tmp_path: Path, rows_per_s: int, record_property: Callable[[str, object], None]
):
    idle, host_s = idle_share(tmp_path, rows_per_s, CALLS_AT_ONCE)
    record_property("idle_pct", f"{100 * idle:.1f}")
    record_property("host_cpu_us_per_row", f"{1e6 * host_s:.1f}")
    print(f"idle {100 * idle:.1f}%, {1e6 * host_s:.1f} us of the host's CPU per row")
    assert idle <= 0.05


@pytest.mark.slow
def test_with_one_call_at_a_time_it_waits_between_slices(tmp_path: Path):
    assert idle_share(tmp_path, H100_ROWS_PER_S, 1)[0] > 0.2


WAIT_S = 120


def until(is_so: Callable[[], bool]) -> None:
    deadline_s = monotonic() + WAIT_S
    while not is_so():
        assert monotonic() < deadline_s, "did not come true"
        sleep(0.001)


def test_buffers_go_to_the_slice_that_came_first_whoever_waited_first():
    free: FreeBuffers = FreeBuffers([])
    earlier, later = free.ticket(), free.ticket()
    with ThreadPoolExecutor(2) as pool:
        try:
            of_later = pool.submit(free.take, later)
            until(lambda: free._waiting == [later])
            of_earlier = pool.submit(free.take, earlier)
            until(lambda: len(free._waiting) == 2)
            with free._changed:  # nobody is woken yet
                free._free.append("first")
                assert free.take_spare(later) is None
                assert free.take_spare(free.ticket()) is None
                assert free.take_spare(earlier) == "first"
            free.give("first")
            assert of_earlier.result(WAIT_S) == "first"
            assert not of_later.done()
            free.give("second")
            assert of_later.result(WAIT_S) == "second"
            free.give("third")
            assert free.take_spare(free.ticket()) == "third"
        finally:  # let threads end that wait for what never comes
            free.give("spare")
            free.give("spare")


def slices() -> Iterator[pa.Table]:
    rng = np.random.default_rng(7)
    for number in range(16):
        pixels = images(int(rng.integers(1, 40)), seed=number)
        kinds = rng.choice(["good", "good", "good", "good", "dark", "white", "bad"], len(pixels))
        pixels[kinds == "dark"], pixels[kinds == "white"] = BLACK, WHITE
        yield rows_of(pixels, [BAD if row_type == "bad" else None for row_type in kinds])


@pytest.mark.parametrize(
    ("at_once", "room_rows"),
    quick_cases(
        product([1, CALLS_AT_ONCE, 4], [3, 12, 1 << 20]),
        lambda *case: case == (4, 12),
    ),
)
def test_slices_in_flight_do_not_mix_whatever_fails(tmp_path: Path, at_once: int, room_rows: int):
    work = list(slices())
    alone = predictor("models:fussy", 8)
    expected = [alone.predict(rows, {}) for rows in work]
    gpu = FakeGpu(rows_per_s=20_000, row_bytes=1, total_bytes=room_rows)
    with installed(gpu):
        tables = Actor(gpu, tmp_path, "models:fussy", 8, 0.001).run(work, at_once)
    for mine, theirs in zip(tables, expected, strict=True):
        for name in ("row_id", "n", "label", "error", "message"):
            assert mine.column(name).to_pylist() == theirs.column(name).to_pylist()
        ours, others = mine.column("score").to_pylist(), theirs.column("score").to_pylist()
        assert ours == [other and pytest.approx(other, abs=1e-5) for other in others]


class NotedLock(SharedLock):
    """Notes when a slice wants to begin, and whether one is worked on."""

    def __init__(self) -> None:
        super().__init__()
        self.num_begun, self.changed = 0, Condition()

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self.changed:
            self.num_begun += 1
            self.changed.notify_all()
        with super().shared():
            yield

    def wait_for(self, num_begun: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.num_begun >= num_begun, WAIT_S)


@pytest.mark.parametrize("num_rows", [pytest.param(1, marks=pytest.mark.slow), 20])
def test_a_slice_that_comes_while_the_model_is_off_the_card_waits_for_it(num_rows: int):
    kib, rows = 1 << 10, rows_of(images(num_rows))
    with installed(FakeGpu(total_bytes=149 << 10)) as gpu:  # too little for both models
        args, limits = {"num_bytes": 100 * kib}, AgreementLimits(0.1, 0.99, 0.1)
        options = {"num_gpus": 1, "args": args, "limits": limits, "precision": "bf16"}
        model = predictor("gpu_models:heavy", 8, **options)
        model._model.lock = lock = NotedLock()
        unload = model._model.unload

        def unload_while_another_comes() -> None:
            unload()
            coming.append(pool.submit(model.predict, rows, {}))
            lock.wait_for(2)

        coming = list[Future[pa.Table]]()
        model._model.unload = unload_while_another_comes
        counters: Counters = {}
        with ThreadPoolExecutor(2) as pool, gpu.away():
            first = pool.submit(model.predict, rows_of(images(20)), counters).result()
            [second] = [future.result() for future in coming]
        assert counters["reference_check"]["num_rows"] > 0
    assert first.column("error").null_count == 20
    assert second.column("error").null_count == num_rows


def test_what_is_done_alone_waits_for_the_slices_that_hold_the_model():
    lock, order = NotedLock(), list[str]()

    def slice_of(name: str) -> None:
        with lock.shared():
            order.append(name)

    def compared() -> None:
        with lock.shared(), lock.exclusive(within_shared=True):
            order.append("alone")
            later.append(pool.submit(slice_of, "later"))
            lock.wait_for(3)

    later = list[Future[None]]()
    with ThreadPoolExecutor(3) as pool:
        with lock.shared():
            done = pool.submit(compared)
            until(lambda: lock._num_waiting == 1)
            order.append("earlier")
        done.result(WAIT_S)
        later[0].result(WAIT_S)
    assert order == ["earlier", "alone", "later"]


def test_one_slice_in_flight_alone_is_compared_with_the_reference(tmp_path: Path):
    counted: list[Counters] = [{} for _ in range(8)]
    with installed(FakeGpu(rows_per_s=20_000)) as gpu:
        limits = AgreementLimits(0.02, 0.999, 0.02)
        model = predictor("support.runs.predicting:convolved", 8, num_gpus=1, limits=limits)
        with ThreadPoolExecutor(4) as pool, gpu.away():
            done = [
                pool.submit(model.predict, rows_of(images(30)), counters) for counters in counted
            ]
            assert all(future.result().column("error").null_count == 30 for future in done)
    [checked] = [
        counters["reference_check"] for counters in counted if "reference_check" in counters
    ]
    assert checked["num_rows"] == checked["num_agreed"] > 0
