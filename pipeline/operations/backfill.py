"""`pipeline backfill`: run a job for many dates, on one Ray.

It keeps no state: it reads from the output what is missing before each date. So it can be killed
and resumed anywhere, and two at once do each date once.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.commit.layout import Layout
from pipeline.core.errors import InfraError, JobError, PartitionBusy, PipelineError, Stopped
from pipeline.dataflow import run_job
from pipeline.execution.caller import share_ray
from pipeline.job.job import Job
from pipeline.job.reading.dates import date_text, seconds_until, states_of
from pipeline.job.reading.loader import Overrides
from pipeline.operations.arguments import (
    Accepted,
    Date,
    JobLike,
    load_job,
    read_dates,
    run_options,
    same_partition,
)
from pipeline.process.interrupts import as_ours, reason
from pipeline.process.run_scope import new_scope
from pipeline.published.status import survey
from pipeline.report.showing.blocks import format_duration
from pipeline.report.showing.printed import Printed
from pipeline.runs.context import RunOptions
from pipeline.runs.progress import Progress, shown_on
from pipeline.runs.staleness import survey_job
from pipeline.storage.store import Store

log = logging.getLogger(__name__)

WORST_FIRST = (2, 1, 5, 3, 7, 6, 4, 8, 0)
"""Exit codes, the most urgent first."""
_OUTCOMES = {3: "refused", 4: "busy", 5: "conflict", 6: "stopped", 8: "no_input"}
_LOOK_S = 2.0


@dataclass(frozen=True)
class DateRun:
    """The outcome of one date."""

    date: str
    outcome: str
    """The report's `status`, `busy` or `no_input`; `left_out` by `only`; `not_begun` after a stop;
    in a dry run what a run would do."""
    exit_code: int | None = None
    rows: int | None = None
    quarantined: int | None = None
    wall_s: float | None = None
    error: str | None = None

    @classmethod
    def failed(cls, day: dt.date, error: PipelineError) -> DateRun:
        """Return the outcome of a date that ended with an error."""
        log.warning("date %s: exit %d: %s", date_text(day), error.exit_code, error)
        outcome = _OUTCOMES.get(error.exit_code, "failed")
        return cls(date_text(day), outcome, error.exit_code, error=str(error))


@dataclass(frozen=True)
class Backfill(Printed):
    """The outcome of all dates, in order."""

    dates: tuple[DateRun, ...]

    @property
    def exit_code(self) -> int:
        """Return the worst exit code."""
        codes = {date_run.exit_code for date_run in self.dates}
        return next(code for code in WORST_FIRST if code in codes or code == 0)

    def to_dict(self) -> dict[str, Any]:
        """Return the form of `--json`."""
        return {"exit_code": self.exit_code, "dates": [asdict(date_run) for date_run in self.dates]}

    def shown(self) -> dict[str, Any]:
        """Return what a terminal has room for."""
        rows = [
            {
                "date": date_run.date,
                "outcome": date_run.outcome.replace("_", " "),
                "exit": date_run.exit_code,
                "rows": date_run.rows,
                "quarantined": date_run.quarantined,
                "took": None if date_run.wall_s is None else format_duration(date_run.wall_s, 0),
                "error": date_run.error,
            }
            for date_run in self.dates
        ]
        return {"dates": rows}


def backfill(
    job: JobLike,
    *,
    from_: Date,
    to: Date = None,
    every: str = "day",
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
    """Run a job for each date of a range; a date that fails does not stop the others.

    A date that another run holds is tried again when that run has ended. A stop (a signal,
    `pipeline stop`, `run.deadline`) ends the backfill; the same call resumes it.

    Args:
        job: As for `run`, but not a loaded one, whose `${date}` is already substituted.
        from_: First date, or hour.
        to: Last date, or hour; None: now in UTC.
        every: The job has a partition for each `day`, or for each `hour`.
        only: Only dates in these states: `missing`, `stale`, `failed`, `refused`, or several
            separated by commas; None: all. Published dates cost next to nothing.
        newest_first: Begin with the last date.
        dry_run: Only report what would be done.
        overrides: Fields that override those of the job.
        address: The Ray cluster; None starts one local Ray for all dates.
        allow_import: Prefixes of the modules that the job may name.
        accept: Gates whose failure is accepted, with the reason.
        progress: As for `run`.
        owns_process: As for `run`.

    Raises:
        JobError: The range or `only` is wrong, or dates share a partition.
    """
    if isinstance(job, Job):
        raise JobError("the job is already loaded: give its file or mapping, which has ${date}")
    states = states_of(only)
    days = read_dates(from_, to, every)
    options = run_options(address, allow_import, accept, job=job, owns_process=owns_process)
    dates = Dates(job, overrides, options, states, dry_run)
    # Neither the next date, nor the same hour of the next day, may have the same partition.
    some = [*days[:2], *days[24:25]]
    if len({dates.of(day).sink.partition for day in some}) < len(some):
        raise same_partition(every)
    order = days[::-1] if newest_first else days
    with shown_on(progress) as shown:
        return Backfill(tuple(do_all(dates, order, shown)))


@dataclass(frozen=True)
class Dates:
    """A job with `${date}`, and which dates to run."""

    job: JobLike
    overrides: Overrides
    options: RunOptions
    only: frozenset[str] | None = None
    """States of `status`; None: all."""
    is_dry: bool = False

    def of(self, day: dt.date) -> Job:
        """Return the job of a date."""
        return load_job(self.job, date=day, overrides=self.overrides)

    def do(self, day: dt.date, progress: Progress) -> tuple[DateRun, bool]:
        """Run one date.

        Returns:
            Its outcome, and whether to stop here, since a signal may have come at its end.
        """
        with new_scope():  # a stop or failure of one date must not affect the next
            try:
                done = self._do(day, progress)
            except (Exception, KeyboardInterrupt) as caught:  # noqa: BLE001  # the other dates still run
                done = DateRun.failed(day, as_ours(caught))
            is_stopped = done.exit_code == Stopped.exit_code or isinstance(reason(), Stopped)
        return done, is_stopped

    def _do(self, day: dt.date, progress: Progress) -> DateRun:
        job, name = self.of(day), date_text(day)
        if self.is_dry or self.only is not None:
            seen = survey_job(job, self.options)
            if self.only is not None and seen.state == "running" and not self.is_dry:
                raise PartitionBusy(
                    f"partition {seen.partition}: {seen.why or 'a run is working on it'}"
                )
            if self.only is not None and seen.state not in self.only:
                return DateRun(name, "left_out")
            if self.is_dry:
                return DateRun(name, seen.a_run_would or seen.state)
        progress.phase(f"date {name}")
        report = run_job(job, self.options, progress)
        rows = report.rows
        return DateRun(name, report.status, 0, rows.total, rows.quarantined, report.wall_s)


def do_all(dates: Dates, order: Sequence[dt.date], progress: Progress) -> list[DateRun]:
    """Run all dates, and return their outcomes by date.

    Dates that other runs hold are tried again when those runs have ended. After a failure of Ray,
    the remaining dates get a new one.
    """
    left, done, is_stopped = deque(order), dict[dt.date, DateRun](), False
    while left and not is_stopped:
        with share_ray():
            while left and not is_stopped:
                day = left.popleft()
                done[day], is_stopped = dates.do(day, progress)
                if done[day].exit_code == InfraError.exit_code:
                    break
        busy = [day for day in order if day in done and done[day].outcome == "busy"]
        if busy and not left and not is_stopped:
            ready = _await_one(dates, busy, progress)
            left, is_stopped = deque(ready), not ready
    for day in left:
        done[day] = DateRun(date_text(day), "not_begun", Stopped.exit_code)
    return [done[day] for day in sorted(done)]


def _await_one(dates: Dates, busy: Sequence[dt.date], progress: Progress) -> list[dt.date]:
    """Wait until the other run of a date has ended; return the dates that are free then.

    The list is empty after a stop, or when the wait exceeds the deadline of one of them.
    """
    deadlines = (dates.of(day).run.deadline for day in busy)
    now = dt.datetime.now(dt.UTC)
    most_s = min((seconds_until(text, now) for text in deadlines if text), default=math.inf)
    until = time.monotonic() + most_s
    sinks = [dates.of(day).sink for day in busy]
    store = Store(sinks[0].uri, sinks[0].storage_options)
    names = {Layout(sink.partition).name: day for sink, day in zip(sinks, busy, strict=True)}
    more = f" (and {len(busy) - 1} more)" if len(busy) > 1 else ""
    progress.phase(f"waiting for another run of {date_text(busy[0])}{more}")
    with new_scope():
        try:
            while time.monotonic() < until:
                seen = survey(store, [*names])
                if ready := [
                    names[status.partition] for status in seen if status.state != "running"
                ]:
                    return ready
                time.sleep(_LOOK_S)
        except KeyboardInterrupt:
            return []
    return []
