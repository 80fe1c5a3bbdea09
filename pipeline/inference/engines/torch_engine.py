"""Engine `torch`: runs a module of torch, batch after batch, with one of the runtimes.

Its base class has what engine `generate` does the same way: it counts the rows of a slice, makes
the reference check, and builds the table. The same code runs on CPU and GPU.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.core.failures import Failure, failures_of, without_failure
from pipeline.core.figures import (
    LAUNCH,
    PREDICT,
    TRANSFER,
    Comparison,
    Counters,
    SliceFigures,
    StageCounters,
    Tokens,
    add,
)
from pipeline.core.node_cache import claim_once_per_node
from pipeline.core.registry import INPUTS
from pipeline.core.schema import ERROR, ROW_ID
from pipeline.core.user_code import extension_errors
from pipeline.inference.devices.device_model import DeviceModel
from pipeline.inference.engines.engine import Engine
from pipeline.inference.first_rows import SystematicFailureDetector
from pipeline.inference.reference_model import Work, alone, reduced
from pipeline.inference.result_table import to_table
from pipeline.inference.row_independence import leave_out_padding, require_independent_rows
from pipeline.inference.slice_run import FaultFinder, SliceRun
from pipeline.models.agreement import AgreementLimits
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks.base import Arrays, Mask
from pipeline.preprocessing.images.reference_pixels import choose_reference_rows
from pipeline.preprocessing.model_input import Inputs, Rows, bytes_of
from pipeline.preprocessing.texts.windows import Windows

T = TypeVar("T")


class Slice(NamedTuple):
    """N rows to predict, or the windows of rows."""

    rows: pa.Table
    inputs: Inputs
    todo: Rows
    """The rows without an error."""
    faults: FaultFinder
    """Fails the rows that cannot be predicted."""


class Predicted(NamedTuple):
    """The predictions of a slice."""

    results: Arrays
    """Name -> (N, ...), as `Task.reduce` names them."""
    is_done: Mask
    """(N,): which rows are in `results`."""
    transfer_s: float
    predict_s: float


class ModelEngine(Engine):
    """Base of engines with one module of torch on one device."""

    def __init__(
        self,
        config: PredictorConfig,
        first: SystematicFailureDetector | None = None,
        *,
        ends_process: bool = False,
    ) -> None:
        self._first, self._ends_process = first, ends_process
        self._model = self._opened(config)
        self._is_check_awaited, self._choosing = config.limits is not None, threading.Lock()

    def _opened(self, config: PredictorConfig) -> DeviceModel:
        """Load the model."""
        return DeviceModel(config)

    @abstractmethod
    def _predicted(self, part: Slice, counters: Counters) -> Predicted:
        """Predict the rows `todo`, make the reference check if it is due, and count figures."""

    def predict(self, rows: pa.Table, counters: Counters) -> pa.Table:
        with self._model.lock.shared():
            seen = self._config.spec.input
            with extension_errors(INPUTS, seen.name):
                windows = seen.windows(rows)
                shown = rows if windows is None else windows.rows
                inputs = seen.arrays(shown)
            todo = np.flatnonzero(shown.column(ERROR).is_null().to_numpy())
            failures, row_ids = failures_of(shown), shown.column(ROW_ID)
            faults = FaultFinder(
                self._model, row_ids, failures, self._first, ends_process=self._ends_process
            )
            part = Slice(shown, inputs, todo, faults)
            results, is_done, transfer_s, predict_s = self._predicted(part, counters)
            if windows is not None:
                is_done, failures = _of_rows(windows, is_done, failures)
            count_in, num_bytes = rows.column(ERROR).null_count, bytes_of(inputs, todo)
            failed = count_in - int(without_failure(failures).sum())
            moved = StageCounters(count_in, count_in, 0, num_bytes, num_bytes, transfer_s)
            add(counters, TRANSFER, moved)
            made = StageCounters(count_in, count_in - failed, failed, num_bytes, 0, predict_s)
            add(counters, PREDICT, made)
            task, published = self._model.task, seen.published_fields()
            pass_through = self._config.pass_through
            return to_table(
                task, pass_through, rows, results, is_done, failures, published, windows
            )

    @property
    def awaits_reference_check(self) -> bool:
        return self._is_check_awaited

    def close(self) -> None:
        self._model.unload()

    @property
    def _config(self) -> PredictorConfig:
        return self._model.config

    def _by_reference(self, exact: PredictorConfig, work: Work[T]) -> T:
        """Do work with the model in eager fp32."""
        return alone(self._model, exact, work)

    def _check_once(
        self, num_rows: int, count_agreeing: Callable[[], int], counters: Counters
    ) -> None:
        """Make the reference check if it is due and there are rows for it.

        Args:
            num_rows: Rows to compare.
            count_agreeing: Compares them; if it raises, a later slice is compared.
            counters: Gets the figure `reference_check`.
        """
        with self._choosing:  # of several slices in flight one makes the check
            if not num_rows or not self._is_check_awaited:
                return
            self._is_check_awaited = False
        name = f"reference-check-{self._config.run_id}"
        try:
            # Each actor with a GPU makes it, as a card may be faulty, and one actor per CPU node.
            if self._model.gpu is not None or claim_once_per_node(name):
                started = perf_counter()
                checked = Comparison(num_rows, count_agreeing(), perf_counter() - started)
                SliceFigures(reference_check=checked).add_to(counters)
        except BaseException:
            self._is_check_awaited = True
            raise


def _of_rows(
    windows: Windows, is_done: Mask, failures: Sequence[Failure | None]
) -> tuple[Mask, list[Failure | None]]:
    """Return which of the N rows are predicted, and the first failure of a window of each."""
    failed: dict[int, Failure] = {}
    for row, failure in zip(windows.owners.tolist(), failures, strict=True):
        if failure is not None:
            failed.setdefault(row, failure)
    firsts = windows.firsts
    return np.logical_and.reduceat(is_done, firsts), [failed.get(n) for n in range(len(firsts))]


class TorchEngine(ModelEngine):
    """One module of torch on one device."""

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
        run = self._run(part)
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

    def _run(self, part: Slice) -> SliceRun:
        """Predict the rows `todo`."""
        run = SliceRun(self._model, part.inputs, part.faults)
        run.run(part.todo)
        return run

    def _num_agreeing(
        self, rows: Rows, inputs: Inputs, results: Arrays, limits: AgreementLimits
    ) -> int:
        """Predict rows again with eager fp32, and count those that agree.

        Args:
            rows: (K,), row numbers in the slice.
            inputs: Their inputs for the reference, each (K, ...).
            results: The results of the slice, each (N, ...).
            limits: How far a row may differ from the reference.
        """
        spec = replace(self._config.spec.as_reference(), task=self._model.task.spec)
        config = replace(self._config, spec=spec, batch_size=len(rows), limits=None)
        if spec == self._config.spec and self._model.gpu is None:
            reference = self.reduce(inputs)  # the model is the reference
        else:
            reference = self._by_reference(config, lambda exact: reduced(exact, inputs))
        predicted = {name: values[rows] for name, values in results.items()}
        return int(self._model.task.compare(reference, predicted, limits).agrees.sum())

    def reduce(self, inputs: Inputs) -> Arrays:
        return reduced(self._model, inputs)
