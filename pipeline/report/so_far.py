"""The progress and the rate of a run, for the heartbeat of its lease, status and metrics."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.report.recorder import RunRecorder

PriceOf = Callable[[Sequence[Collection[str]]], float | None]
"""Labels of each node -> price of one node for one hour; None if unknown."""
WINDOW_S = 60.0


class Rate:
    """Rows/s over the last minute, from the first row on."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, at_s: float, rows: int) -> None:
        """Note the number of finished rows at a time."""
        if len(self._seen) == 1 and rows == self._seen[0][1]:
            self._seen.clear()  # the time before the first row was spent on loading
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


class SoFar:
    """Called at each renewal of the lease; the rate is that of the last minute."""

    def __init__(
        self, record: RunRecorder, job_name: str | None, price_of: PriceOf = lambda _: None
    ) -> None:
        self._record, self._job_name, self._price_of = record, job_name, price_of
        self._rate = Rate()

    def __call__(self) -> dict[str, Any]:
        """Return the fields of the heartbeat; the report of the run would say the same."""
        record = self._record
        rows, slices = record.rows_section(), record.slices_section()
        self._rate.add(monotonic(), rows.computed or 0)
        rate, left = self._rate.rows_per_s, rows.left
        return {
            "job": self._job_name,
            "fingerprint": record.fingerprint,
            "started_at": record.started_at.isoformat(timespec="seconds"),
            "phase": record.phase,
            "rows": rows.total,
            "rows_done": record.num_done,
            "rows_quarantined": rows.quarantined,
            "slices": slices.total,
            "slices_done": (slices.computed or 0) + (slices.resumed or 0),
            "rows_per_s": rate,
            "eta_s": left / rate if rate and left is not None else None,
            "cost": self._cost(),
            "failed_gates": record.failed_gates,
        }

    def _cost(self) -> float | None:
        placement, price = self._record.placement, self._price_of(self._record.node_labels)
        if placement is None or price is None:
            return None
        return placement.cost(self._record.elapsed_s, price)
