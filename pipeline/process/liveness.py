"""What others learn of this process while it works: that it gets on, and on what.

- `note_progress` counts steps of the driver, for the supervisor of the run, and `note_unfinished`
  what its actors have done of slices that are not finished, for those who watch.
- `hang_guard` ends an actor or reader one of whose threads stands still. Each thread has a limit of
  its own: one that hangs is not excused by another that goes on. A thread of C code keeps the time
  (`faulthandler`), so a decoder or model that never gives Python's lock back is ended, too. Where
  each thread stood goes to standard error. Ray starts the process again, and the next attempt finds
  the marker of the one that did not end.
- `input_started` tells a parent which of several inputs its child works on, and `still_alive` that
  it gets on (`tell_parent`); an actor passes the latter on to its driver.
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
"""Arming starts a thread, so progress renews the limit only when this share of it has passed."""


@dataclass
class _Progress:
    count: int = 0
    what: str = "nothing yet"
    unfinished: tuple[int, int] = (0, 0)
    lock: threading.Lock = field(default_factory=threading.Lock)


def note_progress(what: str) -> None:
    """Note a step forward; `what` is shown when no other one follows.

    What goes on by itself (the lease's renewals, retries of what fails) is none.
    """
    progress = current_scope().part(_Progress)
    with progress.lock:
        progress.count, progress.what = progress.count + 1, what


def last_progress() -> tuple[int, str]:
    """Return how many steps there were, and what the last one was."""
    progress = current_scope().part(_Progress)
    return progress.count, progress.what


def note_unfinished(num_rows: int, num_tokens: int) -> None:
    """Note how many rows are done, and how many tokens are written, of slices under way."""
    current_scope().part(_Progress).unfinished = (num_rows, num_tokens)


def unfinished() -> tuple[int, int]:
    """Return rows and tokens of slices under way, as they were noted last."""
    return current_scope().part(_Progress).unfinished


@dataclass
class _Guard:
    """The guard of one thread."""

    limit_s: float
    from_s: float
    """When it made progress last."""


@dataclass
class _Guards:
    by_thread: dict[int, _Guard] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    num_pauses: int = 0

    def arm(self) -> None:
        """Set the clock to the thread whose limit ends first."""
        if self.num_pauses or not self.by_thread:
            faulthandler.cancel_dump_traceback_later()
            return
        now_s = monotonic()
        left_s = min(guard.limit_s - (now_s - guard.from_s) for guard in self.by_thread.values())
        left_s = max(0.001, round(left_s, 3))
        faulthandler.dump_traceback_later(left_s, exit=True, file=sys.__stderr__ or 2)


@contextlib.contextmanager
def hang_guard(limit_s: float) -> Iterator[None]:
    """End the process, exit code 1, if the body says for so long not that it is `still_alive`."""
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
    """Note that this thread gets on; costs next to nothing, also if nothing is guarded.

    Args:
        thread: One that waits for this thread and gets on with it; None: this one.
        num_rows: Rows that are done since the last call.
        num_tokens: Tokens that are written since the last call.
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
    """Guard no thread during the body: loading or compiling a model may take its time."""
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
    """Do not guard this thread during the body: it waits for what other threads do."""
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
    """Call functions for every input that this process begins with, and for `still_alive`.

    The latter is given the rows and tokens that are done since the last call.
    """
    parent = current_scope().part(_Parent)
    parent.of_inputs, parent.of_life = of_inputs, of_life


def input_started(name: str) -> None:
    """Tell that the work on an input, of one row or of several, begins."""
    listener = current_scope().part(_Parent).of_inputs
    if listener is not None:
        listener(name)
