"""Slices are worked on side by side, but what needs the room of all is done alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from threading import Condition

from pipeline.process.liveness import unguarded


class Turns:
    """Lets threads work side by side, or one of them alone."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._num_here = self._num_waiting = 0
        self._is_alone = False

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Work on a slice in the body; waits while another thread is alone, or is to be."""
        with self._changed:
            with unguarded():  # what it waits for is watched
                self._changed.wait_for(lambda: not (self._is_alone or self._num_waiting))
            self._num_here += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_here -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self, *, within_slice: bool = False) -> Iterator[None]:
        """Work in the body while no slice is worked on.

        Args:
            within_slice: This thread is in a body of `here`, whose slice may be.
        """
        num_allowed = int(within_slice)
        with self._changed:
            self._num_waiting += 1
            with unguarded():
                self._changed.wait_for(lambda: not (self._is_alone or self._num_here > num_allowed))
            self._num_waiting -= 1
            self._is_alone = True
        try:
            yield
        finally:
            with self._changed:
                self._is_alone = False
                self._changed.notify_all()
