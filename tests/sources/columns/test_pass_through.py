"""Every Arrow type that Parquet restores is published as it is read, or refused at listing."""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.shard_columns import read_all, source_of, text
from support.runs.published import run_here

from pipeline.commit.parts.compaction import Compacted, Compactor, compact_slices
from pipeline.commit.parts.partition_columns import compact_by_value
from pipeline.commit.staging import StagingWriter, list_staged
from pipeline.core.errors import JobError
from pipeline.core.failures import failures_of, without_failure
from pipeline.core.hive_paths import restore
from pipeline.core.schema import CLASSIFY_FIELDS, LABEL_ID, SCORE, prediction_schema
from pipeline.core.slices import SliceKey
from pipeline.inference.result_table import to_table
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec
from pipeline.sources.columns.arrow_types import published_type, type_trouble
from pipeline.sources.listing.inputs import list_inputs
from pipeline.storage.store import Store

MOMENT = dt.datetime(9999, 12, 31, 23, 59, 59, 999999)
NOW = dt.datetime(2026, 11, 24, 1, 2, 3)
LONG = "longer than what a view keeps inside"
VALUES: dict[pa.DataType, Sequence[Any]] = {
    pa.string(): ["a", None, "", LONG],
    pa.large_string(): ["a", None, "", LONG],
    pa.string_view(): ["a", None, "", LONG],
    pa.binary(): [b"\xff", None, b""],
    pa.large_binary(): [b"\xff", None, b""],
    pa.binary_view(): [b"\xff", None, LONG.encode()],
    pa.binary(3): [b"abc", None],
    pa.list_(pa.int32()): [[1, None], None, []],
    pa.large_list(pa.int32()): [[1, None], None, []],
    pa.list_view(pa.int32()): [[1, None], None, [], [2, 3]],
    pa.large_list_view(pa.int32()): [[1, None], None, [], [2, 3]],
    pa.list_(pa.int32(), 2): [[1, 2], None],
    pa.list_(pa.string_view()): [["a", None], None, [LONG]],
    pa.list_(pa.list_(pa.string_view(), 1)): [[["a"]], None, []],
    pa.struct([("a", pa.string_view()), ("b", pa.int8())]): [{"a": "x", "b": 1}, None],
    pa.map_(pa.string(), pa.string_view()): [[("k", LONG)], None, []],
    pa.dictionary(pa.int8(), pa.string()): ["a", None, "b", "a"],
    pa.dictionary(pa.int32(), pa.string(), ordered=True): ["a", None, "b"],
    pa.list_(pa.dictionary(pa.int32(), pa.string())): [["a", "b"], None],
    pa.decimal32(5, 2): [decimal.Decimal("999.99"), None],
    pa.decimal64(18, 3): [decimal.Decimal("1.001"), None],
    pa.decimal128(38, 5): [decimal.Decimal("-1.00001"), None],
    pa.decimal256(76, 5): [decimal.Decimal("1e70"), None],
    pa.null(): [None, None],
    pa.list_(pa.null()): [[None], None],
    pa.bool_(): [True, None],
    pa.int8(): [-128, None],
    pa.uint32(): [2**32 - 1, None],
    pa.int64(): [-(2**63), None],
    pa.uint64(): [2**64 - 1, None],
    pa.float16(): [1.5, None],
    pa.float32(): [float("inf"), None],
    pa.float64(): [1e300, None],
    pa.date32(): [dt.date(9999, 12, 31), None, dt.date(1, 1, 1)],
    pa.date64(): [dt.date(9999, 12, 31), None, dt.date(1, 1, 1)],
    pa.time32("s"): [dt.time(23, 59, 59), None],
    pa.time32("ms"): [dt.time(23, 59, 59), None],
    pa.time64("us"): [dt.time(23, 59, 59, 999999), None],
    pa.time64("ns"): [dt.time(23, 59, 59, 999999), None],
    pa.timestamp("s"): [NOW, None, dt.datetime(9999, 12, 31)],
    pa.timestamp("ms"): [NOW, None, dt.datetime(9999, 12, 31)],
    pa.timestamp("us"): [NOW, None, MOMENT, dt.datetime(1, 1, 1)],
    pa.timestamp("ns"): [NOW, None, dt.datetime(2262, 4, 11)],
    pa.timestamp("us", "UTC"): [NOW, None],
    pa.timestamp("ns", "Europe/Berlin"): [NOW, None],
    pa.timestamp("us", "+05:30"): [NOW, None],
    pa.duration("s"): [dt.timedelta(days=9), None],
    pa.duration("ns"): [dt.timedelta(microseconds=1), None],
    pa.uuid(): [b"0" * 16, None],
    pa.json_(): ['{"a": 1}', None],
    pa.bool8(): [1, None],
    pa.opaque(pa.binary(), "x", "y"): [b"x", None],
}
REFUSED = (pa.list_view(pa.string_view()), pa.list_(pa.uuid()), pa.struct([("token", pa.uuid())]))
UNWRITABLE = (
    pa.month_day_nano_interval(),
    pa.run_end_encoded(pa.int32(), pa.string()),
    pa.dense_union([pa.field("a", pa.int32())]),
    pa.sparse_union([pa.field("a", pa.int32())]),
    pa.struct([]),
)
UNSTABLE = (pa.timestamp("s"), pa.date64(), pa.time32("s"))


