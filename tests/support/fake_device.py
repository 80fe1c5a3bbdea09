"""A stand-in for a CUDA device: streams that work on threads, memory that runs out, lost contexts.

It takes the place of `accelerator.Gpu`, so that the real Predictor, buffers and actor code run on
it. Device memory is poisoned until the copy into it has run, and results cannot be read before the
host has waited for an event behind them. What is launched runs later, in the thread of its stream,
and takes as long as the clock of the device says; that clock goes on only while work is queued, or
the host is late.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep

import numpy as np
import torch

from pipeline.inference import device
from pipeline.inference.accelerator import Compute, Gpu, Used

WAIT_S = 60.0
found: FakeGpu | None = None
"""The one that this process has at present."""


class FakeStream:
    """A queue of work that a thread of its own does, one piece after the other."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self.num_queued = self.num_waited = 0
        """Pieces of work so far, and how many of them the host has waited for."""
        self.clock_s = 0.0
        self.idle_s = self.busy_s = 0.0
        threading.Thread(target=self._run, daemon=True).start()

    def put(self, work: Callable[[], object], takes_s: float = 0.0, *, at_end: bool = False) -> int:
        """Queue work, done at the begin or the end of its time; return its number."""
        queued_at_s = monotonic()

        def do() -> None:
            if not at_end and self._gpu.lost is None:
                work()
            if takes_s:
                begins_s = max(queued_at_s, self.clock_s)
                self.idle_s += begins_s - self.clock_s if self.clock_s else 0.0
                self.busy_s += takes_s
                self.clock_s = begins_s + takes_s
                sleep(max(0.0, self.clock_s - monotonic()))
            if at_end and self._gpu.lost is None:
                work()

        self.num_queued += 1
        self._work.put(do)
        return self.num_queued

    def mark(self, reached: Callable[[], object]) -> int:
        """Queue what also happens if the context is lost."""
        self.num_queued += 1
        self._work.put(reached)
        return self.num_queued

    def close(self) -> None:
        self._work.put(None)

    def _run(self) -> None:
        torch.set_num_threads(1)  # of this thread
        while (work := self._work.get()) is not None:
            work()


