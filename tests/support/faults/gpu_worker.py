"""A worker on a stand-in for a GPU, which its model ends: predicts slices as an actor does."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.core.schema import IMAGE_FIELDS
from pipeline.execution.isolation.attempts import Attempts
from pipeline.execution.isolation.child_process import Step
from pipeline.execution.isolation.crash_guard import Guard
from pipeline.execution.isolation.row_isolation import StagePlan
from pipeline.execution.predictor_actor import ActorConfig, _Model
from pipeline.execution.ray_options import CALLS_AT_ONCE
from pipeline.execution.stages import PREDICT, SliceWork
from pipeline.process.memory import MemoryShare
from support.faults.fake_device import FakeGpu, installed
from support.runs.predicting import WHITE, config_of, images, rows_of

BATCH_SIZE = 8
_to_its_end = contextlib.ExitStack()
"""Of a child."""


@dataclass(frozen=True)
class OnFakeGpu(SliceWork):
    """The work of a child, on a stand-in of its own."""

    def open(self) -> Mapping[str, Step]:
        _to_its_end.enter_context(installed(FakeGpu()))
        return super().open()


def slice_of(num_rows: int, white: list[int]) -> np.ndarray:
    pixels = images(num_rows)
    pixels[white] = WHITE
    return pixels


def main(factory: str, num_rows: int, white_row: int, path: str) -> None:
    """Predict slices at once, the first with a white row, into `NUMBER.parquet` of a folder."""
    folder = Path(path)
    config = ActorConfig(
        config_of(factory, BATCH_SIZE, num_gpus=1), 60.0, MemoryShare(1 << 40, 1), IMAGE_FIELDS
    )
    with installed(FakeGpu()) as gpu:
        model = _Model(config, {})
        guard = Guard(
            OnFakeGpu(None, config.predictor),
            [StagePlan(PREDICT, BATCH_SIZE, model.predict)],
            Attempts(folder / "marks"),
            config.row_timeout_s,
            model.make_room,
            fields=IMAGE_FIELDS,
        )

        def predict(number: int) -> None:
            rows = rows_of(slice_of(num_rows, [white_row] if number == 0 else []))
            predicted = guard.run(f"predict-0-{number}", rows, {})
            pq.write_table(predicted, folder / f"{number}.parquet")

        with contextlib.closing(guard), ThreadPoolExecutor(CALLS_AT_ONCE) as pool, gpu.away():
            for done in [pool.submit(predict, number) for number in range(CALLS_AT_ONCE)]:
                done.result()
