"""When a run must end: a time of day in UTC, or a time from its start."""

from __future__ import annotations

import datetime as dt
import re

_TIME_OF_DAY = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
RIGHT = 'write a time of day in UTC, as "06:30", or a time from the start, as 90m, 2h or 1h30m'


def seconds_until(deadline: str, started_at: dt.datetime) -> float:
    """Return the seconds from the start of a run to its deadline.

    A time of day is the next one after the start. The seconds are to be counted by a clock that
    does not jump.

    Args:
        deadline: As in the job file.
        started_at: With its time zone.

    Raises:
        ValueError: It is neither; says what is right.
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
