"""Buffers of batches: gather rows on the host, copy them to the device, compute, copy back.

On a GPU all steps are asynchronous: while one buffer's batch is computed, another is copied to the
device, and the host gathers a third. On the CPU the same code runs the steps one after the other.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from threading import Condition
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.inference.devices.accelerator import Gpu
from pipeline.inference.runtimes.inference_module import Tensors
from pipeline.preprocessing.model_input import Inputs
from pipeline.process.liveness import unguarded

_ON_GPU = 3
"""Buffers on a GPU: one is computed, one is copied, and one is filled for the next slice."""
Arrays = dict[str, npt.NDArray[Any]]
Compute = Callable[[Tensors], dict[str, torch.Tensor]]
"""Tensors of a batch on the device, by the names of the input -> reduced results, each (B, ...)."""
Gather = Callable[[Inputs, npt.NDArray[np.intp], Inputs], Mapping[str, tuple[int, ...]]]
"""`Input.gather`."""


class DeviceBuffer:
    """The memory of one batch on host and device, reused for every batch; grows for larger ones."""

    def __init__(
        self, buffer: Tensors, gather: Gather, gpu: Gpu | None = None, copies: Any = None
    ) -> None:
        """Take the host memory of a batch.

        Args:
            buffer: Each (V,) on the host, for the largest batch, pinned for a GPU.
            gather: Copies rows of the inputs into it.
            gpu: The model's GPU; None: the CPU.
            copies: The stream of copies to the GPU, shared by all buffers; the model runs on the
                current stream, one batch after the other, as CUDA graphs must.
        """
        self._buffer, self._gather = dict(buffer), gather
        self._gpu, self._copies = gpu, copies
        self._views = {name: tensor.numpy() for name, tensor in buffer.items()}
        self._on_device = (
            self._buffer
            if gpu is None
            else {n: gpu.empty(tensor.numel(), tensor.dtype) for n, tensor in buffer.items()}
        )
        self._kept: Mapping[str, Any] = {}
        self._times: Any = None
        self._transfer_s = self._predict_s = 0.0
        self.launch_s = 0.0
        """Seconds of the host to gather and launch the last batch; 0 on the CPU."""
        self.shapes: Mapping[str, tuple[int, ...]] = {}
        """Shape of each tensor in the last batch."""

    def start(self, inputs: Inputs, rows: npt.NDArray[np.intp], compute: Compute) -> None:
        """Send rows of the inputs through the model, without waiting for a GPU.

        Args:
            inputs: The arrays of a slice, each (N, ...).
            rows: (B,) row numbers in the slice.
            compute: Runs the model and reduces its outputs; its errors are raised.
        """
        started = perf_counter()
        if self._times is not None:  # after an error that batch still reads the memory
            self._times[-1].synchronize()
        staging = self.fill(inputs, rows)
        if self._gpu is not None:
            self._start_on(self._gpu, staging, _shaped(self._on_device, self.shapes), compute)
            self.launch_s = perf_counter() - started
            return
        gathered = perf_counter()
        with torch.inference_mode():
            self._kept = compute(staging)
        self._transfer_s, self._predict_s = gathered - started, perf_counter() - gathered

    def fill(self, inputs: Inputs, rows: npt.NDArray[np.intp]) -> Tensors:
        """Copy rows of the inputs into the memory on the host.

        Args:
            inputs: The arrays of a slice, each (N, ...).
            rows: (B,) row numbers in the slice.

        Returns:
            Views of that memory, each (B, ...), in the order in which the model takes them.
        """
        for name, values in inputs.items():
            if values.dtype == object:  # the sizes of the rows become known now
                # Rows of a batch have one shape, or are padded to the largest.
                largest = max((value.size for value in values[rows]), default=0)
                self._reserve(name, len(rows) * max(1, largest))
        # The only copy of the input: from Ray's read-only memory into the reused buffer.
        self.shapes = self._gather(inputs, rows, self._views)
        return _shaped(self._buffer, self.shapes)

    def _reserve(self, name: str, num_values: int) -> None:
        """Enlarge the buffer of a tensor if a batch has more values."""
        held = self._buffer[name]
        if num_values <= held.numel():
            return
        gpu = self._gpu
        make = torch.empty if gpu is None else gpu.pinned
        larger = make(num_values, dtype=held.dtype)
        if gpu is not None:
            # A kernel of a failed batch may still read the old memory; memory allocated in the
            # stream of copies is never that of the batch in computation.
            gpu.synchronize()
            with gpu.on(self._copies):
                self._on_device[name] = gpu.empty(num_values, held.dtype)
        self._buffer[name], self._views[name] = larger, larger.numpy()

    def _start_on(self, gpu: Gpu, staging: Tensors, on_device: Tensors, compute: Compute) -> None:
        copying, copied, computing, computed = (gpu.event() for _ in range(4))
        with gpu.on(self._copies):
            copying.record()
            for name, tensor in staging.items():
                gpu.copy(tensor, on_device[name])
            copied.record()
        gpu.wait(copied)
        computing.record()
        self._kept = gpu.run(compute, on_device)
        computed.record()
        self._times = (copying, copied, computing, computed)

    def finish(self) -> Arrays:
        """Wait for the batch and return its results, name -> (B, ...); raises device errors."""
        kept: Mapping[str, Any]
        kept, self._kept = self._kept, {}
        if self._times is not None:
            (copying, copied, computing, computed), self._times = self._times, None
            computed.synchronize()
            self._transfer_s = copying.elapsed_time(copied) / 1000
            self._predict_s = computing.elapsed_time(computed) / 1000
        return {name: values.numpy() for name, values in kept.items()}

    @property
    def busy_s(self) -> tuple[float, float]:
        """Return the seconds of the last batch: of the copy to the device, and of the model."""
        return self._transfer_s, self._predict_s


def _shaped(buffer: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """View the first values of each buffer as a batch of its shape, which is contiguous."""
    return {
        name: values[: math.prod(shapes[name])].view(shapes[name])
        for name, values in buffer.items()
    }


class FreeBuffers:
    """The buffers of a model, shared by the slices in flight; earlier slices come first."""

    def __init__(self, buffers: Iterable[DeviceBuffer]) -> None:
        self._free = deque(buffers)
        self._changed = Condition()
        self._tickets = itertools.count()
        self._waiting: list[int] = []

    def ticket(self) -> int:
        """Return a number that orders a slice among those in flight."""
        return next(self._tickets)

    def take(self, ticket: int) -> DeviceBuffer:
        """Return a free buffer; wait for one, and for earlier slices."""
        with self._changed:
            if (buffer := self._spare(ticket)) is not None:
                return buffer
            bisect.insort(self._waiting, ticket)
            try:
                with unguarded():  # the slices that it waits for are watched
                    self._changed.wait_for(lambda: self._free and self._waiting[0] == ticket)
            finally:  # an interrupted slice must not keep others waiting
                self._waiting.remove(ticket)
                self._changed.notify_all()
            return self._free.popleft()

    def take_spare(self, ticket: int) -> DeviceBuffer | None:
        """Return a free buffer that no earlier slice waits for; None if there is none."""
        with self._changed:
            return self._spare(ticket)

    def _spare(self, ticket: int) -> DeviceBuffer | None:
        is_first = not self._waiting or ticket <= self._waiting[0]
        return self._free.popleft() if self._free and is_first else None

    def give(self, buffer: DeviceBuffer) -> None:
        """Take a buffer back."""
        with self._changed:
            self._free.append(buffer)
            self._changed.notify_all()

    @contextlib.contextmanager
    def one(self, ticket: int) -> Iterator[DeviceBuffer]:
        """Hold a buffer during the body."""
        buffer = self.take(ticket)
        try:
            yield buffer
        finally:
            self.give(buffer)


def make_device_buffers(
    make_buffer: Callable[[], Tensors], gather: Gather, gpu: Gpu | None
) -> FreeBuffers:
    """Make three buffers for a GPU, one for the CPU."""
    if gpu is None:
        return FreeBuffers([DeviceBuffer(make_buffer(), gather)])
    copies = gpu.stream()
    return FreeBuffers(DeviceBuffer(make_buffer(), gather, gpu, copies) for _ in range(_ON_GPU))
