"""One batch on its way: into a buffer, onto the device, through the model, and back.

On a GPU all of it is asynchronous (double buffering): while one buffer's batch is computed, another
is copied to the device, and the host gathers a third. On the CPU one step follows the other, by the
same code.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Arrays = dict[str, npt.NDArray[Any]]
Compute = Callable[[torch.Tensor], dict[str, torch.Tensor]]
"""A batch on the device -> what is kept of it, each (B, ...)."""


class DeviceBuffer:
    """Holds the memory of one batch on host and device; every batch that takes it reuses it."""

    def __init__(self, buffer: torch.Tensor, device: torch.device, copies: Any = None) -> None:
        """Take a buffer.

        Args:
            buffer: (B, ...) on the host, pinned if the device is a GPU.
            device: Where the model is.
            copies: The CUDA stream of copies to the device, which all buffers share; the model runs
                on the current stream, one batch after the other, as CUDA graphs must.
        """
        self._buffer = buffer
        self._copies = copies
        self._on_device = buffer if copies is None else torch.empty_like(buffer, device=device)
        self._kept: dict[str, torch.Tensor] = {}
        self._times: Any = None
        self._transfer_s = self._predict_s = 0.0

    def start(self, inputs: npt.NDArray[Any], rows: npt.NDArray[np.intp], compute: Compute) -> None:
        """Take rows of the inputs through the model; what it raises at once is raised."""
        started = perf_counter()
        staging = self._buffer[: len(rows)]
        # The one copy of the input: out of Ray's read-only memory into the reused buffer.
        # `clip` writes straight into it; the indices are in range anyway.
        np.take(inputs, rows, axis=0, out=staging.numpy(), mode="clip")
        if self._copies is not None:
            self._start_on_gpu(staging, compute)
            return
        gathered = perf_counter()
        with torch.inference_mode():
            self._kept = compute(staging)
        self._transfer_s, self._predict_s = gathered - started, perf_counter() - gathered

    def _start_on_gpu(self, staging: torch.Tensor, compute: Compute) -> None:
        copying, copied, computing, computed = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(4)
        )
        on_device = self._on_device[: len(staging)]
        with torch.cuda.stream(self._copies):
            copying.record()
            on_device.copy_(staging, non_blocking=True)
            copied.record()
        current = torch.cuda.current_stream()
        current.wait_event(copied)
        computing.record()
        with torch.inference_mode():
            kept = compute(on_device)
            # Read back on the stream of the model: its next batch may reuse the memory of this one.
            self._kept = {name: _to_pinned(values) for name, values in kept.items()}
        computed.record()
        self._times = (copying, copied, computing, computed)

    def finish(self) -> Arrays:
        """Wait for the batch; return what is kept of it. What the device raises is raised here."""
        kept, self._kept = self._kept, {}
        if self._times is not None:
            (copying, copied, computing, computed), self._times = self._times, None
            computed.synchronize()
            self._transfer_s = copying.elapsed_time(copied) / 1000
            self._predict_s = computing.elapsed_time(computed) / 1000
        return {name: values.numpy() for name, values in kept.items()}

    @property
    def busy_s(self) -> tuple[float, float]:
        """Return the seconds of the last batch that the copy took, and the model."""
        return self._transfer_s, self._predict_s


def _to_pinned(values: torch.Tensor) -> torch.Tensor:
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def make_device_buffers(
    make_buffer: Callable[[], torch.Tensor], device: torch.device
) -> list[DeviceBuffer]:
    """Make two buffers for a GPU, one for the CPU."""
    if device.type != "cuda":
        return [DeviceBuffer(make_buffer(), device)]
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return [DeviceBuffer(make_buffer(), device, copies) for _ in range(2)]
