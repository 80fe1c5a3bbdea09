"""A clock that advances only while all its users wait, so that times do not depend on load.

Whoever is at work is counted as busy. Time passes when nobody is, up to the next moment for which
somebody sleeps. So a device works as late as it may: not before the host waits for it.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WAIT_S = 60.0
"""Real seconds after which a wait has failed."""


class Clock:
    """The time of a stand-in, in seconds."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.now_s = 0.0
        self._num_busy = 0
        self._sleepers: list[tuple[float, int, Signal]] = []
        self._numbers = itertools.count()

    def add_busy(self, more: int) -> None:
        """Count more or fewer as busy; `lock` is held."""
        self._num_busy += more
        while not self._num_busy and self._sleepers:
            self.now_s, _, sleeper = heapq.heappop(self._sleepers)
            sleeper.fire()

    def sleep(self, seconds: float) -> None:
        """Wait, as one who is counted as busy."""
        sleeper = Signal(self)
        with self.lock:
            entry = (self.now_s + seconds, next(self._numbers), sleeper)
            heapq.heappush(self._sleepers, entry)
        sleeper.wait(is_busy=True)


class Signal:
    """Something that happens once; those who wait for it are busy again from that moment on."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._num_waiting = clock, 0
        self._fired = threading.Condition(clock.lock)  # its own: the others stay asleep
        self.has_fired = False

    def fire(self) -> None:
        with self._clock.lock:
            if not self.has_fired:
                self.has_fired = True
                self._clock.add_busy(self._num_waiting)
                self._fired.notify_all()

    def wait(self, *, is_busy: bool) -> None:
        with self._clock.lock:
            if self.has_fired:
                return
            if is_busy:
                self._num_waiting += 1
                self._clock.add_busy(-1)
            fired = self._fired.wait_for(lambda: self.has_fired, WAIT_S)
        assert fired, "waits for what never happens"


class Turns:
    """A lock whose holder may wait on the clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._is_held = clock, False
        self._next: deque[Signal] = deque()

    @contextmanager
    def held(self, *, is_busy: bool) -> Iterator[None]:
        with self._clock.lock:
            turn = Signal(self._clock)
            if self._is_held:
                self._next.append(turn)
            else:
                self._is_held, turn.has_fired = True, True
        turn.wait(is_busy=is_busy)
        try:
            yield
        finally:
            with self._clock.lock:
                if self._next:
                    self._next.popleft().fire()
                else:
                    self._is_held = False


class ClockCondition:
    """A `threading.Condition` of those who use the clock."""

    def __init__(self, clock: Clock, is_busy: Callable[[], bool]) -> None:
        self._clock, self._is_busy = clock, is_busy
        self._lock = threading.Lock()
        self._waiting: list[Signal] = []

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait_for(self, predicate: Callable[[], object]) -> None:
        while not predicate():
            self._waiting.append(Signal(self._clock))
            signal = self._waiting[-1]
            self._lock.release()
            try:
                signal.wait(is_busy=self._is_busy())
            finally:
                self._lock.acquire()

    def notify_all(self) -> None:
        for signal in self._waiting:
            signal.fire()
        self._waiting.clear()
