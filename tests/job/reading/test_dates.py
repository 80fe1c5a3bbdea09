"""Dates and hours are read, written and counted alike, wherever they come from."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import JobError
from pipeline.job.reading.dates import date_text, dates_between, now, parse_date, whole

DAY = dt.date(2026, 11, 24)
FIVE = dt.datetime(2026, 11, 24, 5, tzinfo=dt.UTC)


@given(st.dates(dt.date(1000, 1, 1)), st.datetimes(dt.datetime(1000, 1, 1)))
def test_what_is_written_is_read_back(day: dt.date, moment: dt.datetime) -> None:
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
            (text, "write YYYY-MM-DD, or of an hour")
            for text in ("", "24.11.2026", "2026-11-24T5:3")
        ),
        ("2026-11-31", "date 2026-11-31: there is no such day"),
        ("2026-11-24T24", "there is no such hour"),
    ],
)
def test_what_is_no_date_is_refused_with_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        parse_date(text)


def test_days_and_hours_are_both_included() -> None:
    assert dates_between(DAY, DAY) == [DAY]
    assert dates_between(DAY, DAY + dt.timedelta(days=2))[-1] == dt.date(2026, 11, 26)
    hours = dates_between(DAY, DAY, "hour")
    assert [*map(date_text, hours)] == [f"2026-11-24T{hour:02}" for hour in range(24)]
    assert dates_between(FIVE, DAY, "hour") == hours[5:]
    assert dates_between(DAY, FIVE, "hour") == hours[:6]


def test_a_range_has_to_make_sense() -> None:
    with pytest.raises(JobError, match="from 2026-11-24T05 to 2026-11-24: hours need every hour"):
        dates_between(FIVE, DAY)
    with pytest.raises(JobError, match="from 2026-11-24 to 2026-11-23: --from is after --to"):
        dates_between(DAY, DAY - dt.timedelta(days=1))
    with pytest.raises(JobError, match="give at most 10,000 hours"):
        dates_between(DAY, DAY + dt.timedelta(days=500), "hour")
    with pytest.raises(JobError, match="every week: write day or hour"):
        now("week")
    assert isinstance(now("hour"), dt.datetime)
    assert not isinstance(now(), dt.datetime)