def publish(store: Store, fields: pa.Schema, tables: Sequence[pa.Table], by: Sequence[str]) -> Any:
    """Predict, stage and compact as a run does; return the published table."""
    task = make_task(TaskSpec("classify", ("cat", "dog"), 1))
    writer = StagingWriter(store, "staging", "r", "zstd", {})
    start = 0
    for table in tables:
        failures = failures_of(table)
        results = {
            SCORE: np.ones((table.num_rows, 1), np.float32),
            LABEL_ID: np.zeros((table.num_rows, 1), np.int32),
        }
        rows = to_table(task, fields, table, results, without_failure(failures), failures)
        end = start + table.num_rows
        writer.write(SliceKey(0, start, end, is_last=table is tables[-1]), {}, rows)
        start = end
    slices = [(k, f.path, float(f.size_bytes)) for k, f in list_staged(store, "staging").items()]
    schema = prediction_schema(list(fields), CLASSIFY_FIELDS)
    compactor = Compactor(store, "out", "v", schema, "zstd", {}, 2.0**20, store)
    if by:
        return compact_by_value(compactor, by, slices, (), {}, run_here)
    return compact_slices(compactor, slices, (), {}, run_here)


def read_back(store: Store, done: Compacted, types: dict[str, str]) -> pa.Table:
    tables = []
    for part in done.predictions:
        data = pa.BufferReader(store.read_bytes(f"out/{part.path}"))
        tables.append(restore(pq.ParquetFile(data).read(), part.path, types))
    return pa.concat_tables(tables)


@pytest.mark.parametrize("by", [(), ("label",)], ids=["whole", "by folder"])
def test_what_parquet_restores_is_published_unchanged(by: tuple[str, ...], tmp_path: Path):
    num_rows = max(map(len, VALUES.values()))
    columns, expected = {"image": pa.array([b"x"] * num_rows)}, {}
    for dtype, values in VALUES.items():
        storage = dtype.storage_type if isinstance(dtype, pa.BaseExtensionType) else dtype
        column = pa.array([*values, *[None] * (num_rows - len(values))], storage)
        expected[str(dtype)] = column.to_pylist()
        is_extension = storage is not dtype
        columns[str(dtype)] = (
            pa.ExtensionArray.from_storage(dtype, column) if is_extension else column
        )
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "in" / "a.parquet")
    source = source_of(tmp_path / "in", pass_through=(*expected,))
    inputs = list_inputs(source, max_extent_rows=2)
    assert not any(type_trouble(field.type) for field in inputs.pass_through)
    tables = read_all(inputs, source)
    assert all(part["error"].null_count == part.num_rows for part in tables)
    store = Store(str(tmp_path / "out"))
    done = publish(store, inputs.pass_through, tables, by)
    published = read_back(store, done, {"label": "string"} if by else {})
    for name, wanted in expected.items():
        assert published.schema.field(name).type == inputs.pass_through.field(name).type
        assert published[name].to_pylist() == wanted, name
    parts = [f"{store.uri}/out/{part.path}" for part in done.predictions]
    names = ", ".join(f'"{name}"' for name in expected if "list_view" not in name)
    query = f"select {names} from read_parquet({parts})"
    assert len(duckdb.sql(query).fetchall()) == num_rows


@pytest.mark.parametrize("dtype", REFUSED, ids=str)
def test_what_cannot_be_published_is_refused_at_listing(dtype: pa.DataType, tmp_path: Path):
    table = pa.table({"image": [b"x"], "c": pa.nulls(1, dtype)})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(JobError, match=r"pass_through: column 'c' of a\.parquet is .*leave it out"):
        list_inputs(source_of(tmp_path, pass_through=("c",)), max_extent_rows=2)


@pytest.mark.parametrize("dtype", UNWRITABLE, ids=str)
def test_a_type_that_parquet_cannot_hold_is_said_to_be_one(dtype: pa.DataType):
    with pytest.raises(pa.ArrowNotImplementedError):
        pq.write_table(pa.table({"c": pa.nulls(1, dtype)}), pa.BufferOutputStream())
    assert "cannot write" in type_trouble(dtype)


