"""The figures of one run as metrics, at any time: what its report would say now, then what it says.

Several exporters ask, each on a thread of its own.
"""

from __future__ import annotations

import threading
import time

from pipeline.core.errors import Stopped
from pipeline.execution.cluster import in_flight
from pipeline.process.liveness import last_progress
from pipeline.report.document import Report
from pipeline.report.metrics.families import Family, Outside, families_of
from pipeline.report.recording.recorder import RunRecorder
from pipeline.report.recording.so_far import SoFar

_FRESH_S = 1.0


class RunFigures:
    """What a run has done so far."""

    def __init__(self, record: RunRecorder, job: str) -> None:
        self.job, self.record = job, record
        self.final: Report | None = None
        """The report, once the run is over."""
        self._so_far = SoFar(record, job)
        self._mark, self._progress_at = (*last_progress(), *in_flight.mark()), time.time()
        self._lock, self._made, self._made_at = threading.Lock(), list[Family](), 0.0

    def end(self, report: Report) -> None:
        """Export this report from now on: the run is over."""
        with self._lock:
            self.final, self._made_at = report, 0.0

    def families(self) -> list[Family]:
        """Return every metric; what several ask at the same time is computed once."""
        with self._lock:
            if time.monotonic() - self._made_at > _FRESH_S or not self._made:
                self._made = self._families()
                self._made_at = time.monotonic()
            return self._made

    def _families(self) -> list[Family]:
        try:
            return families_of(*self._now())
        except RuntimeError:  # a dict of the recorder grew while it was read: the run goes on
            return families_of(*self._now())

    def _now(self) -> tuple[Report, Outside]:
        mark = (*last_progress(), *in_flight.mark())
        if mark != self._mark:
            self._mark, self._progress_at = mark, time.time()
        outside = Outside(
            job=self.job,
            progress_at=self._progress_at,
            eta_s=self._so_far()["eta_s"],
            is_running=self.final is None,
            published_at=current.created_at if (current := self.record.current) else None,
        )
        # How a run would end now is not exported; the figures are.
        return self.final or self.record.report("stopped", Stopped.exit_code), outside
