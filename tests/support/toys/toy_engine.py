"""An engine unknown to the pipeline: one row after the other, without batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from pipeline.core.failures import failures_of, without_failure
from pipeline.core.figures import Counters, StageCounters, add
from pipeline.inference.engines.engine import Engine
from pipeline.inference.result_table import to_table
from pipeline.models.spec import PredictorConfig, load_module
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import Arrays
from pipeline.models.tasks.classify import Classify
from pipeline.preprocessing.model_input import Inputs, num_rows, take_rows

NAME = "one-by-one"


class OneByOne(Engine):
    """float32 on the CPU."""

    num_opened = 0
    """How often this process has opened it."""

    def __init__(
        self, config: PredictorConfig, first: Any = None, *, ends_process: bool = False
    ) -> None:
        type(self).num_opened += 1
        self._config, self._task = config, make_task(config.spec.task)
        self._module: torch.nn.Module | None = load_module(config.spec)
        self._normaliser = config.spec.input.normaliser(torch.float32)

    def predict(self, rows: pa.Table, counters: Counters) -> pa.Table:
        seen, failures = self._config.spec.input, failures_of(rows)
        todo = np.flatnonzero(without_failure(failures))
        results: Arrays = {}
        if len(todo):
            # Rows that failed before get the values of others: no column shows them.
            places = np.zeros(rows.num_rows, np.intp)
            places[todo] = np.arange(len(todo))
            reduced = self.reduce(take_rows(seen.arrays(rows), todo))
            results = {name: values[places] for name, values in reduced.items()}
        for stage in ("transfer", "predict"):
            add(counters, stage, StageCounters(len(todo), len(todo)))
        published = seen.published_fields()
        task, pass_through, is_done = (
            self._task,
            self._config.pass_through,
            without_failure(failures),
        )
        return to_table(task, pass_through, rows, results, is_done, failures, published)

    def reduce(self, inputs: Inputs) -> Arrays:
        parts = [self._reduce_one(take_rows(inputs, [row])) for row in range(num_rows(inputs))]
        return {name: np.concatenate([arrays[name] for arrays in parts]) for name in parts[0]}

    def _reduce_one(self, inputs: Inputs) -> Arrays:
        with torch.inference_mode():
            batch = {name: torch.from_numpy(values) for name, values in inputs.items()}
            assert self._module is not None, "open"
            outputs = self._module(*self._normaliser(*batch.values()))
            reduced = self._task.reduce_batch(outputs, 1, batch)
        return {name: values.numpy() for name, values in reduced.items()}

    @property
    def awaits_reference_check(self) -> bool:
        return False

    def close(self) -> None:
        self._module = None


@dataclass(frozen=True)
class ClassifyOneByOne(Classify):
    """As `classify`, run by that engine."""

    engine: ClassVar[str] = NAME
