"""Dates, hours and deadlines."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import JobError
from pipeline.job.reading.dates import (
    date_text,
    dates_between,
    now,
    parse_date,
    seconds_until,
    whole,
)
from pipeline.job.reading.loader import parse_job
from pipeline.job.reading.yaml_reader import parse_value

DAY = dt.date(2026, 11, 24)
FIVE = dt.datetime(2026, 11, 24, 5, tzinfo=dt.UTC)


@given(st.dates(dt.date(1000, 1, 1)), st.datetimes(dt.datetime(1000, 1, 1)))
def test_a_written_date_is_read_back(day: dt.date, moment: dt.datetime) -> None:
    hour = whole(moment)
    assert parse_date(date_text(day)) == whole(day) == day
    assert parse_date(date_text(hour)) == whole(hour) == hour


@pytest.mark.parametrize(
    ("moment", "hour"),
    [
        (dt.datetime(2026, 11, 24, 5, 59, 59, 7), FIVE),
        (dt.datetime(2026, 11, 24, 7, 30, tzinfo=dt.timezone(dt.timedelta(hours=2))), FIVE),
    ],
)
def test_a_time_is_its_hour_in_utc(moment: dt.datetime, hour: dt.datetime) -> None:
    assert whole(moment) == hour
    assert whole(moment).utcoffset() == dt.timedelta()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (text, "write YYYY-MM-DD, or YYYY-MM-DDTHH")
            for text in ("", "24.11.2026", "2026-11-24T5:3")
        ),
        ("2026-11-31", "date 2026-11-31: no such day"),
        ("2026-11-24T24", "no such hour"),
    ],
)
def test_an_invalid_date_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        parse_date(text)


def test_days_and_hours_are_both_included() -> None:
    assert dates_between(DAY, DAY) == [DAY]
    assert dates_between(DAY, DAY + dt.timedelta(days=2))[-1] == dt.date(2026, 11, 26)
    hours = dates_between(DAY, DAY, "hour")
    assert [*map(date_text, hours)] == [f"2026-11-24T{hour:02}" for hour in range(24)]
    assert dates_between(FIVE, DAY, "hour") == hours[5:]
    assert dates_between(DAY, FIVE, "hour") == hours[:6]


def test_an_invalid_range_is_refused() -> None:
    with pytest.raises(JobError, match="from 2026-11-24T05 to 2026-11-24: hours need --every hour"):
        dates_between(FIVE, DAY)
    with pytest.raises(JobError, match="from 2026-11-24 to 2026-11-23: --from is after --to"):
        dates_between(DAY, DAY - dt.timedelta(days=1))
    with pytest.raises(JobError, match="give at most 10,000 hours"):
        dates_between(DAY, DAY + dt.timedelta(days=500), "hour")
    with pytest.raises(JobError, match="every week: write day or hour"):
        now("week")
    assert isinstance(now("hour"), dt.datetime)
    assert not isinstance(now(), dt.datetime)


START = dt.datetime(2026, 11, 24, 22, 0, 30, tzinfo=dt.UTC)
JOB = {"source": {"uri": "in", "format": "images"}, "model": {"name": "x"}, "sink": {"uri": "out"}}


@pytest.mark.parametrize(
    ("deadline", "seconds"),
    [
        ("22:01", 30),
        ("22:00", 24 * 3600 - 30),
        ("06:30", 8.5 * 3600 - 30),
        ("90m", 5400),
        ("2h", 7200),
        ("1h30m", 5400),
        ("45s", 45),
        ("1h1m1s", 3661),
    ],
)
def test_a_deadline_becomes_seconds_after_the_start(deadline: str, seconds: float):
    assert seconds_until(deadline, START) == seconds


def test_a_time_of_day_is_in_utc():
    start = dt.datetime(2026, 11, 24, 1, 0, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    assert seconds_until("23:30", start) == 1800


@given(st.datetimes(timezones=st.just(dt.UTC)), st.times())
def test_a_time_of_day_is_the_next_one(start: dt.datetime, time: dt.time):
    if start.date() > dt.date(9990, 1, 1):
        return
    seconds = seconds_until(f"{time:%H:%M}", start)
    assert 0 < seconds <= 86400
    assert f"{start + dt.timedelta(seconds=seconds):%H:%M:%S}" == f"{time:%H:%M}:00"


@pytest.mark.parametrize(
    "wrong", ["", "0m", "24:00", "6:30", "06:60", "90", "1d", "-2h", "2h ", "06:30:00", "m", "h30"]
)
def test_an_invalid_deadline_is_refused_with_valid_forms(wrong: str):
    with pytest.raises(JobError, match=r"run\.deadline = .*06:30.*90m, 2h or 1h30m"):
        parse_job({**JOB, "run": {"deadline": wrong}}, date=START.date(), origin="job.yaml")


@pytest.mark.parametrize("time", ["16:30", "06:30", "00:00", "12:00"])
def test_a_time_of_day_needs_no_quotes(time: str):
    value = parse_value(time)
    assert value == time
    job = parse_job({**JOB, "run": {"deadline": value}}, date=START.date(), origin="job.yaml")
    assert job.run.deadline == time
