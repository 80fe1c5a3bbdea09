"""Take a batch into a host buffer, onto the device, through the model, and back.

On a GPU all steps are asynchronous (double buffering): while one buffer's batch is computed,
another is copied to the device, and the host gathers a third. On the CPU the same code runs the
steps one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.inference.runtimes.inference_module import Tensors
from pipeline.preprocessing.model_input import Arrays as InputArrays

Arrays = dict[str, npt.NDArray[Any]]
Compute = Callable[[Tensors], dict[str, torch.Tensor]]
"""Tensors of a batch on the device, by the names of the input -> reduced results, each (B, ...)."""
Gather = Callable[[InputArrays, npt.NDArray[np.intp], InputArrays], Mapping[str, tuple[int, ...]]]
"""`Input.gather`."""


class DeviceBuffer:
    """The memory of one batch on host and device, reused for every batch; grows for larger ones."""

    def __init__(
        self, buffer: Tensors, gather: Gather, device: torch.device, copies: Any = None
    ) -> None:
        """Take the host memory of a batch.

        Args:
            buffer: Each (V,) on the host, the values of the largest batch, pinned if the device is
                a GPU.
            gather: Copies rows of the inputs into it.
            device: The device of the model.
            copies: The CUDA stream of copies to the device, which all buffers share; the model runs
                on the current stream, one batch after the other, as CUDA graphs must.
        """
        self._buffer, self._gather, self._copies = dict(buffer), gather, copies
        self._device = device
        self._views = {name: tensor.numpy() for name, tensor in buffer.items()}
        self._on_device = (
            self._buffer
            if copies is None
            else {n: torch.empty_like(tensor, device=device) for n, tensor in buffer.items()}
        )
        self._kept: dict[str, torch.Tensor] = {}
        self._times: Any = None
        self._transfer_s = self._predict_s = 0.0
        self.shapes: Mapping[str, tuple[int, ...]] = {}
        """Shape of each tensor in the last batch."""

    def start(self, inputs: InputArrays, rows: npt.NDArray[np.intp], compute: Compute) -> None:
        """Send rows of the inputs through the model, without waiting for a GPU.

        Args:
            inputs: The arrays of a slice, each (N, ...).
            rows: (B,) row numbers in the slice.
            compute: Runs the model and reduces its outputs; its errors are raised.
        """
        started = perf_counter()
        staging = self.fill(inputs, rows)
        if self._copies is not None:
            self._start_on_gpu(staging, _shaped(self._on_device, self.shapes), compute)
            return
        gathered = perf_counter()
        with torch.inference_mode():
            self._kept = compute(staging)
        self._transfer_s, self._predict_s = gathered - started, perf_counter() - gathered

    def fill(self, inputs: InputArrays, rows: npt.NDArray[np.intp]) -> Tensors:
        """Copy rows of the inputs into the memory on the host.

        Args:
            inputs: The arrays of a slice, each (N, ...).
            rows: (B,) row numbers in the slice.

        Returns:
            Views of that memory, each (B, ...), in the order in which the model takes them.
        """
        for name, values in inputs.items():
            if values.dtype == object:  # the sizes of its rows are known only now
                # Rows of a batch have one shape, or are padded to that of the largest.
                largest = max((value.size for value in values[rows]), default=0)
                self._reserve(name, len(rows) * max(1, largest))
        # The only copy of the input: from Ray's read-only memory into the reused buffer.
        self.shapes = self._gather(inputs, rows, self._views)
        return _shaped(self._buffer, self.shapes)

    def _reserve(self, name: str, num_values: int) -> None:
        """Make the buffer of a tensor larger if a batch has more values than it."""
        held = self._buffer[name]
        if num_values <= held.numel():
            return
        is_on_gpu = self._copies is not None
        larger = torch.empty(num_values, dtype=held.dtype, pin_memory=is_on_gpu)
        self._buffer[name], self._views[name] = larger, larger.numpy()
        if is_on_gpu:
            # A kernel of a batch that failed may still read the old memory, and memory of the
            # stream of copies is never that of the batch which is computed meanwhile.
            torch.cuda.synchronize(self._device)
            with torch.cuda.stream(self._copies):
                self._on_device[name] = torch.empty_like(larger, device=self._device)

    def _start_on_gpu(self, staging: Tensors, on_device: Tensors, compute: Compute) -> None:
        copying, copied, computing, computed = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(4)
        )
        with torch.cuda.stream(self._copies):
            copying.record()
            for name, tensor in staging.items():
                on_device[name].copy_(tensor, non_blocking=True)
            copied.record()
        current = torch.cuda.current_stream()
        current.wait_event(copied)
        computing.record()
        with torch.inference_mode():
            kept = compute(on_device)
            # Copied back on the model's stream: its next batch may reuse the memory of this one.
            self._kept = {name: _to_pinned(values) for name, values in kept.items()}
        computed.record()
        self._times = (copying, copied, computing, computed)

    def finish(self) -> Arrays:
        """Wait for the batch and return its results, name -> (B, ...); raises device errors."""
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


def _to_pinned(values: torch.Tensor) -> torch.Tensor:
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def make_device_buffers(
    make_buffer: Callable[[], Tensors], gather: Gather, device: torch.device
) -> list[DeviceBuffer]:
    """Make two buffers for a GPU, one for the CPU."""
    if device.type != "cuda":
        return [DeviceBuffer(make_buffer(), gather, device)]
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return [DeviceBuffer(make_buffer(), gather, device, copies) for _ in range(2)]
