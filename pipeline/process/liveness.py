"""Progress of this process, for others: that it gets on, and with what.

- `note_progress` counts steps of the driver, for the supervisor of the run. `note_unfinished` keeps
  the progress of actors within slices that are not finished, for the user.
- `hang_guard` ends an actor or reader if one of its threads stands still. Each thread has its own
  limit, so progress of another thread does not excuse it. A thread of C code keeps the time
  (`faulthandler`), so a decoder or model that never releases Python's lock is ended, too. The stack
  of each thread goes to standard error. Ray starts the process again, and the next attempt finds
  the crash mark of the one that did not end.
- `input_started` tells a parent on which of several inputs its child works, and `still_alive` that
  it gets on (`tell_parent`). An actor passes the latter on to its driver.
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import monotonic

from pipeline.process.run_scope import current_scope

_REARM_AFTER = 1 / 8
"""Arming starts a thread, so progress renews the limit only after this share of it."""


@dataclass
class _Progress:
    count: int = 0
    what: str = "nothing yet"
    unfinished: tuple[int, int] = (0, 0)
    lock: threading.Lock = field(default_factory=threading.Lock)


def note_progress(what: str) -> None:
    """Note a step forward; `what` is shown if no further step follows.

    Renewals of the lease and retries are not steps.
    """
    progress = current_scope().part(_Progress)
    with progress.lock:
        progress.count, progress.what = progress.count + 1, what


def last_progress() -> tuple[int, str]:
    """Return the number of steps, and the last one."""
    progress = current_scope().part(_Progress)
    return progress.count, progress.what


def note_unfinished(num_rows: int, num_tokens: int) -> None:
    """Note the finished rows and generated tokens of unfinished slices."""
    current_scope().part(_Progress).unfinished = (num_rows, num_tokens)


def unfinished() -> tuple[int, int]:
    """Return the rows and tokens of unfinished slices, as noted last."""
    return current_scope().part(_Progress).unfinished


@dataclass
class _Guard:
    """The guard of one thread."""

    limit_s: float
    from_s: float
    """Time of its last progress."""


@dataclass
class _Guards:
    by_thread: dict[int, _Guard] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    num_pauses: int = 0

    def arm(self) -> None:
        """Set the timer for the thread whose limit ends first."""
        if self.num_pauses or not self.by_thread:
            faulthandler.cancel_dump_traceback_later()
            return
        now_s = monotonic()
        left_s = min(guard.limit_s - (now_s - guard.from_s) for guard in self.by_thread.values())
        left_s = max(0.001, round(left_s, 3))
        faulthandler.dump_traceback_later(left_s, exit=True, file=sys.__stderr__ or 2)


@contextlib.contextmanager
def hang_guard(limit_s: float) -> Iterator[None]:
    """End the process, exit code 1, if the body does not call `still_alive` for so long."""
    guards, thread = current_scope().part(_Guards), threading.get_ident()
    with guards.lock:
        guards.by_thread[thread] = _Guard(limit_s, monotonic())
        guards.arm()
    try:
        yield
    finally:
        with guards.lock:
            guards.by_thread.pop(thread, None)
            guards.arm()


def still_alive(thread: int | None = None, *, num_rows: int = 0, num_tokens: int = 0) -> None:
    """Note that this thread gets on; costs next to nothing, also without a guard.

    Args:
        thread: A thread that waits for this one and gets on with it; None: this thread.
        num_rows: Rows finished since the last call.
        num_tokens: Tokens generated since the last call.
    """
    listener = current_scope().part(_Parent).of_life
    if listener is not None:
        listener(num_rows, num_tokens)
    guards = current_scope().part(_Guards)
    guard = guards.by_thread.get(threading.get_ident() if thread is None else thread)
    if guard is not None and monotonic() - guard.from_s > _REARM_AFTER * guard.limit_s:
        with guards.lock:
            guard.from_s = monotonic()
            guards.arm()


@contextlib.contextmanager
def no_limit() -> Iterator[None]:
    """Guard no thread during the body: loading or compiling a model may take long."""
    guards = current_scope().part(_Guards)
    with guards.lock:
        guards.num_pauses += 1
        guards.arm()
    try:
        yield
    finally:
        with guards.lock:
            guards.num_pauses -= 1
            now_s = monotonic()
            for guard in guards.by_thread.values():
                guard.from_s = now_s
            guards.arm()


@contextlib.contextmanager
def unguarded() -> Iterator[None]:
    """Do not guard this thread during the body: it waits for other threads."""
    guards, thread = current_scope().part(_Guards), threading.get_ident()
    with guards.lock:
        guard = guards.by_thread.pop(thread, None)
        guards.arm()
    try:
        yield
    finally:
        if guard is not None:
            with guards.lock:
                guard.from_s = monotonic()
                guards.by_thread[thread] = guard
                guards.arm()


@dataclass
class _Parent:
    of_inputs: Callable[[str], object] | None = None
    of_life: Callable[[int, int], object] | None = None


def tell_parent(
    of_inputs: Callable[[str], object] | None = None,
    of_life: Callable[[int, int], object] | None = None,
) -> None:
    """Call a function for every input that this process begins, and one for `still_alive`.

    The latter gets the rows and tokens since the last call.
    """
    parent = current_scope().part(_Parent)
    parent.of_inputs, parent.of_life = of_inputs, of_life


def input_started(name: str) -> None:
    """Tell the parent that the work on an input, of one row or several, begins."""
    listener = current_scope().part(_Parent).of_inputs
    if listener is not None:
        listener(name)
