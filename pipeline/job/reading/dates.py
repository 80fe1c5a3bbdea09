"""The date or hour of a run (`${date}`, `${hour}`), ranges of them, and the deadline.

A date is a `datetime.date`. An hour is a `datetime.datetime` at its beginning, in UTC.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence

from pipeline.core.errors import JobError

EVERY = ("day", "hour")
ONLY = {
    "missing": ("missing", "unpublished"),
    "stale": ("stale",),
    "failed": ("failed", "interrupted"),
    "refused": ("refused",),
}
"""Which of several dates to run -> the states of `status` that it means."""
_MAX = 10_000
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2})?")
_HOUR = "%Y-%m-%dT%H"
_STEPS = {"day": dt.timedelta(days=1), "hour": dt.timedelta(hours=1)}


def parse_date(text: str) -> dt.date:
    """Read YYYY-MM-DD as a date, and YYYY-MM-DDTHH as an hour.

    Raises:
        JobError: It is neither.
    """
    for read in (dt.date.fromisoformat, _hour):
        try:
            return read(text)
        except ValueError:
            continue
    if _DAY.fullmatch(text):
        raise JobError(f"date {text}: no such {'hour' if 'T' in text else 'day'}")
    raise JobError(f"date {text}: write YYYY-MM-DD, or YYYY-MM-DDTHH for an hour")


def _hour(text: str) -> dt.date:
    return dt.datetime.strptime(text, _HOUR).replace(tzinfo=dt.UTC)


def date_text(date: dt.date) -> str:
    """Return the form that `parse_date` reads."""
    return f"{date:{_HOUR}}" if isinstance(date, dt.datetime) else date.isoformat()


def whole(date: dt.date) -> dt.date:
    """Return a date unchanged, and a time as its hour in UTC; a time without a zone is in UTC."""
    if not isinstance(date, dt.datetime):
        return date
    moment = date.astimezone(dt.UTC) if date.tzinfo else date.replace(tzinfo=dt.UTC)
    return moment.replace(minute=0, second=0, microsecond=0)


def now(every: str = "day") -> dt.date:
    """Return today, or this hour, in UTC.

    Raises:
        JobError: `every` is neither `day` nor `hour`.
    """
    if every not in EVERY:
        raise JobError(f"every {every}: write {' or '.join(EVERY)}")
    moment = dt.datetime.now(dt.UTC)
    return moment.date() if every == "day" else whole(moment)


def dates_between(first: dt.date, last: dt.date, every: str = "day") -> Sequence[dt.date]:
    """Return the dates, or the hours, of an inclusive range.

    Args:
        first: The first one; for hours, a date means its first hour.
        last: The last one; for hours, a date means its last hour.
        every: `day` or `hour`.

    Raises:
        JobError: There are none or too many, or hours are given with `every` day.
    """
    given = f"from {date_text(first)} to {date_text(last)}"
    if every == "hour":
        first, last = _of_day(first, 0), _of_day(last, 23)
    elif isinstance(first, dt.datetime) or isinstance(last, dt.datetime):
        raise JobError(f"{given}: hours need --every hour")
    number = (last - first) // _STEPS[every] + 1
    if number < 1:
        raise JobError(f"{given}: --from is after --to")
    if number > _MAX:
        raise JobError(f"{given}: give at most {_MAX:,} {'dates' if every == 'day' else 'hours'}")
    return [first + index * _STEPS[every] for index in range(number)]


def states_of(only: str | None) -> frozenset[str] | None:
    """Return the states that comma-separated keys of `ONLY` mean; None: all.

    Raises:
        JobError: There is no such key.
    """
    if only is None:
        return None
    keys = [key.strip() for key in only.split(",")]
    if not {*keys} <= ONLY.keys():
        raise JobError(
            f"only {only}: write one of {', '.join(ONLY)}, or several separated by commas"
        )
    return frozenset(state for key in keys for state in ONLY[key])


def _of_day(date: dt.date, hour: int) -> dt.datetime:
    if isinstance(date, dt.datetime):
        return date
    return dt.datetime(date.year, date.month, date.day, hour, tzinfo=dt.UTC)


_TIME_OF_DAY = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
RIGHT = 'write a time of day in UTC, such as "06:30", or a duration, such as 90m, 2h or 1h30m'


def seconds_until(deadline: str, started_at: dt.datetime) -> float:
    """Return the seconds from the start of a run to its deadline.

    A time of day is the next one after the start. Count the seconds by a monotonic clock.

    Args:
        deadline: The field of the job file.
        started_at: With its time zone.

    Raises:
        ValueError: It is neither a time of day nor a duration.
    """
    time = _TIME_OF_DAY.fullmatch(deadline)
    if time:
        start = started_at.astimezone(dt.UTC)
        end = start.replace(hour=int(time[1]), minute=int(time[2]), second=0, microsecond=0)
        if end <= start:
            end += dt.timedelta(days=1)
        return (end - start).total_seconds()
    duration = _DURATION.fullmatch(deadline)
    hours, minutes, seconds = (
        (int(part or 0) for part in duration.groups()) if duration else (0,) * 3
    )
    total_s = 3600.0 * hours + 60 * minutes + seconds
    if total_s <= 0:
        raise ValueError(RIGHT)
    return total_s
