"""Find the rows at fault of a batch that failed: it is halved until they are alone.

Lack of memory makes later batches smaller as well. A batch that cannot be smaller is tried again
after a while, as what holds the memory may give it back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.core.failures import Failure, Reason
from pipeline.inference.devices.accelerator import PAUSES_S, Gpu
from pipeline.inference.devices.device_errors import end_process
from pipeline.inference.devices.device_model import DeviceModel
from pipeline.inference.first_rows import SystematicFailureDetector
from pipeline.preprocessing.model_input import Rows
from pipeline.process.liveness import no_limit

Attempt = Callable[[Rows], Failure | None]
"""Tries rows as one batch, and returns why it failed; None: they have their results."""


class FaultFinder:
    """Fails the rows of one slice that a model cannot predict."""

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
            failures: (N,); gets those of the rows at fault.
            first: Watches the first rows; None: a failure always counts as its row's fault.
            ends_process: Whether a row that alone finds no memory on a GPU ends the process, so
                that a child decides; otherwise the row has failed.
        """
        self._model, self.row_ids, self.failures = model, row_ids, failures
        self.first, self._ends_process = first, ends_process

    def split(
        self, batch: Rows, failure: Failure, predict: Callable[[Rows], None], attempt: Attempt
    ) -> None:
        """Halve a failed batch until the rows at fault are found, and fail them.

        Args:
            batch: (B,), of which no row has a result.
            failure: Why it failed.
            predict: Predicts some of its rows; splits them if they fail.
            attempt: For what cannot be halved.

        Raises:
            OutOfDeviceMemory: Batches have one size, and there is no room for one.
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
            if self.first is not None:
                self.first.failed(str(self.row_ids[row]), failure)
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
        """Try a batch again; return why it failed in the end, None if it did not."""
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
