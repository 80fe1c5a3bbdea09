"""End this process when its work stands still, whatever holds it up.

Each thread has a limit of its own: one that stands still is not excused by another that goes on. A
thread of C code keeps the time (`faulthandler`), so it also ends a process whose hung decoder or
model never gives Python's lock back. Where each thread stood goes to standard error. Ray starts the
process again, and the next attempt finds the marker of the one that did not end.
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic

_REARM_AFTER = 1 / 8
"""Arming starts a thread, so progress renews the limit only when this share of it has passed."""


@dataclass
class _Watch:
    """The watch of one thread."""

    limit_s: float
    from_s: float
    """When it made progress last."""


_watches: dict[int, _Watch] = {}
_lock = threading.RLock()
_pauses = 0


@contextlib.contextmanager
def watch(limit_s: float) -> Iterator[None]:
    """End the process, exit code 1, when the body makes no progress (`tick`) for so long."""
    thread = threading.get_ident()
    with _lock:
        _watches[thread] = _Watch(limit_s, monotonic())
        _arm()
    try:
        yield
    finally:
        with _lock:
            _watches.pop(thread, None)
            _arm()


def tick() -> None:
    """Note progress of this thread; costs next to nothing, also if nothing is watched."""
    own = _watches.get(threading.get_ident())
    if own is not None and monotonic() - own.from_s > _REARM_AFTER * own.limit_s:
        with _lock:
            own.from_s = monotonic()
            _arm()


@contextlib.contextmanager
def pause() -> Iterator[None]:
    """Do not watch any thread during the body: loading or compiling a model may take its time."""
    global _pauses
    with _lock:
        _pauses += 1
        _arm()
    try:
        yield
    finally:
        with _lock:
            _pauses -= 1
            now_s = monotonic()
            for each in _watches.values():
                each.from_s = now_s
            _arm()


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Do not watch this thread during the body: it waits for what other threads do."""
    thread = threading.get_ident()
    with _lock:
        own = _watches.pop(thread, None)
        _arm()
    try:
        yield
    finally:
        if own is not None:
            with _lock:
                own.from_s = monotonic()
                _watches[thread] = own
                _arm()


def _arm() -> None:
    """Set the clock to the thread whose limit ends first."""
    if _pauses or not _watches:
        faulthandler.cancel_dump_traceback_later()
        return
    now_s = monotonic()
    left_s = min(each.limit_s - (now_s - each.from_s) for each in _watches.values())
    left_s = max(0.001, round(left_s, 3))
    faulthandler.dump_traceback_later(left_s, exit=True, file=sys.__stderr__ or 2)
