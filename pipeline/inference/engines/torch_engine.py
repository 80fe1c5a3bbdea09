"""Engine `torch`: a module of torch, opened by one of the runtimes, batch after batch.

The same code runs on CPU and GPU. Normalisation runs here, on the device.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from pipeline.core.failures import without_failure
from pipeline.core.figures.counters import LAUNCH, Counters, StageCounters, add
from pipeline.core.figures.slice_figures import SliceFigures, Tokens
from pipeline.inference.engines.model_engine import ModelEngine, Predicted, Slice
from pipeline.inference.first_rows import SystematicFailureDetector
from pipeline.inference.reference_model import alone, reduced
from pipeline.inference.row_independence import leave_out_padding, require_independent_rows
from pipeline.inference.slice_run import SliceRun
from pipeline.models.agreement import AgreementLimits
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks.base import Arrays
from pipeline.preprocessing.images.reference_pixels import choose_reference_rows
from pipeline.preprocessing.model_input import Arrays as Inputs
from pipeline.preprocessing.model_input import Rows


class TorchEngine(ModelEngine):
    """One module on one device."""

    def __init__(
        self,
        config: PredictorConfig,
        first: SystematicFailureDetector | None = None,
        *,
        ends_process: bool = False,
    ) -> None:
        super().__init__(config, first, ends_process=ends_process)
        self._has_independent_rows, self._advice = False, leave_out_padding(self._model)

    def _predicted(self, part: Slice, counters: Counters) -> Predicted:
        model, inputs, faults = self._model, part.inputs, part.faults
        run = SliceRun(model, inputs, faults)
        run.run(part.todo)
        ok = np.flatnonzero(without_failure(faults.failures))
        if not self._has_independent_rows and len(ok):
            is_compared = require_independent_rows(model, inputs, run.results, ok, faults.row_ids)
            self._has_independent_rows |= is_compared and len(ok) > 1  # one row has no neighbours
        if self.awaits_reference_check and (limits := self._config.limits) is not None:
            seen = self._config.spec.input
            compared, exact = choose_reference_rows(part.rows, seen, inputs, ok)
            count_agreeing = partial(self._num_agreeing, compared, exact, run.results, limits)
            self._check_once(len(compared), count_agreeing, counters)
        timer, num_rows = run.timer, len(part.todo)
        if timer.launch_s:
            add(counters, LAUNCH, StageCounters(num_rows, num_rows, busy_s=timer.launch_s))
        SliceFigures(
            tokens=Tokens(timer.num_tokens, timer.num_padded) if timer.num_tokens else None,
            advice={self._advice: 0} if self._advice else {},
        ).add_to(counters)
        return Predicted(run.results, run.is_done, timer.transfer_s, timer.predict_s)

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
        predicted = {name: values[rows] for name, values in results.items()}
        return int(self._model.task.compare(reference, predicted, limits).agrees.sum())

    def reduce(self, inputs: Inputs) -> Arrays:
        return reduced(self._model, inputs)
