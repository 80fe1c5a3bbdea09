"""INT96 timestamps are published at their value, without digits below a microsecond."""

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

from pipeline.sources.listing.inputs import list_inputs

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


def write(path: Path, values: list[Any], dtype: pa.DataType | None = None, **columns: Any) -> None:
    column = pa.array(values, dtype or pa.timestamp("us"))
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


@pytest.mark.parametrize("dtype", [pa.timestamp("us"), pa.timestamp("us", "UTC")], ids=str)
def test_every_moment_is_itself(dtype: pa.DataType, tmp_path: Path):
    write(tmp_path / "a.parquet", MOMENTS, dtype)
    table = read(tmp_path)
    assert table.schema.field("ts").type == pa.timestamp("us")
    assert table["error"].null_count == len(MOMENTS)
    assert table["ts"].to_pylist() == MOMENTS
    query = f"select ts::timestamp from read_parquet('{tmp_path}/a.parquet')"
    assert [row[0] for row in duckdb.sql(query).fetchall()] == MOMENTS


def test_digits_below_a_microsecond_are_cut(tmp_path: Path):
    day = JULIAN_EPOCH
    write_raw(tmp_path / "a.parquet", [(day, 1_001), (day - 1, DAY_NS - 1)])
    last = dt.datetime(1969, 12, 31, 23, 59, 59, 999999)
    assert read(tmp_path)["ts"].to_pylist() == [dt.datetime(1970, 1, 1, 0, 0, 0, 1), last]


def test_what_a_declared_type_does_not_hold_costs_its_row(tmp_path: Path):
    write(tmp_path / "a.parquet", MOMENTS)
    table = read(tmp_path, casts={"ts": "timestamp[ns]"})
    assert table["error"].to_pylist() == [*["bad_schema"] * 3, None, None, None]
    assert table["ts"].cast(pa.timestamp("us")).to_pylist()[3:] == MOMENTS[3:]
