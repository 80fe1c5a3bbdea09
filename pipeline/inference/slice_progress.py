"""Count the rows of the slice that a thread predicts, and send the count now and then.

Only for display: at most one small message per second, and nothing waits for an answer. Rows are
counted per slice, so that a second attempt, after an actor has crashed, does not count twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Protocol

EVERY_S = 1.0

Slice = tuple[int, int]
"""Unit and first row of a slice."""
Rows = Mapping[Slice, int]
Send = Callable[[Slice, int], object]


class Channel(Protocol):
    """The sending end in an actor; can be pickled."""

    def open(self) -> Send:
        """Return the function that sends from an actor's process; it never waits or raises."""
        ...


class _Now(threading.local):
    """The slice that this thread predicts, and its progress."""

    key: Slice = (0, 0)
    num_rows: int = 0
    is_sent: bool = True
    sent_at_s: float = 0.0


_now = _Now()
_send: Send | None = None


def send_to(channel: Channel | None) -> None:
    """Send the counts of this process to a channel from now on; None: send nothing."""
    global _send
    _send = None if channel is None else channel.open()


def start_slice(key: Slice) -> None:
    """Begin a slice in this thread; send the unsent count of the one before."""
    _flush()
    _now.key, _now.num_rows = key, 0


def add_rows(num_rows: int) -> None:
    """Count rows of this thread's slice that the model has finished."""
    if _send is None:
        return
    _now.num_rows += num_rows
    _now.is_sent = False
    if monotonic() - _now.sent_at_s >= EVERY_S:
        _flush()


def _flush() -> None:
    if _send is not None and not _now.is_sent:
        _now.is_sent, _now.sent_at_s = True, monotonic()
        _send(_now.key, _now.num_rows)
