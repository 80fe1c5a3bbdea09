"""End this process when its work stands still, whatever holds it up.

A thread of C code keeps the time (`faulthandler`), so it also ends a process whose hung decoder or
model never gives Python's lock back. Where each thread stood goes to standard error. Ray starts the
process again, and the next attempt finds the marker of the one that did not end.
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic

_REARM_AFTER = 1 / 8
"""Arming starts a thread, so progress renews the limit only when this share of it has passed."""


@dataclass
class _Watch:
    """The one watch that a process can have; `limit_s` is None while nothing is watched."""

    limit_s: float | None = None
    armed_at_s: float = 0.0


_watch = _Watch()


@contextlib.contextmanager
def watch(limit_s: float) -> Iterator[None]:
    """End the process, exit code 1, when the body makes no progress (`tick`) for so long."""
    _arm(limit_s)
    try:
        yield
    finally:
        _disarm()


def tick() -> None:
    """Note progress; costs next to nothing, also if nothing is watched."""
    limit_s = _watch.limit_s
    if limit_s is not None and monotonic() - _watch.armed_at_s > _REARM_AFTER * limit_s:
        _arm(limit_s)


@contextlib.contextmanager
def pause() -> Iterator[None]:
    """Do not watch the body: what loads or compiles a model may take its time."""
    limit_s = _watch.limit_s
    if limit_s is None:
        yield
        return
    _disarm()
    try:
        yield
    finally:
        _arm(limit_s)


def _arm(limit_s: float) -> None:
    _watch.limit_s, _watch.armed_at_s = limit_s, monotonic()
    faulthandler.dump_traceback_later(limit_s, exit=True, file=sys.__stderr__ or 2)


def _disarm() -> None:
    _watch.limit_s = None
    faulthandler.cancel_dump_traceback_later()
