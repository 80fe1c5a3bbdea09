"""The scope of one run in this process: values made when the run begins, given up when it ends.

A process has an outermost scope for what happens outside of runs (`doctor`, actors). Other folders
keep values in the scope by their class, and register how to give them up.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")


class RunScope:
    """Values by class, and functions that give up what is held."""

    def __init__(self, outer: RunScope | None = None) -> None:
        self._outer, self._parts = outer, dict[type, Any]()
        self._closers: list[Callable[[], object]] = []

    def part(self, value_type: type[T]) -> T:
        """Return this scope's value of a class, which is made at the first call."""
        value: T | None = self._parts.get(value_type)
        return self._parts.setdefault(value_type, value_type()) if value is None else value

    def nearest(self, value_type: type[T]) -> T:
        """Return the value of the innermost scope that has one: several runs may share a Ray."""
        if value_type in self._parts or self._outer is None:
            return self.part(value_type)
        return self._outer.nearest(value_type)

    @contextlib.contextmanager
    def closing(self, act: Callable[[], object]) -> Iterator[None]:
        """Let `close` call `act` if it is called during the body."""
        self._closers.append(act)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):  # `close` came
                self._closers.remove(act)

    def close(self, limit_s: float) -> None:
        """Give up all that is held, the newest first, each within a time limit; ignore errors."""
        while self._closers:
            within(limit_s, self._closers.pop())


_current = RunScope()


def current_scope() -> RunScope:
    """Return the scope of the run in this process; without a run, the scope of the process."""
    return _current


@contextlib.contextmanager
def new_scope() -> Iterator[RunScope]:
    """Give the body a scope of its own."""
    global _current
    outer, _current = _current, RunScope(_current)
    try:
        yield _current
    finally:
        _current = outer


def within(limit_s: float, act: Callable[[], T]) -> T | None:
    """Call `act` in a thread; return None if it fails or does not end in time."""
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
