"""Rows of lake tables: random ones to write, and those that a source reads, counted."""

from __future__ import annotations

import datetime as dt
import decimal
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.job.source import Source
from pipeline.planning.slicing import SliceSizes, make_units
from pipeline.sources.listing.inputs import Inputs, list_inputs
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader
from pipeline.storage.store import Store

Rows = Counter[tuple[str, ...]]


def rows_of(source: Source, inputs: Inputs) -> pa.Table:
    """Read all rows in slices of three."""
    reader = Reader(
        Store(inputs.root, source.storage_options),
        source,
        inputs.pass_through,
        inputs.fields,
        table=inputs.table,
    )
    tables = [reader.schema.empty_table()]
    for unit in make_units(inputs.extents, SliceSizes(3)):
        starts = frozenset(key.start for key in unit.slices())
        tables += [rows for _, _, rows in read_slices(reader, unit, starts)]
    return pa.concat_tables(tables)


def read(source: Source) -> tuple[Rows, pa.Table]:
    """Return the rows of a table as they are read, counted, and the table of them."""
    rows = rows_of(source, list_inputs(source, max_extent_rows=4))
    assert rows.column("error").null_count == rows.num_rows, rows.column("message").to_pylist()
    assert len(set(rows.column("row_id").to_pylist())) == rows.num_rows
    values = rows.select([*source.passed]).to_pylist()
    for row, vector in zip(values, rows.column("features").to_pylist(), strict=True):
        row["n"] = int(vector[0])
    return counted(values), rows


def counted(rows: list[dict[str, Any]]) -> Rows:
    """Count rows; values are compared by their text, since lists and maps have no hash."""
    return Counter(tuple(f"{key}={row[key]!r}" for key in sorted(row)) for row in rows)


def a_value(chance: random.Random, dtype: pa.DataType) -> Any:
    if chance.random() < 0.2:
        return None
    number = chance.randrange(-9, 10)
    made: Mapping[pa.DataType, Any] = {
        pa.string(): f"text {number} \u00e9",
        pa.int8(): number,
        pa.float64(): number / 3,
        pa.bool_(): number > 0,
        pa.binary(): bytes([number + 9]),
        pa.date32(): dt.date(2026, 1, 10 + number),
        pa.timestamp("us", "UTC"): dt.datetime(2026, 1, 10 + number, 5, tzinfo=dt.UTC),
        pa.decimal128(12, 3): decimal.Decimal(number) / 8,
        LISTS: [number, None, number + 1],
        STRUCTS: {"a": number, "b": None if number < 0 else "x"},
        MAPS: [("key", number)],
    }
    return made[dtype]


LISTS = pa.list_(pa.int64())
STRUCTS = pa.struct([("a", pa.int64()), ("b", pa.string())])
MAPS = pa.map_(pa.string(), pa.int64())
COLUMNS: dict[str, pa.DataType] = {
    "text": pa.string(),
    "small": pa.int8(),
    "price": pa.float64(),
    "is_new": pa.bool_(),
    "data": pa.binary(),
    "day": pa.date32(),
    "seen": pa.timestamp("us", "UTC"),
    "cost": pa.decimal128(12, 3),
    "list": LISTS,
    "struct": STRUCTS,
    "map": MAPS,
}


def some_rows(chance: random.Random, columns: Mapping[str, pa.DataType]) -> pa.Table:
    num_rows = chance.randrange(1, 9)
    made = {
        name: pa.array([a_value(chance, dtype) for _ in range(num_rows)], dtype)
        for name, dtype in columns.items()
    }
    return pa.table({"n": pa.array([chance.randrange(100) for _ in range(num_rows)]), **made})
