"""One actor, or one decoder, of a division of a node's cores or of a card that is tried out."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter, sleep
from typing import NamedTuple

import pyarrow as pa

from pipeline.execution.stages import Preprocessing
from pipeline.inference.engines import open_engine
from pipeline.inference.engines.base import Engine
from pipeline.models.spec import PredictorConfig
from pipeline.preprocessing.model_input import Arrays as Inputs
from pipeline.preprocessing.model_input import take_rows
from pipeline.runs.tuning.trials.measure import overlapping
from pipeline.runs.tuning.trials.memory import held_bytes, lack_of_memory, peak_mib
from pipeline.runs.tuning.trials.workload import run_batches


class Worked(NamedTuple):
    """What an actor or a decoder did for some seconds."""

    rows_per_s: float
    peak_mib: float
    problem: str = ""
    """Why it could not do so in a run."""


class LayoutWorker:
    """One actor, or one decoder, of a division of the cores that is tried out."""

    def __init__(
        self, kind: str, config: PredictorConfig, preprocessing: Preprocessing | None
    ) -> None:
        """Say what it does: `predict`, `decode`, or `both` one after the other."""
        self._kind, self._config, self._preprocessing = kind, config, preprocessing
        self._predictor: Engine | None = None
        self._loaded_bytes = 0

    def load(self, rows: pa.Table, inputs: Inputs) -> None:
        """Take a sample, encoded and decoded; load the model if there is need, and warm up."""
        self._rows, self._inputs = rows, inputs
        config = self._config
        self._batches = run_batches(config.spec.input, inputs, config.limits_of_batch)
        if self._kind != "decode":
            self._predictor = open_engine(self._config)
            self._loaded_bytes = held_bytes(config)
            if config.num_gpus:
                self._batches = overlapping(self._batches)
        self._one_batch(0)

    def work(self, seconds: float, pace_rows_per_s: float | None) -> Worked:
        """Work for some seconds, whole batches.

        Args:
            seconds: For how long.
            pace_rows_per_s: Work no faster, as a decoder whose rows are not taken faster.
        """
        done, number, started = 0.0, 0, perf_counter()
        while perf_counter() - started < seconds:
            done += self._one_batch(number)
            number += 1
            if pace_rows_per_s is not None:
                ahead_s = done / pace_rows_per_s - (perf_counter() - started)
                sleep(max(0.0, ahead_s))
        rate = done / (perf_counter() - started)
        if self._predictor is None:
            return Worked(rate, peak_mib(replace(self._config, num_gpus=0.0)))
        problem = lack_of_memory(self._config, self._loaded_bytes)
        return Worked(rate, peak_mib(self._config), problem)

    def _one_batch(self, number: int) -> float:
        """Work on a batch; return how many rows of a run it stands for."""
        batch = self._batches[number % len(self._batches)]
        if self._preprocessing is not None and self._kind != "predict":
            self._preprocessing({}, self._rows.take(pa.array(batch.rows % self._rows.num_rows)))
        if self._predictor is not None:
            self._predictor.reduce(take_rows(self._inputs, batch.rows))
        return batch.worth
