"""When a run must end: a time of day or a time from its start, and nothing else."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import JobError
from pipeline.job.reading.dates import seconds_until
from pipeline.job.reading.loader import parse_job
from pipeline.job.reading.yaml_reader import parse_value

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
def test_a_deadline_is_so_many_seconds_after_the_start(deadline: str, seconds: float):
    assert seconds_until(deadline, START) == seconds


def test_a_time_of_day_is_that_of_utc():
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
def test_another_deadline_is_refused_and_the_right_ones_are_named(wrong: str):
    with pytest.raises(JobError, match=r"run\.deadline = .*06:30.*90m, 2h or 1h30m"):
        parse_job({**JOB, "run": {"deadline": wrong}}, date=START.date(), origin="job.yaml")


@pytest.mark.parametrize("time", ["16:30", "06:30", "00:00", "12:00"])
def test_a_time_of_day_needs_no_quotes(time: str):
    value = parse_value(time)
    assert value == time
    job = parse_job({**JOB, "run": {"deadline": value}}, date=START.date(), origin="job.yaml")
    assert job.run.deadline == time
