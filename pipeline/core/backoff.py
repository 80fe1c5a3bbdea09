"""Try again after transient errors: growing random waits, limits of tries and time, one count."""

from __future__ import annotations

import errno
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.core.errors import InfraError, Stopped

log = logging.getLogger(__name__)

T = TypeVar("T")

TRIES = 6
TIME_LIMIT_S = 90.0
"""No try begins later than this: a store that accepts a request and never answers holds each."""
FIRST_WAIT_S = 0.25

_lock = threading.Lock()
_process = {"retries": 0, "deadline_at_s": math.inf}


class TransientError(InfraError):
    """A transient error: throttling, a broken connection, an overloaded store."""


class BadBlockError(TransientError):
    """A local disk cannot read a file; if retries do not help, the file is lost."""


BAD_BLOCK = "the disk cannot read it (input/output error)"


def is_bad_block(error: BaseException) -> bool:
    """Tell whether the disk could not read a part of an open file."""
    return isinstance(error, OSError) and error.errno == errno.EIO


def is_damage(error: BaseException) -> bool:
    """Tell whether an error means damaged bytes of an Arrow file, or a bad block."""
    import pyarrow as pa

    if isinstance(error, BadBlockError | UnicodeDecodeError) or is_bad_block(error):
        return True
    if isinstance(error, pa.ArrowException) and not isinstance(error, OSError):
        return True
    return type(error) is OSError and error.errno is None


def retries_taken() -> int:
    """Return how many retries this process has taken; take the difference of two calls.

    The retries of a slice are those of its process meanwhile. That is exact only if a process works
    on one slice at a time, as Ray's tasks do.
    """
    return int(_process["retries"])


def stop_retrying_at(deadline_at_s: float | None) -> None:
    """Let no retry of this process begin after the deadline of its run, seconds since 1970.

    Workers are told: the driver of the run stops itself, and still stores its report then.
    """
    _process["deadline_at_s"] = math.inf if deadline_at_s is None else deadline_at_s


class Retries:
    """The limits of tries for one call, and how many have failed; make it before the first try."""

    def __init__(
        self, tries: float = TRIES, limit_s: float | None = None, longest_wait_after: float = TRIES
    ) -> None:
        """Take the limits.

        Args:
            tries: In all; `math.inf` for any number.
            limit_s: No try begins later than this; None: `TIME_LIMIT_S`.
            longest_wait_after: The waits double until so many tries have failed.
        """
        self._tries, self._longest_wait_after = tries, longest_wait_after
        self.give_up_at = time.monotonic() + (TIME_LIMIT_S if limit_s is None else limit_s)
        self.num_failed = 0

    def wait(self, asked_s: float = 0.0) -> bool:
        """Count a failed try; wait for the next one, or return False if none is left.

        The wait is random, so that many callers that failed together do not return together.

        Args:
            asked_s: How long the other side asks us to stay away, before the usual wait.

        Raises:
            Stopped: The deadline of this process's run has passed.
        """
        self.num_failed += 1
        if self.num_failed >= self._tries or time.monotonic() + asked_s > self.give_up_at:
            return False
        if time.time() > _process["deadline_at_s"]:
            raise Stopped("the deadline of the run has passed while it waited for a retry")
        with _lock:
            _process["retries"] += 1
        doublings = min(self.num_failed, self._longest_wait_after) - 1
        usual_s = FIRST_WAIT_S * 2**doublings * (0.5 + secrets.randbelow(1000) / 1000)
        time.sleep(asked_s + usual_s)
        return True


def with_retries(act: Callable[[], T]) -> T:
    """Call `act` until it does not raise TransientError, or no try or time is left.

    Raises:
        TransientError: The last one, when no try is left.
    """
    retries = Retries()
    while True:
        try:
            return act()
        except TransientError as error:
            if not retries.wait():
                raise
            log.debug("try %d of %d failed: %s", retries.num_failed, TRIES, error)
