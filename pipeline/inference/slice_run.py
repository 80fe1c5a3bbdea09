"""Run the rows of one slice through a model, batch by batch; find the rows that it cannot predict.

A failing batch is split until the rows at fault are found; lack of memory makes later batches
smaller as well. On a GPU some batches are in flight at once.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.core.failures import Failure, Reason
from pipeline.core.figures import PREDICT
from pipeline.core.registry import TASKS
from pipeline.core.user_code import module_of, whereabouts
from pipeline.inference.devices.accelerator import PAUSES_S, Gpu
from pipeline.inference.devices.device_buffers import DeviceBuffer
from pipeline.inference.devices.device_errors import end_process, is_out_of_memory
from pipeline.inference.devices.device_model import DeviceModel
from pipeline.inference.first_rows import RaisedFailure, SystematicFailureDetector
from pipeline.models.outputs import OutputError
from pipeline.models.tasks.base import Arrays
from pipeline.preprocessing.model_input import BatchLimits, Input, Inputs, Rows
from pipeline.process.liveness import no_limit, still_alive

_WIDER = {
    "fp16": " in fp16: model.precision bf16 or fp32 holds larger numbers",
    "bf16": " in bf16: model.precision fp32 holds more numbers",
}
_NO_ROWS = np.zeros(0, np.int64)
InFlight = deque[tuple[DeviceBuffer, Rows]]
"""Batches that have been started, the oldest first."""
Attempt = Callable[[Rows], Failure | None]
"""Predicts rows as one batch; returns why it failed, None if it did not."""


class FaultFinder:
    """Finds the rows of one slice that a model cannot predict, and fails them."""

    def __init__(
        self,
        model: DeviceModel,
        row_ids: Sequence[str],
        failures: list[Failure | None],
        first: SystematicFailureDetector | None,
        *,
        ends_process: bool,
    ) -> None:
        """Take a slice.

        Args:
            row_ids: (N,).
            failures: (N,); gets the failures of the rows at fault.
            first: Watches the first rows; None: a failure is always the row's own fault.
            ends_process: Whether a single row that does not fit into a GPU's memory ends the
                process, so that a child decides; otherwise the row fails.
        """
        self._model, self.row_ids, self.failures = model, row_ids, failures
        self.first, self._ends_process = first, ends_process
        self._failed_ids = set[str]()

    def split(
        self, batch: Rows, failure: Failure, predict: Callable[[Rows], None], attempt: Attempt
    ) -> None:
        """Halve a failed batch until the rows at fault are found, and fail them.

        Args:
            batch: (B,); none of its rows has a result.
            failure: Why it failed.
            predict: Predicts some of its rows; splits them if they fail.
            attempt: Predicts a batch that cannot be halved.

        Raises:
            OutOfDeviceMemory: Batches have a fixed size, and none fits into memory.
        """
        model, gpu = self._model, self._model.gpu
        lacks_memory = failure.reason is Reason.OUT_OF_MEMORY
        if lacks_memory and gpu is not None and (len(batch) == 1 or model.runner.is_static):
            later = self._try_later(gpu, batch, failure, attempt)
            if later is None:
                return
            failure = later
        if len(batch) == 1:
            row = int(batch[0])
            row_id = str(self.row_ids[row])
            # Windows of one text fail one by one, and count as one row.
            if self.first is not None and row_id not in self._failed_ids:
                self.first.failed(row_id, failure)
            self._failed_ids.add(row_id)
            self.failures[row] = failure
            return
        half = len(batch) // 2
        if failure.reason is Reason.OUT_OF_MEMORY:
            model.limits = model.limits.halved(half)
            model.make_room()
        predict(batch[:half])
        predict(batch[half:])

    def _try_later(
        self, gpu: Gpu, batch: Rows, failure: Failure, attempt: Attempt
    ) -> Failure | None:
        """Try a batch again after pauses; return why it failed in the end, None if it did not."""
        model = self._model
        for pause_s in PAUSES_S:
            model.make_room()
            again = attempt(batch)
            if again is None or again.reason is not Reason.OUT_OF_MEMORY:
                return again
            with no_limit():
                gpu.pause(pause_s)
        if model.runner.is_static:
            raise model.no_room(model.config.batch_size)
        if self._ends_process:
            row = self.row_ids[int(batch[0])]
            end_process(f"{gpu.name}: no memory for row {row} alone")
        return failure


class Batches:
    """The batches of a slice that have not been started yet."""

    def __init__(self, seen: Input, inputs: Inputs, todo: Rows, limits: BatchLimits) -> None:
        self._divide = functools.partial(seen.batches, inputs)
        self._limits = limits
        self._left = deque(self._divide(todo, limits))

    def __bool__(self) -> bool:
        return bool(self._left)

    def take(self, limits: BatchLimits) -> Rows:
        """Return the next batch; divide the rest again if the limits have changed."""
        if limits != self._limits:
            self._limits = limits
            self._left = deque(self._divide(np.concatenate(self._left), limits))
        return self._left.popleft()


@dataclass
class Timer:
    """Busy seconds and tokens of one slice."""

    transfer_s: float = 0.0
    predict_s: float = 0.0
    launch_s: float = 0.0
    """Seconds in which the host gathered and launched batches of a GPU."""
    num_tokens: int = 0
    """Tokens of finished batches; `num_padded` has the padding, too."""
    num_padded: int = 0

    def add(self, transfer_s: float, predict_s: float, launch_s: float) -> None:
        self.transfer_s += transfer_s
        self.predict_s += predict_s
        self.launch_s += launch_s


class SliceRun:
    """The rows of one slice, predicted batch by batch."""

    def __init__(self, model: DeviceModel, inputs: Inputs, faults: FaultFinder) -> None:
        """Take a slice.

        Args:
            inputs: The arrays of the slice (`Input.arrays`), each (N, ...).
            faults: Fails the rows at fault.
        """
        self._model, self._inputs, self._faults = model, inputs, faults
        self.results: Arrays = {}
        """Results of the rows, name -> (N, ...)."""
        self.is_done = np.zeros(len(faults.failures), np.bool_)
        """(N,): which rows are in `results`."""
        self.timer, self._ticket = Timer(), model.buffers.ticket()

    def run(self, todo: Rows) -> None:
        """Predict the rows `todo`, one batch in flight per free buffer; fail the rows at fault.

        Raises:
            SystematicFailure: All rows of the first batches failed for one cause.
            JobError: Outputs are not what the job declares; see `OutputsCheck`.
            OutOfDeviceMemory: A batch of the runtime's fixed size does not fit into memory.
            InfraError: The GPU has failed.
        """
        busy: InFlight = deque()
        try:
            self._run(todo, busy)
        finally:
            for buffer, _ in busy:
                self._model.buffers.give(buffer)

    def _run(self, todo: Rows, busy: InFlight) -> None:
        failed: list[tuple[Rows, Failure]] = []
        left = Batches(self._model.config.spec.input, self._inputs, todo, self._model.limits)
        while left or busy:
            begun = None if failed else self._begin_next(left, busy)
            batch, failure = begun or self._end_oldest(busy)
            if begun is None and failure is None:
                self.keep(batch)
            if failure is not None:
                failed.append((batch, failure))
            if failed and not busy:  # splitting needs a buffer: batches in flight finish first
                for batch, failure in failed:
                    self._split(batch, failure)
                    if self._faults.first is not None:
                        self._faults.first.check()
                failed = []

    def _begin_next(self, left: Batches, busy: InFlight) -> tuple[Rows, Failure | None] | None:
        """Start the next batch; return it and why it failed. None: no batch, or no buffer."""
        buffers, model = self._model.buffers, self._model
        take = buffers.take_spare if busy else buffers.take
        spare = take(self._ticket) if left else None
        if spare is None:
            return None
        busy.append((spare, _NO_ROWS))  # from here on `run` gives the buffer back
        busy[-1] = spare, left.take(model.limits)
        failure = self._try_start(*busy[-1])
        if failure is None:
            return busy[-1][1], None
        buffer, batch = busy.pop()
        buffers.give(buffer)
        return batch, failure

    def _end_oldest(self, busy: InFlight) -> tuple[Rows, Failure | None]:
        """Finish the oldest batch in flight; return it and why it failed."""
        failure = self._try_finish(*busy[0])
        buffer, batch = busy.popleft()
        self._model.buffers.give(buffer)
        return batch, failure

    def keep(self, batch: Rows) -> None:
        """Keep the results of a finished batch; fail rows whose results are not finite."""
        faults = self._faults
        if faults.first is not None:
            faults.first.predicted()
        self._model.check_outputs(self.results, batch, faults.row_ids)
        self.is_done[batch] = True
        failure = not_finite(self._model.config.spec.precision)
        for row in batch[~are_finite(self.results, batch)]:
            faults.failures[row] = failure

    def _split(self, batch: Rows, failure: Failure) -> None:
        self._faults.split(batch, failure, self._predict, self._attempt)

    def _predict(self, batch: Rows) -> None:
        failure = self._attempt(batch)
        if failure is not None:
            self._split(batch, failure)

    def _attempt(self, batch: Rows) -> Failure | None:
        """Predict a batch while none is in flight; return why it failed, None if it did not."""
        with self._model.buffers.one(self._ticket) as buffer:
            failure = self._try_start(buffer, batch) or self._try_finish(buffer, batch)
        if failure is None:
            self.keep(batch)
        return failure

    def _try_start(self, buffer: DeviceBuffer, batch: Rows) -> Failure | None:
        """Start a batch; return the failure if that raises.

        The caller retries, as the frames of the exception still hold the batch's tensors.
        """
        try:
            self._model.start(buffer, self._inputs, batch)
        except Exception as error:  # noqa: BLE001  # any error of a user's model fails its row
            return failure_of(error, self._model)
        return None

    def _try_finish(self, buffer: DeviceBuffer, batch: Rows) -> Failure | None:
        """Write the results of a batch into `results`; return the failure if that raises."""
        try:
            self._model.keep(buffer, self._inputs, batch, self.results)
        except Exception as error:  # noqa: BLE001  # a GPU raises errors of the model here
            return failure_of(error, self._model)
        self.timer.add(*buffer.busy_s, buffer.launch_s)
        self._count_tokens(buffer, batch)
        still_alive(num_rows=len(batch))
        return None

    def _count_tokens(self, buffer: DeviceBuffer, batch: Rows) -> None:
        seen = self._model.config.spec.input
        lengths = seen.lengths(self._inputs, batch)
        if lengths is not None:
            self.timer.num_tokens += int(lengths.sum())
            self.timer.num_padded += seen.num_padded(buffer.shapes)


def failure_of(error: BaseException, model: DeviceModel) -> RaisedFailure:
    """Return why a batch failed, and where in the user's model or task.

    Raises:
        InfraError: The GPU has failed.
    """
    gpu, spec = model.gpu, model.config.spec
    if isinstance(error, OutputError):
        return RaisedFailure(Reason.MODEL_ERROR, PREDICT, str(error), is_of_outputs=True)
    no_memory = is_out_of_memory(error) if gpu is None else gpu.lacks_memory(error)
    reason = Reason.OUT_OF_MEMORY if no_memory else Reason.MODEL_ERROR
    modules = (spec.name.partition(":")[0], module_of(TASKS, spec.task.kind))
    where = next(filter(None, (whereabouts(error, module) for module in modules)), "")
    return RaisedFailure(reason, PREDICT, f"{type(error).__name__}: {error}", where=where)


def not_finite(precision: str) -> Failure:
    """Return the failure of a row whose output is not finite; names wider precisions."""
    return Failure(Reason.NON_FINITE, PREDICT, f"output is not finite{_WIDER.get(precision, '')}")


def are_finite(results: Arrays, batch: Rows) -> npt.NDArray[np.bool_]:
    """Return which rows of a batch have only finite results, bool (B,)."""
    ok = np.ones(len(batch), bool)
    for values in results.values():
        if np.issubdtype(values.dtype, np.floating):
            ok &= np.isfinite(values[batch]).reshape(len(batch), -1).all(axis=1)
    return ok
