"""A lock that slices in flight share, and that one thread can have alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from threading import Condition

from pipeline.process.liveness import unguarded


class SharedLock:
    """A shared and exclusive lock; threads that want it alone go first."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._num_shared = self._num_waiting = 0
        self._is_exclusive = False

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock together with other threads in the body."""
        with self._changed:
            with unguarded():  # the thread that holds the lock is watched
                self._changed.wait_for(lambda: not (self._is_exclusive or self._num_waiting))
            self._num_shared += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_shared -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def exclusive(self, *, within_shared: bool = False) -> Iterator[None]:
        """Hold the lock alone in the body.

        Args:
            within_shared: This thread is in a body of `shared`.
        """
        num_allowed = int(within_shared)
        with self._changed:
            self._num_waiting += 1
            with unguarded():
                self._changed.wait_for(
                    lambda: not (self._is_exclusive or self._num_shared > num_allowed)
                )
            self._num_waiting -= 1
            self._is_exclusive = True
        try:
            yield
        finally:
            with self._changed:
                self._is_exclusive = False
                self._changed.notify_all()
