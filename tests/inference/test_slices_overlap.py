"""Slices in flight at once on a stand-in for a GPU: it waits for none of them, and none mix."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fake_device import FakeGpu, installed
from predicting import BAD, BLACK, WHITE, config_of, images, predictor, rows_of

from pipeline.core.counters import Counters
from pipeline.execution.isolation.attempts import Attempts
from pipeline.execution.isolation.crash_guard import Guard
from pipeline.execution.isolation.row_isolation import StagePlan
from pipeline.execution.predictor_actor import ActorConfig, MemoryShare, _Model
from pipeline.execution.stages import PREDICT, SliceWork
from pipeline.models.agreement import AgreementLimits


class Actor:
    """The guard and the model of an actor, without Ray."""

    def __init__(self, folder: Path, factory: str, batch_size: int, **options: Any) -> None:
        predictor = config_of(factory, batch_size, num_gpus=1, **options)
        self.model = _Model(ActorConfig(predictor, 60.0, MemoryShare(1 << 40, 1)), {})
        self.guard = Guard(
            SliceWork(None, predictor),
            [StagePlan(PREDICT, batch_size, self.model.predict)],
            Attempts(folder),
            60.0,
            self.model.make_room,
        )

    def run(self, slices: Sequence[pa.Table], at_once: int, between_s: float) -> list[pa.Table]:
        """Predict slices, so many at once, as Ray calls an actor; return them in order."""
        left: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(len(slices)):
            left.put(number)
        found: dict[int, pa.Table] = {}

        def call() -> None:
            while not left.empty():
                try:
                    number = left.get_nowait()
                except queue.Empty:
                    return
                sleep(between_s)
                found[number] = self.guard.run(f"predict-{number}", slices[number], {})

        with ThreadPoolExecutor(at_once) as pool:
            for each in [pool.submit(call) for _ in range(at_once)]:
                each.result()
        return [found[number] for number in range(len(slices))]


def slices() -> Iterator[pa.Table]:
    rng = np.random.default_rng(7)
    for number in range(16):
        pixels = images(int(rng.integers(1, 40)), seed=number)
        kinds = rng.choice(["good", "good", "good", "good", "dark", "white", "bad"], len(pixels))
        pixels[kinds == "dark"], pixels[kinds == "white"] = BLACK, WHITE
        yield rows_of(pixels, [BAD if kind == "bad" else None for kind in kinds])


@pytest.mark.parametrize("room_rows", [3, 12, 1 << 20], ids=["tight", "less", "enough"])
@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_slices_in_flight_do_not_mix_whatever_fails(tmp_path: Path, at_once: int, room_rows: int):
    work = list(slices())
    alone = predictor("models:fussy", 8)
    expected = [alone.predict(rows, {}) for rows in work]
    with installed(FakeGpu(rows_per_s=20_000, row_bytes=1, total_bytes=room_rows)):
        found = Actor(tmp_path, "models:fussy", 8).run(work, at_once, 0.001)
    for mine, theirs in zip(found, expected, strict=True):
        for name in ("row_id", "n", "label", "error", "message"):
            assert mine.column(name).to_pylist() == theirs.column(name).to_pylist()
        ours, others = mine.column("score").to_pylist(), theirs.column("score").to_pylist()
        assert ours == [other and pytest.approx(other, abs=1e-5) for other in others]


def test_one_slice_in_flight_alone_is_compared_with_the_reference(tmp_path: Path):
    counted: list[Counters] = [{} for _ in range(8)]
    with installed(FakeGpu(rows_per_s=20_000)):
        limits = AgreementLimits(0.02, 0.999, 0.02)
        model = predictor("predicting:convolved", 8, num_gpus=1, limits=limits)
        with ThreadPoolExecutor(4) as pool:
            done = [pool.submit(model.predict, rows_of(images(30)), each) for each in counted]
            assert all(each.result().column("error").null_count == 30 for each in done)
    [found] = [each["canary"] for each in counted if "canary" in each]
    assert found["rows_in"] == found["rows_out"] > 0
