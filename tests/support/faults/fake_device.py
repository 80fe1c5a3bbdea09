"""A stand-in for a CUDA device: streams on threads, memory that runs out, lost contexts.

It takes the place of `accelerator.Gpu`, so that the real TorchEngine, buffers and actor code run on
it. Device memory is poisoned until the copy into it has run, and results cannot be read before the
host has waited for an event behind them. What is launched runs in the thread of its stream and
takes time of a clock (`fake_clock`) that stands still while the host is at work: so it runs as late
as it may. With `watches_calls` what else is computed in its thread, as texts are, takes
its memory, loses the context by an index beyond a table, and finds a context that is lost.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.inference.devices import device_buffers, device_model, load_runner, shared_lock
from pipeline.inference.devices.accelerator import Compute, Gpu
from support.faults.fake_clock import Clock, ClockCondition, Signal, Turns

installed_gpu: FakeGpu | None = None
"""The one that this process has at present."""


class FakeStream:
    """A queue of work that a thread of its own does, one piece after the other."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu, self._clock = gpu, gpu.clock
        self._work: deque[Callable[[], object] | None] = deque()
        self._queued = threading.Condition(gpu.clock.lock)
        self._is_active = False
        self.num_queued = self.num_waited = 0
        """Pieces of work so far, and how many of them the host has waited for."""
        self.idle_s = self.busy_s = self.cpu_s = 0.0
        self.ended_s: float | None = None
        """When the last piece ended; None: forget the time before the next one."""
        threading.Thread(target=self._run, daemon=True).start()

    def put(self, work: Callable[[], object], takes_s: float, *, at_end: bool = False) -> int:
        """Queue work, done at the begin or the end of its time; return its number."""

        def do() -> None:
            if not at_end and self._gpu.lost is None:
                work()
            if self.ended_s is not None:
                self.idle_s += self._clock.now_s - self.ended_s
            self.busy_s += takes_s
            self._clock.sleep(takes_s)
            self.ended_s = self._clock.now_s
            if at_end and self._gpu.lost is None:
                work()

        return self.mark(do)

    def mark(self, reached: Callable[[], object]) -> int:
        """Queue what takes no time and also happens if the context is lost; return its number."""
        with self._clock.lock:
            self.num_queued += 1
            self._work.append(reached)
            if not self._is_active:
                self._is_active = True
                self._clock.add_busy(1)
            self._queued.notify()
        return self.num_queued

    def close(self) -> None:
        with self._clock.lock:
            self._work.append(None)
            self._queued.notify()

    def _run(self) -> None:
        torch.set_num_threads(1)  # of this thread
        while (work := self._next()) is not None:
            work()
            self.cpu_s = time.thread_time()

    def _next(self) -> Callable[[], object] | None:
        with self._clock.lock:
            if not self._work and self._is_active:
                self._is_active = False
                self._clock.add_busy(-1)
            self._queued.wait_for(lambda: self._work)
            return self._work.popleft()


