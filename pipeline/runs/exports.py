"""The metrics of a run, exported while it works and when it has ended."""

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
from pipeline.report.recorder import RunRecorder
from pipeline.report.so_far import SoFar

if TYPE_CHECKING:
    from pipeline.report.prometheus import Port, Textfile
    from pipeline.runs.context import RunContext


class Exports:
    """The metrics that a job asks for; a failure in one neither fails nor delays the run."""

    def __init__(self) -> None:
        self._exporting: Exporting | None = None
        self._has_ended = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def during(self, run: RunContext) -> Iterator[None]:
        """Export the state of the run during the body, until `end`."""
        self._exporting = _begin(run, is_live=True)
        try:
            yield
        finally:
            self._end(None)

    def end(self, run: RunContext, report: Report) -> None:
        """Export how the run has ended; the caller may be the parent of a process that is gone."""
        if self._exporting is None and not self._has_ended:
            self._exporting = _begin(run, is_live=False)
        self._end(report)

    def _end(self, report: Report | None) -> None:
        with self._lock:  # the watchdog may end a run, too
            exporting, self._exporting, self._has_ended = self._exporting, None, True
        if exporting is not None:
            exporting.end(report)


def _begin(run: RunContext, *, is_live: bool) -> Exporting | None:
    wanted = run.job.metrics
    if wanted.textfile is None and (wanted.port is None or not is_live):
        return None
    figures = RunFigures(run.record, run.options.job_name or folder_name(run.job.sink.uri))
    return Exporting(wanted, figures, is_live=is_live)


class Exporting:
    """The port and the file of one run."""

    def __init__(self, wanted: Metrics, figures: RunFigures, *, is_live: bool) -> None:
        from pipeline.report.prometheus import Port, Textfile, warn

        self._figures = figures
        self._port: Port | None = None
        self._textfile: Textfile | None = None
        if wanted.port is not None and is_live:
            try:
                self._port = Port(wanted.host, wanted.port, figures.families)
            except (OSError, UnicodeError) as error:
                place = f"metrics at {wanted.host}:{wanted.port}"
                warn(place, f"{type(error).__name__}: {error}")
        if wanted.textfile is not None:
            self._textfile = Textfile(wanted.textfile, figures.job, figures.families)
            self._textfile.start()

    def end(self, report: Report | None) -> None:
        """Export the report, if there is one, and close."""
        if report is not None:
            self._figures.end(report)
        if self._textfile is not None:
            self._textfile.end(has_result=report is not None)
        if self._port is not None:
            self._port.close()


def folder_name(uri: str) -> str:
    """Return the folder of the output, which names a job without a file."""
    return uri.rstrip("/").rpartition("/")[2]


_FRESH_S = 1.0


class RunFigures:
    """The figures of a run as metrics: those of the moment, and at the end those of its report."""

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
        """Return every metric, computed at most once per second."""
        with self._lock:
            if time.monotonic() - self._made_at > _FRESH_S or not self._made:
                self._made = self._families()
                self._made_at = time.monotonic()
            return self._made

    def _families(self) -> list[Family]:
        try:
            return families_of(*self._now())
        except RuntimeError:  # a dict of the recorder grew while it was read
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
        # The status and the exit code of this report are not exported, its figures are.
        return self.final or self.record.report("stopped", Stopped.exit_code), outside
