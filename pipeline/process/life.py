"""What one run keeps in this process: made when it begins, closed when it ends.

A process has a life of its own for what happens outside of runs (`doctor`, actors). Rooms above
this one keep values in it by their class, and say how what they hold is given up.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")


class Life:
    """Values by class, and what closes that which is held."""

    def __init__(self, outer: Life | None = None) -> None:
        self._outer, self._parts = outer, dict[type, Any]()
        self._closers: list[Callable[[], object]] = []

    def part(self, value_type: type[T]) -> T:
        """Return this life's value of a class, which is made at the first call."""
        value: T | None = self._parts.get(value_type)
        return self._parts.setdefault(value_type, value_type()) if value is None else value

    def nearest(self, value_type: type[T]) -> T:
        """Return the value of the innermost life that has one: several runs may share a Ray."""
        if value_type in self._parts or self._outer is None:
            return self.part(value_type)
        return self._outer.nearest(value_type)

    @contextlib.contextmanager
    def closing(self, act: Callable[[], object]) -> Iterator[None]:
        """Let `close` call `act` if it comes during the body."""
        self._closers.append(act)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):  # `close` came
                self._closers.remove(act)

    def close(self, limit_s: float) -> None:
        """Give up all that is held, the newest first, each within a time; what fails is left."""
        while self._closers:
            within(limit_s, self._closers.pop())


_current = Life()


def current() -> Life:
    """Return the life of the run of this process; without one, that of the process."""
    return _current


@contextlib.contextmanager
def new_life() -> Iterator[Life]:
    """Let the body be a life of its own."""
    global _current
    outer, _current = _current, Life(_current)
    try:
        yield _current
    finally:
        _current = outer


def within(limit_s: float, act: Callable[[], T]) -> T | None:
    """Call `act` in a thread; None if it fails or does not end in time."""
    results: list[T] = []

    def call() -> None:
        try:
            results.append(act())
        except Exception as error:  # noqa: BLE001  # the process ends, and with another error
            log.debug("%s: %s", act, error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(limit_s)
    return results[0] if results else None