class FakeEvent:
    """A place in a stream that others, and the host, can wait for."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu, self.signal = gpu, Signal(gpu.clock)
        self._at_s = 0.0

    def record(self) -> None:
        self._gpu.check()
        self._stream = self._gpu.current
        self._number = self._stream.mark(self._fire)

    def _fire(self) -> None:
        self._at_s = self._gpu.clock.now_s
        self.signal.fire()

    def synchronize(self) -> None:
        self.signal.wait(is_busy=self._gpu.is_host)
        self._stream.num_waited = max(self._stream.num_waited, self._number)
        self._gpu.check()

    def elapsed_time(self, end: FakeEvent) -> float:
        self._gpu.check()
        return 1000 * (end._at_s - self._at_s)


class FakeResults(Mapping[str, torch.Tensor]):
    """What a batch gives: there once the host has waited for an event behind it."""

    def __init__(self, stream: FakeStream) -> None:
        self._stream, self._tensors = stream, dict[str, torch.Tensor]()
        self.number = 0
        self.error: Exception | None = None

    def fill(self, values: Mapping[str, torch.Tensor]) -> None:
        self._tensors = {name: tensor.clone() for name, tensor in values.items()}

    def _read(self) -> dict[str, torch.Tensor]:
        assert self._stream.num_waited >= self.number, "read before its event was waited for"
        if self.error is not None:
            raise self.error
        return self._tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


class Operations(TorchDispatchMode):
    """What operations of torch in the thread of a GPU do to it."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self._gpu, self._num_views = gpu, dict[int, int]()
        """Address of memory -> tensors that refer to it."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self._gpu.check()
        given = {tensor_.untyped_storage().data_ptr() for tensor_ in _tensors((args, kwargs))}
        try:
            made = operation(*args, **(kwargs or {}))
        except IndexError as error:
            self._gpu.lose(error)
        for tensor in _tensors(made):
            self._count(tensor, given)
        return made

    def _count(self, tensor: torch.Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        address, num_bytes = storage.data_ptr(), storage.nbytes()
        if not num_bytes or (address in given and address not in self._num_views):
            return  # of the model, or of the host
        if address not in self._num_views:
            self._gpu.hold(num_bytes)
            self._num_views[address] = 0
        self._num_views[address] += 1
        weakref.finalize(tensor, self._forget, address, num_bytes)

    def _forget(self, address: int, num_bytes: int) -> None:
        self._num_views[address] -= 1
        if not self._num_views[address]:
            del self._num_views[address]
            self._gpu.give_back(num_bytes)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class FakeGpu(Gpu):
    """A GPU whose kernels are computed by this machine's CPU."""

    def __init__(
        self,
        *,
        rows_per_s: float = math.inf,
        copy_s: float = 0.002,
        launch_s: float = 0.0,
        total_bytes: int = 1 << 40,
        row_bytes: int = 1,
        watches_calls: bool = False,
    ) -> None:
        """Make one.

        Args:
            rows_per_s: How fast the model is.
            copy_s: How long a copy to the device takes.
            launch_s: How long the host takes to launch a batch.
            total_bytes: Its memory.
            row_bytes: What each row of a batch takes of it while it is computed.
            watches_calls: Whether tensors that its thread makes take memory, too.
        """
        self.device, self.name = torch.device("cpu"), "Fake L4"
        self.key = "fake"
        self.clock, self._local = Clock(), threading.local()
        self._turns, self._serves_host = Turns(self.clock), False
        self._thread_id, self._thread = None, ThreadPoolExecutor(1, "gpu")
        self._rows_per_s, self._copy_s = rows_per_s, copy_s
        self._launch_s, self._row_bytes = launch_s, row_bytes
        self.total_bytes, self.held_bytes, self.most_bytes = total_bytes, 0, 0
        self.share, self._watches_calls = 1.0, watches_calls
        self.lost: Exception | None = None
        self.thread_names: set[str] = set()
        """Of the threads that launched work."""
        self.pauses_s: list[float] = []
        self.copied_bytes = 0
        self.batches: list[int] = []
        """Rows of the batches that were computed."""
        self.on_pause: Callable[[], object] = lambda: None
        self._memory, self._streams = threading.Lock(), list[FakeStream]()
        self.main = self.stream()

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        self._thread.shutdown()

    @contextlib.contextmanager
    def host(self) -> Iterator[None]:
        """Let no time pass while this thread is at work, in the body."""
        with self.clock.lock:
            self.clock.add_busy(1)
        self._local.is_host = True
        try:
            yield
        finally:
            self._local.is_host = False
            with self.clock.lock:
                self.clock.add_busy(-1)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Let time pass in the body, in which this thread waits for others."""
        with self.clock.lock:
            self.clock.add_busy(-1)
        try:
            yield
        finally:
            with self.clock.lock:
                self.clock.add_busy(1)

    @property
    def is_host(self) -> bool:
        """Tell whether this thread, or the one that it works for, is counted as busy."""
        if threading.get_ident() == self._thread_id:
            return self._serves_host
        return getattr(self._local, "is_host", False)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == self._thread_id:
            return function(*args, **kwargs)
        is_host = self.is_host
        with self._turns.held(is_busy=is_host):
            self._serves_host = is_host
            return super().call(function, *args, **kwargs)

    def _run_there(self, function: Callable[[], Any]) -> Any:
        with Operations(self) if self._watches_calls else contextlib.nullcontext():
            return super()._run_there(function)

    def take(self, share: float) -> None:
        self.share = share

    def lose(self, error: BaseException) -> NoReturn:
        """Lose the context, as kernels do that read beyond a table."""
        self.lost = RuntimeError("CUDA error: device-side assert triggered")
        raise self.lost from error

    def check(self) -> None:
        """Raise what has lost the context, if anything has."""
        if self.lost is not None:
            raise type(self.lost)(*self.lost.args)

    @property
    def cpu_s(self) -> float:
        """Return the CPU seconds of its own threads, which no real device costs."""
        return sum(stream.cpu_s for stream in self._streams)

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
        self.current.mark(functools.partial(event.signal.wait, is_busy=True))

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
        if self.is_host:
            self.clock.sleep(self._launch_s)
        num_rows = max(len(tensor) for tensor in on_device.values())
        self.hold(num_rows * self._row_bytes)
        results = FakeResults(self.current)

        def work() -> None:
            try:
                with torch.inference_mode():
                    results.fill(compute(on_device))
                self.batches.append(num_rows)
            except Exception as error:  # noqa: BLE001  # as a device: it shows later
                is_beyond = isinstance(error, IndexError) and "out of range" in str(error)
                with contextlib.suppress(RuntimeError):
                    if is_beyond:
                        self.lose(error)
                if "CUDA error" in str(error):
                    self.lost = error
                results.error = self.lost or error

        results.number = self.current.put(work, num_rows / self._rows_per_s)
        self.current.mark(lambda: self.give_back(num_rows * self._row_bytes))
        return results

    def hold(self, num_bytes: int) -> None:
        """Take memory.

        Raises:
            torch.OutOfMemoryError: There is not enough.
        """
        with self._memory:
            if self.held_bytes + num_bytes > self.share * self.total_bytes:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much")
            self.held_bytes += num_bytes
            self.most_bytes = max(self.most_bytes, self.held_bytes)

    def give_back(self, num_bytes: int) -> None:
        with self._memory:
            self.held_bytes -= num_bytes

    def synchronize(self) -> None:
        for stream in list(self._streams):
            reached = Signal(self.clock)
            number = stream.mark(reached.fire)
            reached.wait(is_busy=self.is_host)
            stream.num_waited = max(stream.num_waited, number)
        self.check()

    def empty_cache(self) -> None:
        self._launch()
        self.synchronize()

    def memory_bytes(self) -> tuple[int, int]:
        self.check()
        return self.total_bytes - self.held_bytes, self.total_bytes

    def describe_kernels(self) -> str:
        return "the card is sm_70, torch has kernels for sm_75, sm_80"

    def pause(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        if self.is_host:
            self.clock.sleep(seconds)
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
    """Let the code of this process find this GPU; this thread is its host."""
    global installed_gpu
    real = load_runner.gpu_of, device_buffers.Condition, shared_lock.Condition

    def gpu_of(num_gpus: float) -> FakeGpu | None:
        if num_gpus:
            gpu.call(gpu.take, num_gpus)
        return gpu if num_gpus else None

    installed_gpu, load_runner.gpu_of = gpu, gpu_of
    device_model.gpu_of = gpu_of
    device_buffers.Condition = lambda: ClockCondition(gpu.clock, lambda: gpu.is_host)
    shared_lock.Condition = device_buffers.Condition
    try:
        with gpu.host():
            yield gpu
    finally:
        load_runner.gpu_of, device_buffers.Condition, shared_lock.Condition = real
        device_model.gpu_of = real[0]
        installed_gpu = None
        gpu.close()
