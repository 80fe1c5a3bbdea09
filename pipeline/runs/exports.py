"""What a run tells others while it works, and however it has ended: its metrics."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.core.errors import Stopped
from pipeline.execution.cluster import in_flight
from pipeline.job.job import Metrics
from pipeline.process.liveness import last_progress
from pipeline.report.document import Report
from pipeline.report.metric_families import Family, Outside, families_of
from pipeline.report.metrics.exporting import Exporter, Exporting, Planned
from pipeline.report.recorder import RunRecorder
from pipeline.report.so_far import SoFar

if TYPE_CHECKING:
    from pipeline.runs.context import RunContext


class Exports:
    """The exporters that a job asks for; a failure in one neither fails nor delays the run."""

    def __init__(self) -> None:
        self._begun: tuple[RunFigures, Exporting] | None = None
        self._has_ended = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def during(self, run: RunContext) -> Iterator[None]:
        """Export in the body how the run is, until `end`."""
        self._begun = _begin(run, is_live=True)
        try:
            yield
        finally:
            self._end(None)

    def end(self, run: RunContext, report: Report) -> None:
        """Export how the run has ended; its process may be gone, and this be that one's parent."""
        if self._begun is None and not self._has_ended:
            self._begun = _begin(run, is_live=False)
        self._end(report)

    def _end(self, report: Report | None) -> None:
        with self._lock:  # who watches over a run may end it, too
            begun, self._begun, self._has_ended = self._begun, None, True
        if begun is not None:
            figures, exporting = begun
            if report is not None:
                figures.end(report)
            exporting.end(has_result=report is not None)


def _begin(run: RunContext, *, is_live: bool) -> tuple[RunFigures, Exporting] | None:
    figures = RunFigures(run.record, run.options.job_name or folder_name(run.job.sink.uri))
    planned = [*_metrics(run.job.metrics, figures, is_live=is_live)]
    return (figures, Exporting(planned)) if planned else None


def _metrics(wanted: Metrics, figures: RunFigures, *, is_live: bool) -> Iterator[Planned]:
    """Yield what the job asks for; libraries are imported where each is made."""

    def port() -> Exporter:
        from pipeline.report.prometheus import Port

        return Port(wanted.host, wanted.port or 0, figures.families)

    def textfile() -> Exporter:
        from pipeline.report.prometheus import Textfile

        return Textfile(wanted.textfile or "", figures.job, figures.families)

    if wanted.port is not None and is_live:
        yield Planned(f"metrics at {wanted.host}:{wanted.port}", port)
    if wanted.textfile is not None:
        yield Planned(f"metrics to {wanted.textfile}", textfile)


def folder_name(uri: str) -> str:
    """Name a job whose file has no name, by the folder of its output."""
    return uri.rstrip("/").rpartition("/")[2]


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
