"""How fast a run is, for those who show how far it is."""

from __future__ import annotations

from collections import deque

WINDOW_S = 60.0


class Rate:
    """Rows a second over the last minute, from the first row on."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, at_s: float, rows: int) -> None:
        """Note how many rows are done at a time."""
        if len(self._seen) == 1 and rows == self._seen[0][1]:
            self._seen.clear()  # what came before the first row was loading
        self._seen.append((at_s, rows))
        while len(self._seen) > 2 and self._seen[1][0] <= at_s - WINDOW_S:
            self._seen.popleft()

    @property
    def rows_per_s(self) -> float | None:
        """Return the rate; None while it is unknown."""
        if len(self._seen) < 2:
            return None
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else None
