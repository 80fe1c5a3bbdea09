"""The GPU of this process: every call to CUDA, in one object that tests replace by a stand-in.

CUDA graphs and handles of libraries belong to a thread, so one thread of the process loads models,
compiles them and launches their batches (`Gpu.call`). Any thread may wait for an event.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache, partial
from threading import get_ident
from time import sleep
from typing import Any, ParamSpec, TypeVar

import torch

from pipeline.inference.devices.device_errors import TooLarge, is_out_of_memory, require_context

P = ParamSpec("P")
T = TypeVar("T")
Compute = Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]
PAUSES_S = (1.0, 2.0, 4.0, 8.0)
"""How long to wait for memory that an ending process, a child or a reference check may hold."""
CONTEXT_BYTES = 600 << 20
"""Approximate memory of a card that CUDA takes per process, besides tensors."""


class Gpu:
    """The GPU of this process."""

    def __init__(self) -> None:
        self.device = torch.device("cuda")
        self._thread_id: int | None = None
        self._thread = ThreadPoolExecutor(1, "gpu")
        self.name: str = self.call(torch.cuda.get_device_name)
        """Name of the card, kept for after its context is lost."""
        self.key: str = self.call(_key_of, self.device)
        """Identifies the card among those of its node."""

    def take(self, share: float) -> None:
        """Use at most this share of the card, 0 to 1."""
        if share < 1:
            total_bytes = self.memory_bytes()[1]
            fraction = memory_fraction(share, total_bytes)
            torch.cuda.set_per_process_memory_fraction(fraction, self.device)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in the thread of the GPU."""
        if get_ident() == self._thread_id:
            return function(*args, **kwargs)
        return self._thread.submit(self._run_there, partial(function, *args, **kwargs)).result()

    def _run_there(self, function: Callable[[], T]) -> T:
        self._thread_id = get_ident()
        return function()

    def stream(self) -> Any:
        """Return a new stream."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Make a stream the current one of this thread for the body."""
        return torch.cuda.stream(stream)

    def event(self) -> Any:
        """Return a new event; `record` puts it into the current stream."""
        # Waiting for a non-blocking event keeps a core busy.
        return torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]

    def wait(self, event: Any) -> None:
        """Let the current stream wait for an event of another stream; the host does not wait."""
        torch.cuda.current_stream().wait_event(event)

    def pinned(self, num_values: int, dtype: torch.dtype) -> torch.Tensor:
        """Return zeroed pinned memory of the host, (V,)."""
        return torch.zeros(num_values, dtype=dtype, pin_memory=True)

    def empty(self, num_values: int, dtype: torch.dtype) -> torch.Tensor:
        """Return uninitialised memory of the GPU, (V,), of the current stream."""
        return torch.empty(num_values, dtype=dtype, device=self.device)

    def copy(self, pinned: torch.Tensor, on_device: torch.Tensor) -> None:
        """Copy pinned memory to the GPU in the current stream; the host does not wait."""
        on_device.copy_(pinned, non_blocking=True)

    def run(self, compute: Compute, on_device: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:
        """Compute a batch and copy its results back in the current stream; the host does not wait.

        Args:
            compute: The model.
            on_device: Its tensors, each (B, ...).

        Returns:
            Name -> tensor of the host, (B, ...), valid after an event recorded now.
        """
        with torch.inference_mode():
            # In the model's stream: its next batch may reuse the memory of this one.
            return {name: _to_pinned(values) for name, values in compute(on_device).items()}

    def synchronize(self) -> None:
        """Wait for all work; raises the error of any of it."""
        torch.cuda.synchronize(self.device)

    def empty_cache(self) -> None:
        """Return memory that no tensor holds to the card."""
        torch.cuda.empty_cache()

    def release(self) -> None:
        """Free the memory of a model that is not referenced any more."""
        gc.collect()
        self.empty_cache()

    def forget(self) -> None:
        """Free all memory of a model, if this process has no other one on the card."""
        if "torch._dynamo" in sys.modules:  # it keeps the compiled code of all models
            torch.compiler.reset()
        self.release()

    def lacks_memory(self, error: BaseException) -> bool:
        """Tell whether an error is lack of memory; end the process if the context is lost.

        Raises:
            InfraError: The card has failed.
        """
        require_context(error, partial(self.call, self.synchronize), self.name)
        return is_out_of_memory(error)

    def patiently(self, function: Callable[[], T]) -> T:
        """Load the only model of this process; retry a few times if memory is lacking.

        Raises:
            Exception: The last error of loading.
        """
        for pause_s in PAUSES_S:
            try:
                return function()
            except Exception as error:
                if isinstance(error, TooLarge) or not self.lacks_memory(error):
                    raise
            # Outside `except`: the frames of the exception hold tensors.
            self.call(self.forget)
            self.pause(pause_s)
        return function()

    def memory_bytes(self) -> tuple[int, int]:
        """Return the free and the total memory of the card."""
        return torch.cuda.mem_get_info(self.device)

    def describe_kernels(self) -> str:
        """Describe the cards that this torch has kernels for, and this card."""
        major, minor = torch.cuda.get_device_capability(self.device)
        made = ", ".join(torch.cuda.get_arch_list())
        return f"the card is sm_{major}{minor}, torch {torch.__version__} has kernels for {made}"

    def pause(self, seconds: float) -> None:
        """Wait until other processes may have freed memory."""
        sleep(seconds)


def _to_pinned(values: torch.Tensor) -> torch.Tensor:
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def _key_of(device: torch.device) -> str:
    properties = torch.cuda.get_device_properties(device)
    key = str(getattr(properties, "uuid", os.environ.get("CUDA_VISIBLE_DEVICES", "")))
    return key.replace("/", "-")  # used in file names


@cache
def the_gpu() -> Gpu:
    """Return the GPU of this process."""
    return Gpu()


def memory_fraction(share: float, total_bytes: int) -> float:
    """Return the fraction of a card's memory that a process's tensors may take, 0 to 1.

    Args:
        share: The process's share of the card; the shares of all processes add up to 1 at most.
        total_bytes: Memory of the card.
    """
    return max(share / 2, share - CONTEXT_BYTES / total_bytes)
