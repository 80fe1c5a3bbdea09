"""All that the code asks of this process's GPU: one small object, whose place a stand-in can take.

CUDA graphs and the handles of libraries belong to a thread: one thread of the process loads models,
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
"""A process that is ending, a child, or the reference check next door may hold memory so long."""
CONTEXT_BYTES = 600 << 20
"""What CUDA itself takes of a card for a process, beside its tensors; about."""


class Gpu:
    """The GPU of this process."""

    def __init__(self) -> None:
        self.device = torch.device("cuda")
        self._thread_id: int | None = None
        self._thread = ThreadPoolExecutor(1, "gpu")
        self.name: str = self.call(torch.cuda.get_device_name)
        """Of the card: known also after its context is lost."""
        self.key: str = self.call(_key_of, self.device)
        """What tells the card from the others of its node."""

    def take(self, share: float) -> None:
        """Take at most so much of the card, 0 to 1: others have the rest."""
        if share < 1:
            total_bytes = self.memory_bytes()[1]
            fraction = memory_fraction(share, total_bytes)
            torch.cuda.set_per_process_memory_fraction(fraction, self.device)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in the thread that uses the GPU; return or raise what it does."""
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
        # Waiting for an event that is not blocking keeps a core busy.
        return torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]

    def wait(self, event: Any) -> None:
        """Let the current stream wait for an event of another one; the host goes on."""
        torch.cuda.current_stream().wait_event(event)

    def pinned(self, num_values: int, dtype: torch.dtype) -> torch.Tensor:
        """Return pinned memory of the host, (V,), of zeros."""
        return torch.zeros(num_values, dtype=dtype, pin_memory=True)

    def empty(self, num_values: int, dtype: torch.dtype) -> torch.Tensor:
        """Return memory of the GPU, (V,), of the current stream."""
        return torch.empty(num_values, dtype=dtype, device=self.device)

    def copy(self, pinned: torch.Tensor, on_device: torch.Tensor) -> None:
        """Copy pinned memory to the GPU, in the current stream; the host goes on."""
        on_device.copy_(pinned, non_blocking=True)

    def run(self, compute: Compute, on_device: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:
        """Compute a batch and copy the results back, in the current stream; the host goes on.

        Args:
            compute: The model.
            on_device: Its tensors, each (B, ...).

        Returns:
            Name -> tensor of the host, (B, ...), to be read after an event recorded now.
        """
        with torch.inference_mode():
            # In the model's stream: its next batch may reuse the memory of this one.
            return {name: _to_pinned(values) for name, values in compute(on_device).items()}

    def synchronize(self) -> None:
        """Wait for all work; raises what went wrong, whichever work it was."""
        torch.cuda.synchronize(self.device)

    def empty_cache(self) -> None:
        """Give memory that no tensor holds back to the card."""
        torch.cuda.empty_cache()

    def release(self) -> None:
        """Give back what a model held that is not referred to any more."""
        gc.collect()
        self.empty_cache()

    def forget(self) -> None:
        """Give back all that a model held, where this process has no other one on the card."""
        if "torch._dynamo" in sys.modules:  # it keeps what it has compiled, of any model
            torch.compiler.reset()
        self.release()

    def lacks_memory(self, error: BaseException) -> bool:
        """Tell whether an error is lack of memory; ends the process if the context is lost.

        Raises:
            InfraError: The card has failed.
        """
        require_context(error, partial(self.call, self.synchronize), self.name)
        return is_out_of_memory(error)

    def patiently(self, function: Callable[[], T]) -> T:
        """Load the only model of this process; while there is no memory, wait and try some times.

        Raises:
            Exception: What loading it raised last.
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
        """Say for which cards this torch has kernels, and what this card is."""
        major, minor = torch.cuda.get_device_capability(self.device)
        made = ", ".join(torch.cuda.get_arch_list())
        return f"the card is sm_{major}{minor}, torch {torch.__version__} has kernels for {made}"

    def pause(self, seconds: float) -> None:
        """Wait until others may have given memory back."""
        sleep(seconds)


def _to_pinned(values: torch.Tensor) -> torch.Tensor:
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def _key_of(device: torch.device) -> str:
    properties = torch.cuda.get_device_properties(device)
    key = str(getattr(properties, "uuid", os.environ.get("CUDA_VISIBLE_DEVICES", "")))
    return key.replace("/", "-")  # it is in names of files


@cache
def the_gpu() -> Gpu:
    """Return the GPU of this process."""
    return Gpu()


def memory_fraction(share: float, total_bytes: int) -> float:
    """Return how much of a card's memory a process's tensors may take, 0 to 1.

    Args:
        share: Of the card that the process has; the shares of all of them make 1 at most.
        total_bytes: Of the card.
    """
    return max(share / 2, share - CONTEXT_BYTES / total_bytes)
