"""Engine `torch`: a module of torch, opened by one of the runtimes, batch after batch.

The same code runs on CPU and GPU. Normalisation runs here, on the device.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa

from pipeline.core.failures import failures_of, without_failure
from pipeline.core.figures.counters import LAUNCH, Counters, StageCounters, add
from pipeline.core.figures.slice_figures import SliceFigures, Tokens
from pipeline.core.registry import INPUTS
from pipeline.core.schema import ERROR, ROW_ID
from pipeline.core.user_code.own_code import errors_told
from pipeline.inference.devices.device_model import DeviceModel
from pipeline.inference.engines.base import Engine
from pipeline.inference.engines.reference_check import ReferenceCheck
from pipeline.inference.exact import alone, reduced
from pipeline.inference.own_rows import ONE_LENGTH, leave_out_padding, require_own
from pipeline.inference.slice_results import to_table
from pipeline.inference.slices.first_rows import SystematicFailureDetector
from pipeline.inference.slices.slice_run import STAGE, SliceRun
from pipeline.models.agreement import AgreementLimits
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks.base import Arrays
from pipeline.preprocessing.images.reference_pixels import choose_reference_rows
from pipeline.preprocessing.model_input import Arrays as Inputs
from pipeline.preprocessing.model_input import Rows, bytes_of


class TorchEngine(Engine):
    """One module on one device."""

    def __init__(
        self,
        config: PredictorConfig,
        first: SystematicFailureDetector | None = None,
        *,
        ends_process: bool = False,
    ) -> None:
        self._first, self._ends_process = first, ends_process
        self._model = DeviceModel(config)
        self._has_own_rows, self._is_unpadded = False, leave_out_padding(self._model)
        self._config = self._model.config
        self._check = ReferenceCheck(self._model)

    def predict(self, rows: pa.Table, counters: Counters) -> pa.Table:
        with self._model.turns.here():
            return self._predict(rows, counters)

    def _predict(self, rows: pa.Table, counters: Counters) -> pa.Table:
        seen = self._config.spec.input
        with errors_told(INPUTS, seen.name):
            inputs = seen.arrays(rows)
        failures = failures_of(rows)
        todo = np.flatnonzero(rows.column(ERROR).is_null().to_numpy())
        run = SliceRun(
            *(self._model, inputs, rows.column(ROW_ID), self._first),
            ends_process=self._ends_process,
        )
        for index, failure in run.run(todo):
            failures[index] = failure
        ok = np.flatnonzero(without_failure(failures))
        if not self._has_own_rows and len(ok):
            require_own(self._model, inputs, run.results, ok, rows.column(ROW_ID))
            self._has_own_rows = len(ok) > 1  # one row has no neighbours
        if self._check.is_awaited and (limits := self._config.limits) is not None:
            compared, exact = choose_reference_rows(rows, seen, inputs, ok)
            count_agreeing = partial(self._num_agreeing, compared, exact, run.results, limits)
            self._check.make_once(len(compared), count_agreeing, counters)
        is_good = without_failure(failures)
        failed = int((~is_good[todo]).sum())
        count_in, num_bytes = len(todo), bytes_of(inputs, todo)
        moved = StageCounters(count_in, count_in, 0, num_bytes, num_bytes, run.timer.transfer_s)
        add(counters, "transfer", moved)
        predicted = StageCounters(
            count_in, count_in - failed, failed, num_bytes, 0, run.timer.predict_s
        )
        add(counters, STAGE, predicted)
        if run.timer.launch_s:
            add(counters, LAUNCH, StageCounters(count_in, count_in, busy_s=run.timer.launch_s))
        if run.timer.num_tokens:
            tokens = Tokens(run.timer.num_tokens, run.timer.num_padded)
            SliceFigures(tokens=tokens).add_to(counters)
        if self._is_unpadded:
            SliceFigures(advice={ONE_LENGTH: 0}).add_to(counters)
        pass_through, task = self._config.pass_through, self._model.task
        published, results = seen.published_fields(), run.results
        return to_table(task, pass_through, rows, results, run.is_done, failures, published)

    @property
    def awaits_reference_check(self) -> bool:
        return self._check.is_awaited

    def _num_agreeing(
        self, rows: Rows, inputs: Inputs, results: Arrays, limits: AgreementLimits
    ) -> int:
        """Predict rows again with eager fp32, and count those that agree.

        Args:
            rows: (K,) their places in the slice, thus in `results`.
            inputs: What the reference sees of them, each (K, ...).
            results: What the task kept of the slice, each (N, ...).
            limits: How far a row may be from the reference.
        """
        spec = replace(self._config.spec.as_reference(), task=self._model.task.spec)
        config = replace(self._config, spec=spec, batch_size=len(rows), limits=None)
        if spec == self._config.spec and self._model.gpu is None:
            reference = self.reduce(inputs)  # it is loaded already, and computes the same
        else:
            reference = alone(self._model, config, lambda exact: reduced(exact, inputs))
        found = {name: values[rows] for name, values in results.items()}
        return int(self._model.task.compare(reference, found, limits).agrees.sum())

    def close(self) -> None:
        self._model.unload()

    def reduce(self, inputs: Inputs) -> Arrays:
        return reduced(self._model, inputs)
