"""INT96 timestamps are published at their value, or their row is quarantined."""

from __future__ import annotations

import datetime as dt
import io
import struct
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.shard_columns import read_all, source_of

from pipeline.sources.inputs import list_inputs

DAY_NS = 86_400 * 10**9
JULIAN_EPOCH = 2_440_588
MOMENTS = [
    dt.datetime(9999, 12, 31, 23, 59, 59, 999999),
    dt.datetime(1, 1, 1),
    dt.datetime(1500, 1, 1, 0, 0, 0, 1),
    None,
    dt.datetime(1969, 12, 31, 23, 59, 59, 999999),
    dt.datetime(2026, 11, 24, 1, 2, 3, 456789),
]


def write(path: Path, values: list[Any], kind: pa.DataType | None = None, **columns: Any) -> None:
    column = pa.array(values, kind or pa.timestamp("us"))
    table = pa.table({"image": [b"x"] * len(values), "ts": column, **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, use_deprecated_int96_timestamps=True, row_group_size=4)


def write_raw(path: Path, moments: list[tuple[int, int]]) -> None:
    """Write (Julian day, nanoseconds of the day) pairs, also those that Arrow cannot represent."""
    marks = [dt.datetime(2000, 1, 1 + index) for index in range(len(moments))]
    buffer = io.BytesIO()
    pq.write_table(
        pa.table({"image": [b"x"] * len(marks), "ts": pa.array(marks, pa.timestamp("us"))}),
        buffer,
        use_deprecated_int96_timestamps=True,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=False,
    )
    data = buffer.getvalue()
    for mark, (day, nanoseconds) in zip(marks, moments, strict=True):
        days = (mark - dt.datetime(1970, 1, 1)).days + JULIAN_EPOCH
        old, new = struct.pack("<qI", 0, days), struct.pack("<QI", nanoseconds, day)
        assert data.count(old) == 1
        data = data.replace(old, new)
    path.write_bytes(data)


def read(folder: Path, **fields: Any) -> pa.Table:
    source = source_of(folder, pass_through=("ts",), **fields)
    inputs = list_inputs(source, max_extent_rows=3)
    return pa.concat_tables(read_all(inputs, source, 3))


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("us", "UTC")], ids=str)
def test_every_moment_is_itself(kind: pa.DataType, tmp_path: Path):
    write(tmp_path / "a.parquet", MOMENTS, kind)
    table = read(tmp_path)
    assert table.schema.field("ts").type == pa.timestamp("us")
    assert table["error"].null_count == len(MOMENTS)
    assert table["ts"].to_pylist() == MOMENTS
    query = f"select ts::timestamp from read_parquet('{tmp_path}/a.parquet')"
    assert [row[0] for row in duckdb.sql(query).fetchall()] == MOMENTS


@pytest.mark.parametrize("start", range(6))
def test_a_row_is_the_same_wherever_reading_begins(start: int, tmp_path: Path):
    write(tmp_path / "a.parquet", MOMENTS)
    source = source_of(tmp_path, pass_through=("ts",))
    inputs = list_inputs(source, max_extent_rows=100)
    [whole] = read_all(inputs, source, 100)
    pieces = read_all(inputs, source, 6 - start)
    assert pa.concat_tables(pieces)["ts"].to_pylist() == whole["ts"].to_pylist()


def test_what_no_microsecond_holds_costs_its_row(tmp_path: Path):
    day = JULIAN_EPOCH
    write_raw(
        tmp_path / "a.parquet",
        [(day, 1_000), (day, 1_001), (2**32 - 1, 0), (day + 3_000_000, DAY_NS - 1), (day - 1, 0)],
    )
    table = read(tmp_path)
    assert table["error"].to_pylist() == [None, "bad_schema", "bad_schema", "bad_schema", None]
    messages = table["message"].to_pylist()
    assert "ts has nanoseconds" in messages[1]
    assert "beyond what timestamp[us] can hold" in messages[2]
    assert "ts has nanoseconds" in messages[3]
    good = [table["ts"][row].as_py() for row in (0, 4)]
    assert good == [dt.datetime(1970, 1, 1, 0, 0, 0, 1), dt.datetime(1969, 12, 31)]


def test_nanoseconds_are_kept_where_they_are_declared(tmp_path: Path):
    day = JULIAN_EPOCH
    write_raw(tmp_path / "a.parquet", [(day, 1_001), (day + 3_000_000, 0), (day - 1, DAY_NS - 1)])
    table = read(tmp_path, casts={"ts": "timestamp[ns]"})
    assert table.schema.field("ts").type == pa.timestamp("ns")
    assert table["error"].to_pylist() == [None, "bad_schema", None]
    assert "outside of 1677 to 2262" in table["message"][1].as_py()
    found = table["ts"].cast(pa.int64()).to_pylist()
    assert (found[0], found[2]) == (1_001, -1)


def test_moments_inside_lists_and_structs_are_checked_too(tmp_path: Path):
    path = tmp_path / "a.parquet"
    lists = [[MOMENTS[0]], None, [], [MOMENTS[5], None]]
    table = pa.table(
        {
            "image": [b"x"] * 4,
            "ts": pa.array(lists, pa.list_(pa.timestamp("us"))),
            "s": pa.array([{"t": m} for m in MOMENTS[:4]], pa.struct([("t", pa.timestamp("us"))])),
        }
    )
    pq.write_table(table, path, use_deprecated_int96_timestamps=True)
    source = source_of(tmp_path, pass_through=("ts", "s"))
    [found] = read_all(list_inputs(source, max_extent_rows=9), source, 9)
    assert found["error"].null_count == 4
    assert found["ts"].to_pylist() == lists
    assert found["s"].to_pylist() == [{"t": moment} for moment in MOMENTS[:4]]
    exact = pa.array([dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 2)], pa.timestamp("ns"))
    late = pa.ListArray.from_arrays(
        pa.array([0, 1, 2], pa.int32()), pa.compute.add(exact, pa.array([0, 1], pa.duration("ns")))
    )
    table = pa.table({"image": [b"x"] * 2, "ts": late, "s": [1, 2]})
    pq.write_table(table, path, use_deprecated_int96_timestamps=True)
    [found] = read_all(list_inputs(source, max_extent_rows=9), source, 9)
    assert found["error"].to_pylist() == [None, "bad_schema"]
