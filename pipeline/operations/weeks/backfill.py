"""`pipeline backfill`: run a job for many dates, on one Ray.

It keeps nothing of its own: what is missing is read from the output before each date. So it may be
killed and started anywhere, and two at once do each date once.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.core.errors import JobError
from pipeline.job.job import Job
from pipeline.job.reading.loader import Overrides
from pipeline.operations.jobs import Accepted, Date, JobLike, read_dates, run_options
from pipeline.operations.weeks.one_date import ONLY, DateRun, Dates
from pipeline.operations.weeks.status import same_partition
from pipeline.operations.weeks.turns import do_all
from pipeline.report.showing.printed import Printed
from pipeline.report.showing.progress import Progress, duration, shown_on

WORST_FIRST = (2, 1, 5, 3, 7, 6, 4, 8, 0)
"""Exit codes, the one that asks for a person first."""


@dataclass(frozen=True)
class Backfill(Printed):
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
    """Run a job for each date of a range; a date that fails does not keep the others from theirs.

    A date that another run works on is looked at again once that has ended.

    A stop (a signal, `pipeline stop`, `run.deadline`) ends all of it; the same call goes on.

    Args:
        job: As of `run`, but not one that is loaded: its `${date}` would be gone.
        from_: The first date, or hour.
        to: The last one; None: now in UTC.
        every: It has a partition for each `day`, or for each `hour`.
        only: Only dates that are `missing`, `stale`, `failed` or `refused`; None: all, of which
            those that are published already cost next to nothing.
        newest_first: Begin with the last date.
        dry_run: Only say what would be done.
        overrides: As of `run`, and so are the others.
        address: The Ray cluster; None starts one local Ray for all dates.
        allow_import: Prefixes of the modules that the job may name.
        accept: Gates whose failure is accepted, with the reason.
        progress: As of `run`.
        owns_process: The process is there for this only.

    Raises:
        JobError: The range or what is to be done only is wrong, or dates share a partition.
    """
    if isinstance(job, Job):
        raise JobError("the job is loaded: give its file or mapping, for ${date} is in it")
    if only is not None and only not in ONLY:
        raise JobError(f"only {only}: write one of {', '.join(ONLY)}")
    days = read_dates(from_, to, every)
    options = run_options(address, allow_import, accept, job=job, owns_process=owns_process)
    dates = Dates(job, overrides, options, only, dry_run)
    _require_partitions(dates, days, every)
    order = days[::-1] if newest_first else days
    with shown_on(progress) as shown:
        return Backfill(tuple(do_all(dates, order, shown)))


def _require_partitions(dates: Dates, days: Sequence[dt.date], every: str) -> None:
    """Make sure that dates do not replace each other: the next one, and the same hour of a day."""
    some = [*days[:2], *days[24:25]]
    if len({dates.of(day).sink.partition for day in some}) < len(some):
        raise same_partition(every)