@pytest.mark.parametrize("dtype", UNSTABLE, ids=str)
def test_casts_name_types_that_parquet_keeps(dtype: pa.DataType, tmp_path: Path):
    assert "Parquet keeps it as" in type_trouble(dtype)
    pq.write_table(pa.table({"image": [b"x"], "c": [NOW]}), tmp_path / "a.parquet")
    alias = str(dtype).partition("[")[0] if pa.types.is_date64(dtype) else str(dtype)
    source = source_of(tmp_path, pass_through=("c",), casts={"c": alias})
    with pytest.raises(JobError, match=r"source\.casts\.c = .*Parquet keeps it as"):
        list_inputs(source, max_extent_rows=2)


def test_every_kind_of_type_is_either_published_or_refused():
    for dtype in (*VALUES, *REFUSED, *UNWRITABLE):
        wanted = published_type(dtype)
        assert published_type(wanted) == wanted


# ---------------------------------------------------------------------------- single values


BROKEN = text(b"ok", b"caf\xe9", None, b"last")


@pytest.mark.parametrize(
    "column",
    [
        BROKEN,
        BROKEN.cast(pa.binary()).dictionary_encode(),
        pa.ListArray.from_arrays(pa.array([0, 1, 2, 3, 4], pa.int32()), BROKEN),
        pa.StructArray.from_arrays([BROKEN], ["name"]),
    ],
    ids=["plain", "dictionary", "list", "struct"],
)
def test_text_that_is_no_utf8_costs_its_row(column: pa.Array, tmp_path: Path):
    if pa.types.is_dictionary(column.type):
        column = pa.DictionaryArray.from_arrays(column.indices, text(b"ok", b"caf\xe9", b"last"))
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"image": [b"x"] * 4, "c": column}), tmp_path / "in" / "a.parquet")
    source = source_of(tmp_path / "in", pass_through=("c",))
    inputs = list_inputs(source, max_extent_rows=9)
    tables = read_all(inputs, source, 9)
    assert tables[0]["error"].to_pylist() == [None, "bad_schema", None, None]
    assert tables[0]["message"][1].as_py().startswith("c ")
    store = Store(str(tmp_path / "out"))
    done = publish(store, inputs.pass_through, tables, ())
    assert [part.num_rows for part in done.predictions] == [3]
    parts = [f"{store.uri}/out/{part.path}" for part in done.predictions]
    assert len(duckdb.sql(f"select c from read_parquet({parts})").fetchall()) == 3


def test_a_value_that_makes_no_folder_costs_its_row(tmp_path: Path):
    column = text(b"a", b"", b"caf\xe9", b"x" * 300, None, b" ")
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"image": [b"x"] * 6, "k": column}), tmp_path / "in" / "a.parquet")
    source = source_of(tmp_path / "in", pass_through=("k",))
    inputs = list_inputs(source, max_extent_rows=9)
    [table] = read_all(inputs, source, 9, folders=("k",))
    assert table["error"].to_pylist() == [None, *["bad_schema"] * 3, None, None]
    messages = table["message"].to_pylist()
    assert "k is empty text" in messages[1]
    assert messages[2] == r"k is not UTF-8: caf\xe9"
    assert "k has 300 characters" in messages[3]
    store = Store(str(tmp_path / "out"))
    done = publish(store, inputs.pass_through, [table], ("k",))
    published = read_back(store, done, {"k": "string"})
    assert sorted(published["k"].to_pylist(), key=str) == [" ", None, "a"]
    paths = f"{store.uri}/out/predictions/**/*.parquet"
    query = f"select k from read_parquet('{paths}', hive_partitioning=true) order by k"
    assert duckdb.sql(query).fetchall() == [(" ",), ("a",), (None,)]


def test_a_value_that_does_not_fit_its_cast_costs_its_row_and_no_other(tmp_path: Path):
    pq.write_table(pa.table({"image": [b"x"] * 3, "n": [1.0, 2.5, 3.0]}), tmp_path / "a.parquet")
    source = source_of(tmp_path, pass_through=("n",), casts={"n": "int64"})
    [table] = read_all(list_inputs(source, max_extent_rows=9), source, 9)
    assert table["error"].to_pylist() == [None, "bad_schema", None]
    assert table["n"].to_pylist() == [1, None, 3]
    assert table["message"][1].as_py().startswith("n cannot be int64: ")


def test_a_cast_that_arrow_does_not_have_is_refused(tmp_path: Path):
    table = pa.table({"image": [b"x"], "n": [{"a": 1}]})
    pq.write_table(table, tmp_path / "a.parquet")
    source = source_of(tmp_path, pass_through=("n",), casts={"n": "int64"})
    with pytest.raises(JobError, match=r"column .n. .*cannot make int64 of it"):
        list_inputs(source, max_extent_rows=2)
