"""Progress counter of the driver, read by the stall watchdog and the lease.

Counted for the whole process, as one process does one run at a time. What goes on by itself (the
lease's renewals, retries of what fails) must not beat.
"""

from __future__ import annotations

import threading

_lock = threading.Lock()
_last: tuple[int, str] = (0, "nothing yet")


def beat(what: str) -> None:
    """Note a step forward; `what` is shown when no other one follows."""
    global _last  # one counter per process
    with _lock:
        _last = (_last[0] + 1, what)


def last_beat() -> tuple[int, str]:
    """Return how many beats there were, and what the last one was."""
    return _last
