"""A model on its device with the buffers of its batches: starts batches, and keeps their results.

On a GPU everything is launched in the thread of the GPU. A full batch runs when the model is
loaded, so that what the card, driver or libraries cannot do is an error of the job, not of a row.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import ParamSpec, TypeVar

import numpy as np
import torch

from pipeline.core.errors import JobError, PipelineError
from pipeline.core.printable import clean_message
from pipeline.inference import output_tree as pytree
from pipeline.inference.devices.accelerator import Gpu
from pipeline.inference.devices.device_buffers import DeviceBuffer, FreeBuffers, make_device_buffers
from pipeline.inference.devices.device_errors import OutOfDeviceMemory
from pipeline.inference.devices.load_runner import full_batch, gpu_of, load_runner, make_buffer
from pipeline.inference.devices.shared_lock import SharedLock
from pipeline.inference.outputs_check import OutputsCheck
from pipeline.inference.result_table import scatter_batch
from pipeline.inference.runtimes.inference_module import InferenceModule, Tensors
from pipeline.inference.runtimes.runtime import Runner
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import Arrays
from pipeline.preprocessing.model_input import Input, Inputs, Rows, num_rows

P = ParamSpec("P")
T = TypeVar("T")
_OF_THE_DEVICE = ("cuda", "cublas", "cudnn", "nvrtc", "shared object", "could not load library")
_MAX_CHARS, _GIB = 300, 1 << 30


class DeviceModel:
    """One model on one device."""

    def __init__(self, config: PredictorConfig) -> None:
        """Load the model.

        Raises:
            JobError: The weights, the layer, the device or the precision cannot be used.
            OutOfDeviceMemory: A GPU has no room for the model, or for a batch of it.
            InfraError: The GPU has failed.
        """
        self.config = config
        self.gpu = gpu_of(config.num_gpus)
        self.limits = config.limits_of_batch
        """Limits of later batches, smaller after lack of memory."""
        torch.set_num_threads(config.num_threads)
        self.task = make_task(config.spec.task)
        self.check_outputs = OutputsCheck(config).check
        self._runner: Runner | None = None
        self.lock = SharedLock()
        """Slices in flight share it; a thread that takes the model off its device has it alone."""
        self.buffers = self._call_to_load(self._make_buffers)
        self.load()

    @property
    def runner(self) -> Runner:
        assert self._runner is not None, "it is loaded again before anything runs"
        return self._runner

    def load(self) -> None:
        """Load the model onto its device, and run a full batch if that is a GPU."""
        try:
            self._call_to_load(self._load)
        except BaseException:
            self._runner = None
            raise

    @property
    def module(self) -> torch.nn.Module:
        """Return the model itself, which torch runs directly."""
        return self._eager.module

    @property
    def _eager(self) -> InferenceModule:
        assert self.runner.module is not None, "the task allows no other runtime"
        return self.runner.module

    def _call_to_load(self, function: Callable[[], T]) -> T:
        """Call a function as `call`; an error of the device becomes an error of the job."""
        try:
            return self.call(function)
        except Exception as error:
            if self.gpu is None:
                raise
            lacks_memory = self.gpu.lacks_memory(error)
            if isinstance(error, PipelineError):
                raise
            cause = clean_message(f"{type(error).__name__}: {error}", _MAX_CHARS)
            raise (OutOfDeviceMemory if lacks_memory else JobError)(
                f"model {self.config.spec.name}: cannot be loaded onto {self.gpu.name}: {cause}"
            ) from error

    def unload(self) -> None:
        """Take the model off its device."""
        self._runner = None
        if self.gpu is not None:
            self.call(self.gpu.forget)

    def take_input(self, seen: Input) -> None:
        """Divide rows into batches by another form of the same input."""
        self.config = replace(self.config, spec=replace(self.config.spec, input=seen))

    def make_room(self) -> None:
        """Free memory that no batch needs."""
        if self.gpu is not None:
            self.call(self.gpu.release)

    def restored(self, function: Callable[[], T]) -> T:
        """Call a function that may unload the model; load it again afterwards."""
        assert self.gpu is not None, "a CPU has room for both"
        try:
            return function()
        finally:
            self.gpu.release()
            if self._runner is None:
                self.gpu.patiently(self.load)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in the thread of the GPU, or in this one for the CPU."""
        if self.gpu is None:
            return function(*args, **kwargs)
        return self.gpu.call(function, *args, **kwargs)

    @contextmanager
    def on_device(self, inputs: Inputs, rows: Sequence[int]) -> Iterator[dict[str, torch.Tensor]]:
        """Yield rows as the module takes them, on its device: name -> (B, ...).

        Args:
            inputs: The arrays of a slice, each (N, ...).
            rows: (B,) row numbers in the slice.
        """
        with self.buffers.one(self.buffers.ticket()) as buffer:
            held = buffer.fill(inputs, np.asarray(rows, np.intp))
            if self.gpu is not None:
                held = {name: values.to(self.gpu.device) for name, values in held.items()}
            yield self._eager.prepared(held)

    def start(self, buffer: DeviceBuffer, inputs: Inputs, batch: Rows) -> None:
        """Start a batch, without waiting for a GPU.

        Args:
            buffer: A free buffer.
            inputs: The arrays of a slice, each (N, ...).
            batch: (B,) row numbers in the slice.

        Raises:
            Exception: Any error of the model or the device.
        """
        size, whole = self.config.batch_size, batch
        if self.runner.is_static and len(batch) < size:
            # Padding repeats rows of the batch, so that it does not fail over other rows.
            whole = np.resize(batch, size)
        compute = functools.partial(self._compute, len(batch))
        self.call(buffer.start, inputs, whole, compute)

    def keep(self, buffer: DeviceBuffer, inputs: Inputs, batch: Rows, results: Arrays) -> None:
        """Wait for a batch, and write its results to the places of its rows, each (N, ...)."""
        lengths = self.config.spec.input.lengths(inputs, batch)
        outputs = buffer.finish()
        self.task.check(outputs)
        for name, values in outputs.items():
            kept = lengths if self.task.is_of_tokens(name) else None
            scatter_batch(results, name, num_rows(inputs), batch, values, kept)

    def predict_batches(self, inputs: Inputs, results: Arrays) -> Iterator[Rows]:
        """Predict all rows, one batch in flight per free buffer; yield the finished batches."""
        ticket, busy = self.buffers.ticket(), deque[tuple[DeviceBuffer, Rows]]()
        rows = np.arange(num_rows(inputs))
        left = deque(self.config.spec.input.batches(inputs, rows, self.limits))
        try:
            while left or busy:
                take = self.buffers.take_spare if busy else self.buffers.take
                if left and (spare := take(ticket)) is not None:
                    busy.append((spare, left.popleft()))
                    self.start(spare, inputs, busy[-1][1])
                    continue
                buffer, batch = busy[0]
                self.keep(buffer, inputs, batch, results)
                self.buffers.give(busy.popleft()[0])
                yield batch
        finally:
            for buffer, _ in busy:
                self.buffers.give(buffer)

    def _make_buffers(self) -> FreeBuffers:
        make = functools.partial(make_buffer, self.config, self.gpu)
        return make_device_buffers(make, self._gather, self.gpu)

    def _gather(self, inputs: Inputs, rows: Rows, buffers: Inputs) -> Mapping[str, tuple[int, ...]]:
        return self.config.spec.input.gather(inputs, rows, buffers)

    def _load(self) -> None:
        config, gpu = self.config, self.gpu
        torch.set_num_threads(config.num_threads)  # of this thread
        self._runner = load_runner(config, gpu)
        if gpu is not None:
            self._run_full_batch(gpu)

    def _run_full_batch(self, gpu: Gpu) -> None:
        limits = self.limits
        while True:
            slots = self.config.spec.input.slots(limits)
            rows = min(slot.shape[0] for slot in slots.values())
            try:
                batch = full_batch(slots, rows, gpu.device)
                gpu.run(functools.partial(self._compute, rows), batch)
                gpu.synchronize()
                return
            except Exception as error:  # noqa: BLE001  # any error of a user's model
                if not gpu.lacks_memory(error):
                    self._blame_device(gpu, error)
                    return  # the values of the trial are at fault: the rows will tell
            # Outside `except`: the frames of the exception hold the tensors of the batch.
            batch = {}
            gpu.empty_cache()
            if rows == 1 or self.runner.is_static:
                raise self.no_room(rows)
            limits = limits.halved(rows // 2)  # as batches of slices will be halved

    def _blame_device(self, gpu: Gpu, error: Exception) -> None:
        """Raise an error if the device caused it."""
        cause = clean_message(f"{type(error).__name__}: {error}", _MAX_CHARS)
        if any(word in cause.lower() for word in _OF_THE_DEVICE):
            kernels = f" ({gpu.describe_kernels()})" if "no kernel image" in cause else ""
            name = self.config.spec.name
            raise JobError(f"model {name}: {gpu.name} cannot run a batch: {cause}{kernels}")

    def no_room(self, num_rows: int) -> OutOfDeviceMemory:
        """Return the error of a batch that cannot be smaller: one row, or a fixed size."""
        spec, gpu = self.config.spec, self.gpu
        assert gpu is not None, "the CPU runs no full batch when the model is loaded"
        free_bytes, total_bytes = self.call(gpu.memory_bytes)
        where = f"{gpu.name} ({free_bytes / _GIB:.1f} of {total_bytes / _GIB:.1f} GiB are free)"
        advice = "run fewer actors per GPU, or choose a lower model.precision or a larger card"
        if num_rows > 1:
            advice = (
                f"batches of runtime {spec.runtime!r} have a fixed size: set model.batch_size to "
                f"{num_rows // 2} or less"
            )
        rows = "one row does" if num_rows == 1 else f"a batch of {num_rows} rows does"
        return OutOfDeviceMemory(f"model {spec.name}: {rows} not fit into {where}; {advice}")

    def _compute(self, size: int, on_device: Tensors) -> dict[str, torch.Tensor]:
        """Return the reduced outputs of the first `size` rows of a batch, each (size, ...)."""
        outputs = self.runner.run(on_device)
        if self.runner.is_static and size < self.config.batch_size:
            outputs = pytree.first_rows(outputs, size)
        return self.task.reduce_batch(outputs, size, on_device)
