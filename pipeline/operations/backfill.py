"""`pipeline backfill`: run a job for many dates, one after the other, on one Ray.

It keeps nothing of its own: what is missing is read from the output before each date. So it may be
killed and started anywhere, and two at once do each date once.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.core.errors import InfraError, JobError, PipelineError, Stopped
from pipeline.dataflow import run_job
from pipeline.execution.cluster.connect import share_ray
from pipeline.job.job import Job
from pipeline.job.reading.loader import Overrides
from pipeline.operations.jobs import Accepted, Date, JobLike, load_job, read_date, run_options
from pipeline.process.interrupts import as_ours, reason
from pipeline.process.life import new_life
from pipeline.report.showing.progress import Progress, Silent, duration
from pipeline.runs.context import RunOptions
from pipeline.runs.weeks.job_survey import days_between, survey_job

log = logging.getLogger(__name__)

WORST_FIRST = (2, 1, 5, 3, 7, 6, 4, 8, 0)
"""Exit codes, the one that asks for a person first."""
ONLY = {
    "missing": ("missing", "unpublished"),
    "stale": ("stale",),
    "failed": ("failed", "interrupted"),
    "refused": ("refused",),
}
"""What can be chosen -> the states of `status` that it means."""


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


@dataclass(frozen=True)
class Backfill:
    """What became of all dates, in their order."""

    dates: tuple[DateRun, ...]

    @property
    def exit_code(self) -> int:
        """Return the worst of the exit codes."""
        codes = {each.exit_code for each in self.dates}
        return next(code for code in WORST_FIRST if code in codes or code == 0)

    def to_dict(self) -> dict[str, Any]:
        """Return the form of `--json`."""
        return {"exit_code": self.exit_code, "dates": [asdict(each) for each in self.dates]}

    def shown(self) -> dict[str, Any]:
        """Return what a terminal has room for."""
        rows = [
            {
                "date": each.date,
                "outcome": each.outcome.replace("_", " "),
                "exit": each.exit_code,
                "rows": each.rows,
                "quarantined": each.quarantined,
                "took": None if each.wall_s is None else duration(each.wall_s),
                "error": each.error,
            }
            for each in self.dates
        ]
        return {"dates": rows}


def backfill(
    job: JobLike,
    *,
    from_: Date,
    to: Date = None,
    only: str | None = None,
    newest_first: bool = False,
    dry_run: bool = False,
    overrides: Overrides = (),
    address: str | None = None,
    allow_import: Sequence[str] = (),
    accept: Accepted = (),
    progress: Progress | None = None,
    owns_process: bool = False,
) -> Backfill:
    """Run a job for each date of a range; a date that fails does not keep the others from theirs.

    A stop (a signal, `pipeline stop`, `run.deadline`) ends all of it; the same call goes on.

    Args:
        job: As of `run`, but not one that is loaded: its `${date}` would be gone.
        from_: The first date.
        to: The last one; None: today in UTC.
        only: Only dates that are `missing`, `stale`, `failed` or `refused`; None: all, of which
            those that are published already cost next to nothing.
        newest_first: Begin with the last date.
        dry_run: Only say what would be done.
        overrides: As of `run`, and so are the others.
        address: The Ray cluster; None starts one local Ray for all dates.
        allow_import: Prefixes of the modules that the job may name.
        accept: Gates whose failure is accepted, with the reason.
        progress: Where to show how far it is; None: nowhere.
        owns_process: The process is there for this only.

    Raises:
        JobError: The range or what is to be done only is wrong, or all dates are one partition.
    """
    if isinstance(job, Job):
        raise JobError("the job is loaded: give its file or mapping, for ${date} is in it")
    if only is not None and only not in ONLY:
        raise JobError(f"only {only}: write one of {', '.join(ONLY)}")
    days = [*days_between(read_date(from_), read_date(to))]
    options = run_options(address, allow_import, accept, job=job, owns_process=owns_process)
    dates = _Dates(job, overrides, options, only, progress or Silent(), dry_run)
    dates.require_partitions(days)
    order = days[::-1] if newest_first else days
    found, todo, is_stopped = list[DateRun](), iter(order), False
    while len(found) < len(order) and not is_stopped:
        with share_ray():
            for day in todo:
                one, is_stopped = dates.do(day)
                found.append(one)
                if is_stopped or one.exit_code == InfraError.exit_code:
                    break  # after trouble with Ray the next date gets a new one
    found += [DateRun(str(day), "not_begun", Stopped.exit_code) for day in todo]
    return Backfill(tuple(sorted(found, key=lambda each: each.date)))


@dataclass(frozen=True)
class _Dates:
    """What is done for each date."""

    job: JobLike
    overrides: Overrides
    options: RunOptions
    only: str | None
    progress: Progress
    is_dry: bool

    def of(self, day: dt.date) -> Job:
        return load_job(self.job, date=day, overrides=self.overrides)

    def require_partitions(self, days: Sequence[dt.date]) -> None:
        """Make sure that dates do not replace each other."""
        if len(days) > 1 and len({self.of(day).sink.partition for day in days[:2]}) < 2:
            raise JobError("sink.partition is the same for all dates: write ${date} in it")

    def do(self, day: dt.date) -> tuple[DateRun, bool]:
        """Do what there is to do for a date, whatever goes wrong.

        Returns:
            What became of it, and whether no other date is to begin, which a signal may have said
            when this one was done.
        """
        with new_life():  # what stops or fails in one date is none of the next one's
            done = self._do(day)
            is_stopped = done.exit_code == Stopped.exit_code or isinstance(reason(), Stopped)
        return done, is_stopped

    def _do(self, day: dt.date) -> DateRun:
        try:
            job = self.of(day)
            if self.is_dry or self.only is not None:
                seen = survey_job(job, self.options)
                if self.only is not None and seen.state not in ONLY[self.only]:
                    return DateRun(str(day), "left_out")
                if self.is_dry:
                    return DateRun(str(day), seen.a_run_would or seen.state)
            self.progress.phase(f"date {day}")
            report = run_job(job, self.options, self.progress)
        except (Exception, KeyboardInterrupt) as caught:  # noqa: BLE001  # the others are to run
            error = as_ours(caught)
            log.warning("date %s: exit %d: %s", day, error.exit_code, error)
            return DateRun(str(day), _outcome(error), error.exit_code, error=str(error))
        rows = report.rows
        return DateRun(str(day), report.status, 0, rows.total, rows.quarantined, report.wall_s)


def _outcome(error: PipelineError) -> str:
    named = {3: "refused", 4: "busy", 5: "conflict", 6: "stopped", 8: "no_input"}
    return named.get(error.exit_code, "failed")
