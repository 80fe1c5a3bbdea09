"""Dates and times as numbers: whole, exact in float32 or refused; what is none costs its row."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.inputs.shard_columns import features_of, read_all, source_of

from pipeline.core.errors import JobError
from pipeline.job.features import FeatureColumn
from pipeline.sources.features.encodings import read_times
from pipeline.sources.listing.inputs import list_inputs

MOMENTS = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1))
PARTS = ("year", "month", "day", "weekday", "hour")


def taken(column: pa.Array, part: Any, **more: Any) -> list[int | None]:
    numbers, _ = read_times(column, FeatureColumn(column="t", read_as=part, **more))
    return numbers.to_pylist()


def read(folder: Path, column: pa.Array, *entries: Any, **fields: Any) -> pa.Table:
    pq.write_table(pa.table({"t": column}), folder / "a.parquet")
    source = source_of(folder, features=features_of(*entries), **fields)
    return pa.concat_tables(read_all(list_inputs(source, max_extent_rows=9), source, 9))


@given(st.lists(st.one_of(st.none(), MOMENTS), min_size=1))
def test_parts_are_those_of_python(moments: list[dt.datetime | None]):
    column = pa.array(moments, pa.timestamp("us"))
    for part in PARTS:
        expected = [
            m if m is None else m.weekday() if part == "weekday" else getattr(m, part)
            for m in moments
        ]
        assert taken(column, part) == expected
    origin = dt.datetime(2026, 1, 1, 12)
    since = [m and m - origin for m in moments]
    origin = "2026-01-01T12:00:00"
    seconds = [s if s is None else s // dt.timedelta(seconds=1) for s in since]
    assert taken(column, "seconds", origin=origin) == seconds
    days = [s if s is None else s // dt.timedelta(days=1) for s in since]
    assert taken(column, "days", origin=origin) == days


@pytest.mark.parametrize(
    "column",
    [
        pa.array([dt.date(2026, 1, 3), None]),
        pa.array([dt.datetime(2026, 1, 3), None], pa.date64()),
        pa.array([dt.datetime(2026, 1, 3, 23), None], pa.timestamp("s")),
        pa.array([dt.datetime(2026, 1, 3, 23), None], pa.timestamp("ns")),
        pa.array(["2026-01-03", None]),
        pa.array(["2026-01-03", None]).dictionary_encode(),
        pa.array([dt.date(2026, 1, 3), None]).dictionary_encode(),
        pa.array(["2026-01-03T23:00:00+00:00", None], pa.large_string()),
        pa.array(["2026-01-03 23:00:00.25", None], pa.string_view()),
    ],
    ids=lambda column: str(column.type),
)
def test_every_type_of_date_has_days(column: pa.Array):
    assert taken(column, "days") == [20456, None]
    assert taken(column, "weekday") == [5, None]


def test_times_of_day_have_seconds_and_hours():
    column = pa.array([dt.time(5, 30, 1), None], pa.time64("us"))
    assert taken(column, "seconds") == [19801, None]
    assert taken(column.cast(pa.time32("s")), "hour") == [5, None]


def test_parts_of_a_column_with_a_time_zone_are_local():
    moment = dt.datetime(2026, 7, 1, 0, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    column = pa.array([moment], pa.timestamp("us", "Europe/Berlin"))
    assert (taken(column, "hour"), taken(column, "day")) == ([0], [1])
    assert taken(column, "seconds", origin="2026-07-01T00:00:00+02:00") == [1800]


def test_what_is_no_date_costs_its_row(tmp_path: Path):
    column = pa.array(["2026-01-03", "soon", None])
    table = read(tmp_path, column, {"column": "t", "read_as": "day"})
    assert table["features"].to_pylist() == [[3], [0], [0]]
    assert table["message"].to_pylist() == [
        None,
        "feature t is 'soon': no date or time",
        "feature t is null",
    ]


def test_seconds_that_float32_cannot_hold_name_the_way_out(tmp_path: Path):
    column = pa.array([dt.datetime(2026, 1, 3, 0, 0, 1)])
    seconds = {"column": "t", "read_as": "seconds"}
    with pytest.raises(JobError, match=r"t holds 1767398401 in a\.parquet.*choose an origin near"):
        read(tmp_path, column, seconds)
    table = read(tmp_path, column, {**seconds, "origin": "2026-01-01"})
    assert table["features"].to_pylist() == [[172801]]
    assert read(tmp_path, column, seconds, lossy_features=True)["error"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("column", "entry", "words"),
    [
        (pa.array([dt.date(2026, 1, 3)]), "t", r"'t' is date32.*\{column: t, read_as: days\}"),
        (
            pa.array([dt.date(2026, 1, 3)]),
            {"column": "t", "read_as": "hour"},
            "'t' is date32.*, which has no hour",
        ),
        (
            pa.array([dt.time(5)]),
            {"column": "t", "read_as": "year"},
            "'t' is time64.*, of which seconds and hour can be taken",
        ),
        (
            pa.array([1.5]),
            {"column": "t", "read_as": "days"},
            "'t' is double, expected a date or time, for read_as: days",
        ),
    ],
    ids=["undeclared", "no hour", "no year", "no date"],
)
def test_what_cannot_be_read_says_the_way_out(
    column: pa.Array, entry: Any, words: str, tmp_path: Path
):
    with pytest.raises(JobError, match=words):
        read(tmp_path, column, entry)
