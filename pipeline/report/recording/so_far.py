"""Say how far a run is, in the fields of its lease's heartbeat."""

from __future__ import annotations

from time import monotonic
from typing import Any

from pipeline.report.recording.recorder import RunRecorder
from pipeline.report.showing.progress import Rate


class SoFar:
    """Called at each renewal of the lease; the rate is that of the renewals of the last minute."""

    def __init__(
        self, record: RunRecorder, job_name: str | None, price_per_node_hour: float | None
    ) -> None:
        self._record, self._job_name, self._price = record, job_name, price_per_node_hour
        self._rate = Rate()

    def __call__(self) -> dict[str, Any]:
        """Return what is known now; nothing that the report of the run would not say."""
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
            "rows_done": record.num_accounted,
            "rows_quarantined": rows.quarantined,
            "slices": slices.total,
            "slices_done": (slices.computed or 0) + (slices.resumed or 0),
            "rows_per_s": rate,
            "eta_s": left / rate if rate and left is not None else None,
            "cost": record.cost(self._price),
            "failed_gates": record.failed_gates,
        }
