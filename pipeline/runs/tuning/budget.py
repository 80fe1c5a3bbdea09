"""The time that a run may spend on measuring before it starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter

from pipeline.runs.tuning.selection import LEAST_BUDGET_S, budget_s


class Budget:
    """A tenth of what the run is expected to take, and some seconds at least."""

    def __init__(
        self, *, is_bounded: bool = True, clock: Callable[[], float] = perf_counter
    ) -> None:
        """Begin to count.

        Args:
            is_bounded: Whether a run waits for the answer; `pipeline tune` measures all.
        """
        self._clock, self._began = clock, clock()
        self.is_bounded = is_bounded
        self.total_s = LEAST_BUDGET_S if is_bounded else math.inf

    def expect(self, run_s: float) -> None:
        """Note how long the run is expected to take, now that it is known."""
        if self.is_bounded:
            self.total_s = budget_s(run_s)

    @property
    def left_s(self) -> float:
        """Return what is left of it; less than 0 if more was taken."""
        return self.total_s - (self._clock() - self._began)
