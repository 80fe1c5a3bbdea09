"""Go through all dates; those that other runs work on are looked at again when these have ended.

`one_by_one` takes dates from the front of a queue until that is empty, a stop, or trouble with Ray,
after which the others get a new one.
"""

from __future__ import annotations

import datetime as dt
import time
from collections import deque
from collections.abc import Sequence

from pipeline.core.errors import InfraError, PartitionBusy, Stopped
from pipeline.execution.cluster.sharing import share_ray
from pipeline.job.reading.dates import date_text
from pipeline.operations.weeks.one_date import DateRun, Dates
from pipeline.process.life import new_life
from pipeline.report.showing.progress import Progress
from pipeline.runs.context import RunContext
from pipeline.runs.weeks.survey import survey

_LOOK_S = 2.0

Queue = deque[dt.date]
Found = dict[dt.date, DateRun]


def one_by_one(dates: Dates, left: Queue, found: Found, progress: Progress) -> bool:
    """Do one date after the other, on one Ray; return whether a stop ended it."""
    with share_ray():
        while left:
            day = left.popleft()
            found[day], is_stopped = dates.do(day, progress)
            if is_stopped or found[day].exit_code == InfraError.exit_code:
                return is_stopped
    return False


def do_all(dates: Dates, order: Sequence[dt.date], progress: Progress) -> list[DateRun]:
    """Do what there is to do for all dates, and return what became of them, by date."""
    left, found, is_stopped = deque(order), Found(), False
    while left and not is_stopped:
        is_stopped = one_by_one(dates, left, found, progress)
        if not left and not is_stopped:
            busy = [day for day in order if found[day].exit_code == PartitionBusy.exit_code]
            is_stopped = bool(busy) and _await_one(dates, busy, left, progress)
    for day in left:
        found[day] = DateRun(date_text(day), "not_begun", Stopped.exit_code)
    return [found[day] for day in sorted(found)]


def _await_one(dates: Dates, busy: Sequence[dt.date], left: Queue, progress: Progress) -> bool:
    """Wait until other runs have ended with one of the dates at least, and enter these as left.

    Returns:
        Whether a stop ended it.
    """
    runs = {day: RunContext.of(dates.of(day), dates.options) for day in busy}
    store = next(iter(runs.values())).store
    names = {run.layout.name: day for day, run in runs.items()}
    more = f", and of {len(busy) - 1} dates more" if len(busy) > 1 else ""
    progress.phase(f"waiting for the other run of {date_text(busy[0])}{more}")
    with new_life():
        try:
            while not left:
                seen = survey(store, [*names])
                left += [names[each.partition] for each in seen if each.state != "running"]
                if not left:
                    time.sleep(_LOOK_S)
        except KeyboardInterrupt:
            return True
    return False
