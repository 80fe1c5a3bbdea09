"""Predict the prepared rows of a slice: each gets a prediction or a reason.

The same code runs on CPU and GPU. Normalisation runs here, on the device. A failing batch is split
until the rows at fault are found; lack of memory halves the batch size for later batches as well.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline.core.counters import REFERENCE_CHECK, TOKENS, Counters, StageCounters, add
from pipeline.core.failures import Failure, Reason, failures_of, without_failure
from pipeline.core.node_cache import claim
from pipeline.core.own_code import errors_told, module_of
from pipeline.core.registry import INPUTS, TASKS
from pipeline.core.schema import ERROR, ROW_ID
from pipeline.core.user_errors import whereabouts
from pipeline.core.watchdog import pause, tick
from pipeline.inference import output_tree as pytree
from pipeline.inference.device import device_of, load_runner, make_buffer
from pipeline.inference.device_buffers import DeviceBuffer, make_device_buffers
from pipeline.inference.first_rows import FirstRows, Raised
from pipeline.inference.pending_batches import Batches, Timer
from pipeline.inference.prediction_table import to_table
from pipeline.inference.ragged_results import place
from pipeline.inference.runtimes.inference_module import Tensors
from pipeline.inference.runtimes.opening import allow_tf32
from pipeline.inference.settled_scores import SettledScores
from pipeline.inference.ticks import count
from pipeline.models.agreement import AgreementLimits
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import Arrays, OutputError
from pipeline.models.tasks.scores import without_outputs
from pipeline.preprocessing.model_input import Arrays as Inputs
from pipeline.preprocessing.model_input import Rows, bytes_of, num_rows
from pipeline.preprocessing.reference_pixels import choose_reference_rows

STAGE = "predict"
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")


class Predictor:
    """One model on one device."""

    def __init__(self, config: PredictorConfig, first: FirstRows | None = None) -> None:
        """Load the model onto its device.

        Args:
            config: The model, its batches and its device.
            first: Watches the first rows; None: a failure always counts as its row's fault.

        Raises:
            JobError: The weights, the layer, the device or the precision cannot be used.
        """
        self._config, self._first = config, first
        self._batch = config.limits_of_batch
        self._device = device_of(config)
        torch.set_num_threads(config.num_threads)
        self._scores = SettledScores(config)
        self._task = make_task(config.spec.task)
        self._row_ids: Sequence[str] = ()
        self._limits = config.limits
        self._buffers = make_device_buffers(
            functools.partial(make_buffer, config, self._device),
            config.spec.input.gather,
            self._device,
        )
        self._runner = load_runner(config, self._device)

    def predict(self, rows: pa.Table, counters: Counters) -> pa.Table:
        """Predict the rows of one slice that have no error yet.

        Args:
            rows: The slice, with the columns that the input's `prepare` leaves.
            counters: Gets the entries `transfer` and `predict`.

        Returns:
            The rows with the columns of `staged_schema`, in the same order; the input is gone.

        Raises:
            AlikeError: All rows of the first batches failed for one cause.
            JobError: Rows contradict what the outputs were settled to be.
        """
        if self._first is not None:
            self._first.begin(rows.column(ROW_ID))
        self._row_ids = rows.column(ROW_ID)
        with errors_told(INPUTS, self._config.spec.input.name):
            inputs = self._config.spec.input.arrays(rows)
        failures = failures_of(rows)
        todo = np.flatnonzero(rows.column(ERROR).is_null().to_numpy())
        results: Arrays = {}
        timer = Timer()
        for index, failure in self._run_all(inputs, todo, results, timer):
            failures[index] = failure
        is_good = without_failure(failures)
        ok = np.flatnonzero(is_good)
        if self._limits is not None:
            self._compare_once(rows, inputs, ok, results, self._limits, counters)
        failed = int((~is_good[todo]).sum())
        count_in, num_bytes = len(todo), bytes_of(inputs, todo)
        moved = StageCounters(count_in, count_in, 0, num_bytes, num_bytes, timer.transfer_s)
        add(counters, "transfer", moved)
        predicted = StageCounters(
            count_in, count_in - failed, failed, num_bytes, 0, timer.predict_s
        )
        add(counters, STAGE, predicted)
        if timer.num_tokens:
            add(counters, TOKENS, StageCounters(timer.num_tokens, timer.num_padded))
        self._row_ids = ()
        self._scores.count(counters)
        published = self._config.spec.input.published_fields()
        pass_through = self._config.pass_through
        return to_table(self._task, pass_through, rows, results, failures, published)

    @property
    def awaits_reference_check(self) -> bool:
        """Tell whether the reference check takes its rows from the next slice."""
        return self._limits is not None

    def _does_reference_check(self) -> bool:
        """Tell whether this actor does the check: each with a GPU, and one per CPU node."""
        return self._device.type == "cuda" or claim(f"reference-check-{self._config.run_id}")

    def _compare_once(
        self,
        rows: pa.Table,
        inputs: Inputs,
        ok: Rows,
        results: Arrays,
        limits: AgreementLimits,
        counters: Counters,
    ) -> None:
        """Do the reference check on the first slice that has rows for it, and never again."""
        chosen, exact = choose_reference_rows(rows, self._config.spec.input, inputs, ok)
        if not len(chosen):
            return
        self._limits = None
        if self._does_reference_check():
            with pause():
                self._compare(chosen, exact, results, limits, counters)

    def _compare(
        self,
        rows: Rows,
        inputs: Inputs,
        results: Arrays,
        limits: AgreementLimits,
        counters: Counters,
    ) -> None:
        """Predict rows again with eager fp32, and count those that agree.

        Args:
            rows: (K,) their places in the slice, thus in `results`.
            inputs: What the reference sees of them, each (K, ...).
            results: What the task kept of the slice, each (N, ...).
            limits: How far a row may be from the reference.
            counters: Gets the entry `canary`.
        """
        started = perf_counter()
        spec = replace(self._config.spec.as_reference(), task=self._task.spec)
        config = replace(self._config, spec=spec, batch_size=len(rows), limits=None)
        reference = Predictor(config).reduce(inputs)
        found = {name: values[rows] for name, values in results.items()}
        agreed = int(self._task.compare(reference, found, limits).agrees.sum())
        allow_tf32(self._config.spec.precision)
        busy_s = perf_counter() - started
        add(counters, REFERENCE_CHECK, StageCounters(len(rows), agreed, 0, busy_s=busy_s))

    def reduce(self, inputs: Inputs) -> Arrays:
        """Return the reduced outputs of rows, without isolating failures.

        Args:
            inputs: Arrays of `Input.arrays`, each (N, ...).

        Returns:
            Name -> (N, ...), as `Task.reduce` names them.

        Raises:
            JobError: Rows contradict what the outputs were settled to be.
            Exception: Any error of the model or the device.
        """
        buffer, results = self._buffers[0], Arrays()
        rows = np.arange(num_rows(inputs))
        for batch in self._config.spec.input.batches(inputs, rows, self._batch):
            self._start(buffer, inputs, batch)
            self._keep(buffer, inputs, batch, results)
            self._settle(results, batch)
        return without_outputs(results)

    def _settle(self, results: Arrays, batch: Rows, row_ids: Sequence[str] = ()) -> None:
        """Settle by a finished batch what the outputs are, or hold the batch to it."""
        self._scores.keep(results, batch, row_ids)
        if self._scores.task is not self._task.spec:
            self._task = make_task(self._scores.task)

    def _run_all(
        self, inputs: Inputs, todo: Rows, results: Arrays, timer: Timer
    ) -> Iterator[tuple[int, Failure]]:
        """Predict rows `todo`, with one batch in flight per buffer; yield (row, failure)."""
        free, busy = deque(self._buffers), deque[tuple[DeviceBuffer, Rows]]()
        failed: list[tuple[Rows, Failure]] = []
        left = Batches(self._config.spec.input, inputs, todo, self._batch)
        while left or busy:
            if free and left and not failed:
                batch = left.take(self._batch)
                failure = self._try_start(free[0], inputs, batch)
                if failure is None:
                    busy.append((free.popleft(), batch))
            elif busy:
                buffer, batch = busy.popleft()
                free.append(buffer)
                failure = self._try_finish(buffer, inputs, batch, results, timer)
                if failure is None:
                    yield from self._kept(results, batch)
            if failure is not None:
                failed.append((batch, failure))
            if failed and not busy:  # splitting needs a buffer, so batches in flight finish first
                for batch, failure in failed:
                    yield from self._split(inputs, batch, failure, results, timer)
                    if self._first is not None:
                        self._first.check()
                failed = []

    def _kept(self, results: Arrays, batch: Rows) -> Iterator[tuple[int, Failure]]:
        """Yield the rows of a finished batch whose results are not finite."""
        if self._first is not None:
            self._first.predicted()
        self._settle(results, batch, self._row_ids)
        yield from _not_finite(results, batch)

    def _split(
        self, inputs: Inputs, batch: Rows, failure: Failure, results: Arrays, timer: Timer
    ) -> Iterator[tuple[int, Failure]]:
        """Halve a failed batch until the rows at fault are found; yield them."""
        if len(batch) == 1:
            if self._first is not None:
                self._first.failed(int(batch[0]), failure)
            yield int(batch[0]), failure
            return
        half = len(batch) // 2
        if failure.reason is Reason.OUT_OF_MEMORY:
            self._batch = self._batch.halved(half)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        for part in (batch[:half], batch[half:]):
            again = self._try_start(self._buffers[0], inputs, part) or self._try_finish(
                self._buffers[0], inputs, part, results, timer
            )
            if again is None:
                yield from self._kept(results, part)
            else:
                yield from self._split(inputs, part, again, results, timer)

    def _try_start(self, buffer: DeviceBuffer, inputs: Inputs, batch: Rows) -> Failure | None:
        """Start a batch; return the failure if that raises.

        It does not retry here: the frames of the exception still hold the batch's tensors.
        """
        try:
            self._start(buffer, inputs, batch)
        except Exception as error:  # noqa: BLE001  # any error of a user's model fails its row
            return self._failure_of(error)
        return None

    def _try_finish(
        self, buffer: DeviceBuffer, inputs: Inputs, batch: Rows, results: Arrays, timer: Timer
    ) -> Failure | None:
        """Write the results of a batch into `results`; return the failure if that raises."""
        try:
            self._keep(buffer, inputs, batch, results)
        except Exception as error:  # noqa: BLE001  # a GPU raises errors of the model here
            return self._failure_of(error)
        timer.add(*buffer.busy_s)
        self._count_tokens(buffer, inputs, batch, timer)
        tick()
        count(len(batch))
        return None

    def _failure_of(self, error: Exception) -> Failure:
        """Return why a batch failed, and where in the user's model or task."""
        if isinstance(error, OutputError):
            return Raised(Reason.MODEL_ERROR, STAGE, str(error), is_of_outputs=True)
        reason = Reason.OUT_OF_MEMORY if _is_out_of_memory(error) else Reason.MODEL_ERROR
        spec = self._config.spec
        modules = (spec.name.partition(":")[0], module_of(TASKS, spec.task.kind))
        where = next(filter(None, (whereabouts(error, module) for module in modules)), "")
        return Raised(reason, STAGE, f"{type(error).__name__}: {error}", where=where)

    def _keep(self, buffer: DeviceBuffer, inputs: Inputs, batch: Rows, results: Arrays) -> None:
        """Wait for a batch, and write what it gave to its rows' places."""
        lengths = self._config.spec.input.lengths(inputs, batch)
        found = buffer.finish()
        self._task.check(found)
        for name, values in found.items():
            kept = lengths if self._task.is_per_token else None
            place(results, name, num_rows(inputs), batch, values, kept)

    def _count_tokens(
        self, buffer: DeviceBuffer, inputs: Inputs, batch: Rows, timer: Timer
    ) -> None:
        lengths = self._config.spec.input.lengths(inputs, batch)
        if lengths is not None:
            timer.num_tokens += int(lengths.sum())
            timer.num_padded += self._config.spec.input.num_padded(buffer.shapes)

    def _start(self, buffer: DeviceBuffer, inputs: Inputs, batch: Rows) -> None:
        size, whole = self._config.batch_size, batch
        if self._runner.is_static and len(batch) < size:
            # Padding repeats rows of this batch, so that no batch fails because of other rows.
            whole = np.resize(batch, size)
        buffer.start(inputs, whole, functools.partial(self._compute, len(batch)))

    def _compute(self, size: int, on_device: Tensors) -> dict[str, torch.Tensor]:
        """Return the reduced outputs of the first `size` rows of a batch, each (size, ...)."""
        outputs = self._runner.run(on_device)
        if self._runner.is_static and size < self._config.batch_size:
            outputs = pytree.first_rows(outputs, size)
        return self._task.reduce_batch(outputs, size, on_device)


def _not_finite(results: Arrays, batch: Rows) -> Iterator[tuple[int, Failure]]:
    for row in batch[~_are_finite(results, batch)]:
        yield int(row), Failure(Reason.NON_FINITE, STAGE, "output is not finite")


def _are_finite(results: Arrays, batch: Rows) -> npt.NDArray[np.bool_]:
    ok = np.ones(len(batch), bool)
    for values in results.values():
        if np.issubdtype(values.dtype, np.floating):
            ok &= np.isfinite(values[batch]).reshape(len(batch), -1).all(axis=1)
    return ok


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _OUT_OF_MEMORY)
