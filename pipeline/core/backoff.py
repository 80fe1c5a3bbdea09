"""Retry what failed for a transient reason: few tries, growing random waits, all counted."""

from __future__ import annotations

import errno
import itertools
import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.core.errors import InfraError

log = logging.getLogger(__name__)

T = TypeVar("T")

TRIES = 6
TIME_LIMIT_S = 90.0
"""After so long no further try begins: a store that accepts and never answers holds each one."""
FIRST_WAIT_S = 0.25

_lock = threading.Lock()
_taken = {"retries": 0}


class TransientError(InfraError):
    """An error that may pass: throttling, a broken connection, an overloaded store."""


class BadBlockError(TransientError):
    """A local disk cannot read a file; if retries do not help, that file is lost."""


BAD_BLOCK = "the disk cannot read it (input/output error)"


def is_bad_block(error: BaseException) -> bool:
    """Tell that a disk could not read a part of a file that is open."""
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
    """Return how many retries this process has taken; the difference of two calls is what counts.

    The retries of a slice are those of its process while it was read or written, which is the same
    thing only if a process works on one slice at a time, as Ray's tasks do.
    """
    return _taken["retries"]


def with_retries(act: Callable[[], T]) -> T:
    """Call `act` until it does not raise TransientError, or no try or time is left.

    Raises:
        TransientError: The last one, when no try is left.
    """
    give_up = time.monotonic() + TIME_LIMIT_S
    for attempt in itertools.count(1):
        try:
            return act()
        except TransientError as error:
            if attempt >= TRIES or time.monotonic() > give_up:
                raise
            log.debug("try %d of %d failed: %s", attempt, TRIES, error)
        wait_before_retry(attempt)
    raise AssertionError("not reached: the loop has no end")


def wait_before_retry(attempt: int) -> None:
    """Count a retry and wait for it; many that failed together do not come back together.

    Args:
        attempt: How many tries have failed.
    """
    with _lock:
        _taken["retries"] += 1
    time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1) * (0.5 + secrets.randbelow(1000) / 1000))
