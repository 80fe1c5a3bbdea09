"""Do what there is to do for one date, whatever goes wrong."""

from __future__ import annotations

import datetime as dt
import logging
from dataclasses import dataclass

from pipeline.core.errors import PartitionBusy, PipelineError, Stopped
from pipeline.dataflow import run_job
from pipeline.job.job import Job
from pipeline.job.reading.dates import date_text
from pipeline.job.reading.loader import Overrides
from pipeline.operations.jobs import JobLike, load_job
from pipeline.process.interrupts import as_ours, reason
from pipeline.process.life import new_life
from pipeline.report.showing.progress import Progress
from pipeline.runs.context import RunOptions
from pipeline.runs.weeks.job_survey import survey_job

log = logging.getLogger(__name__)

ONLY = {
    "missing": ("missing", "unpublished"),
    "stale": ("stale",),
    "failed": ("failed", "interrupted"),
    "refused": ("refused",),
}
"""What can be chosen -> the states of `status` that it means."""
_OUTCOMES = {3: "refused", 4: "busy", 5: "conflict", 6: "stopped", 8: "no_input"}


@dataclass(frozen=True)
class DateRun:
    """What became of a date."""

    date: str
    outcome: str
    """As the report's `status`; `busy`, `no_input`; `left_out` by what was to be done only;
    `not_begun` because of a stop; in a dry run what a run would do."""
    exit_code: int | None = None
    rows: int | None = None
    quarantined: int | None = None
    wall_s: float | None = None
    error: str | None = None

    @classmethod
    def failed(cls, day: dt.date, error: PipelineError) -> DateRun:
        """Return what an error makes of a date."""
        log.warning("date %s: exit %d: %s", date_text(day), error.exit_code, error)
        outcome = _OUTCOMES.get(error.exit_code, "failed")
        return cls(date_text(day), outcome, error.exit_code, error=str(error))


@dataclass(frozen=True)
class Dates:
    """A job with `${date}`, and what is to be done for each date."""

    job: JobLike
    overrides: Overrides
    options: RunOptions
    only: str | None = None
    """A key of `ONLY`."""
    is_dry: bool = False

    def of(self, day: dt.date) -> Job:
        """Return the job of a date."""
        return load_job(self.job, date=day, overrides=self.overrides)

    def do(self, day: dt.date, progress: Progress) -> tuple[DateRun, bool]:
        """Do what there is to do for a date.

        Returns:
            What became of it, and whether no other date is to begin, which a signal may have said
            when this one was done.
        """
        with new_life():  # what stops or fails in one date is none of the next one's
            try:
                done = self._do(day, progress)
            except (Exception, KeyboardInterrupt) as caught:  # noqa: BLE001  # the others are to run
                done = DateRun.failed(day, as_ours(caught))
            is_stopped = done.exit_code == Stopped.exit_code or isinstance(reason(), Stopped)
        return done, is_stopped

    def _do(self, day: dt.date, progress: Progress) -> DateRun:
        job, name = self.of(day), date_text(day)
        if self.is_dry or self.only is not None:
            seen = survey_job(job, self.options)
            if self.only is not None and seen.state == "running" and not self.is_dry:
                raise PartitionBusy(
                    f"partition {seen.partition}: {seen.why or 'a run works on it'}"
                )
            if self.only is not None and seen.state not in ONLY[self.only]:
                return DateRun(name, "left_out")
            if self.is_dry:
                return DateRun(name, seen.a_run_would or seen.state)
        progress.phase(f"date {name}")
        report = run_job(job, self.options, progress)
        rows = report.rows
        return DateRun(name, report.status, 0, rows.total, rows.quarantined, report.wall_s)