class FakeEvent:
    """A place in a stream that others, and the host, can wait for."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu, self.fired = gpu, threading.Event()
        self.at_s = 0.0

    def record(self) -> None:
        self._gpu.check()
        self._stream = self._gpu.current
        self._number = self._stream.mark(self._fire)

    def _fire(self) -> None:
        self.at_s = self._stream.clock_s
        self.fired.set()

    def synchronize(self) -> None:
        assert self.fired.wait(WAIT_S), "an event that never fires"
        self._stream.num_waited = max(self._stream.num_waited, self._number)
        self._gpu.check()

    def elapsed_time(self, end: FakeEvent) -> float:
        self._gpu.check()
        return max(0.0, 1000 * (end.at_s - self.at_s))


class FakeResults(Mapping[str, torch.Tensor]):
    """What a batch gives: there once the host has waited for an event behind it."""

    def __init__(self, stream: FakeStream) -> None:
        self._stream, self._found = stream, dict[str, torch.Tensor]()
        self.number = 0
        self.error: Exception | None = None

    def fill(self, values: Mapping[str, torch.Tensor]) -> None:
        self._found = {name: tensor.clone() for name, tensor in values.items()}

    def _read(self) -> dict[str, torch.Tensor]:
        assert self._stream.num_waited >= self.number, "read before its event was waited for"
        if self.error is not None:
            raise self.error
        return self._found

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


class FakeGpu(Gpu):
    """A GPU whose kernels are computed by this machine's CPU."""

    def __init__(
        self,
        *,
        rows_per_s: float = math.inf,
        copy_s: float = 0.002,
        total_bytes: int = 1 << 40,
        row_bytes: int = 1,
    ) -> None:
        """Make one.

        Args:
            rows_per_s: How fast the model is.
            copy_s: How long a copy to the device takes.
            total_bytes: Its memory.
            row_bytes: What each row of a batch takes of it while it is computed.
        """
        self.device, self.name = torch.device("cpu"), "Fake L4"
        self.key = "fake"
        self._thread_id, self._thread = None, ThreadPoolExecutor(1, "gpu")
        self._rows_per_s, self._copy_s, self._row_bytes = rows_per_s, copy_s, row_bytes
        self.total_bytes, self.held_bytes, self.most_bytes = total_bytes, 0, 0
        self.lost: Exception | None = None
        self.thread_names: set[str] = set()
        """Of the threads that launched work."""
        self.pauses_s: list[float] = []
        self.copied_bytes = 0
        self.batches: list[int] = []
        """Rows of the batches that were computed."""
        self.on_pause: Callable[[], object] = lambda: None
        self._local, self._memory, self._streams = threading.local(), threading.Lock(), []
        self.main = self.stream()

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        self._thread.shutdown()

    def take(self, share: float) -> None:
        self.share = share

    def check(self) -> None:
        """Raise what has lost the context, if anything has."""
        if self.lost is not None:
            raise type(self.lost)(*self.lost.args)

    @property
    def current(self) -> FakeStream:
        return getattr(self._local, "stream", self.main)

    def _launch(self) -> None:
        self.thread_names.add(threading.current_thread().name)
        self.check()

    def stream(self) -> FakeStream:
        self._streams.append(FakeStream(self))
        return self._streams[-1]

    @contextlib.contextmanager
    def on(self, stream: FakeStream) -> Iterator[None]:
        self._local.stream = stream
        try:
            yield
        finally:
            self._local.stream = self.main

    def event(self) -> FakeEvent:
        return FakeEvent(self)

    def wait(self, event: FakeEvent) -> None:
        self._launch()
        stream = self.current

        def until() -> None:
            assert event.fired.wait(WAIT_S), "a stream waits for an event that never fires"
            if stream.clock_s:
                stream.idle_s += max(0.0, event.at_s - stream.clock_s)
                stream.clock_s = max(stream.clock_s, event.at_s)

        stream.mark(until)

    def pinned(self, num_values: int, dtype: torch.dtype) -> torch.Tensor:
        self._launch()
        return torch.zeros(num_values, dtype=dtype)

    def empty(self, num_values: int, dtype: torch.dtype) -> torch.Tensor:
        self._launch()
        return poisoned(torch.empty(num_values, dtype=dtype))

    def copy(self, pinned: torch.Tensor, on_device: torch.Tensor) -> None:
        self._launch()
        self.copied_bytes += pinned.nbytes
        poisoned(on_device)
        self.current.put(lambda: on_device.copy_(pinned), self._copy_s, at_end=True)

    def run(self, compute: Compute, on_device: Mapping[str, torch.Tensor]) -> FakeResults:
        self._launch()
        num_rows = max(len(tensor) for tensor in on_device.values())
        self.hold(num_rows * self._row_bytes)
        results = FakeResults(self.current)

        def work() -> None:
            try:
                with torch.inference_mode():
                    results.fill(compute(on_device))
                self.batches.append(num_rows)
            except Exception as error:  # noqa: BLE001  # as a device: it shows later
                if "CUDA error" in str(error):
                    self.lost = error
                results.error = error

        results.number = self.current.put(work, num_rows / self._rows_per_s)
        self.current.mark(lambda: self.give_back(num_rows * self._row_bytes))
        return results

    def hold(self, num_bytes: int) -> None:
        """Take memory.

        Raises:
            torch.OutOfMemoryError: There is not enough.
        """
        with self._memory:
            if self.held_bytes + num_bytes > self.total_bytes:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much")
            self.held_bytes += num_bytes
            self.most_bytes = max(self.most_bytes, self.held_bytes)

    def give_back(self, num_bytes: int) -> None:
        with self._memory:
            self.held_bytes -= num_bytes

    def synchronize(self) -> None:
        events = []
        for stream in self._streams:
            with self.on(stream):
                events.append(threading.Event())
                number = stream.mark(events[-1].set)
            assert events[-1].wait(WAIT_S)
            stream.num_waited = max(stream.num_waited, number)
        self.check()

    def empty_cache(self) -> None:
        self._launch()
        self.synchronize()

    def memory_bytes(self) -> tuple[int, int]:
        return self.total_bytes - self.held_bytes, self.total_bytes

    def used_bytes(self) -> Used:
        return Used(self.held_bytes, self.most_bytes, self.most_bytes)

    def kernels_told(self) -> str:
        return "the card is sm_70, torch has kernels for sm_75, sm_80"

    def pause(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        sleep(0.01)
        self.on_pause()


def poisoned(tensor: torch.Tensor) -> torch.Tensor:
    """Fill memory with what no batch holds: not a number, numbers of no token, noise of pixels."""
    if tensor.is_floating_point():
        return tensor.fill_(math.nan)
    values = tensor.numpy().reshape(-1).view(np.uint8)
    values[:] = np.resize(np.array([0xA5, 0x5B, 0xF3], np.uint8), values.size)
    return tensor


@contextlib.contextmanager
def installed(gpu: FakeGpu) -> Iterator[FakeGpu]:
    """Let the code of this process find this GPU."""
    global found
    real, device.gpu_of = device.gpu_of, lambda num_gpus: gpu if num_gpus else None
    found = gpu
    try:
        yield gpu
    finally:
        found, device.gpu_of = None, real
        gpu.close()
