"""Memory is bounded by the values of rows, whatever a dictionary or the sizes in a footer say."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.reading import plan_job, read
from support.runs.selection import examples

from pipeline.core.figures import Counters
from pipeline.core.slices import SliceKey
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import require_complete
from pipeline.sources import reader, units
from pipeline.sources.formats import parquet as parquet_format
from pipeline.sources.formats import parquet_shard
from pipeline.sources.formats.parquet_shard import (
    MAX_BATCH_BYTES,
    Batching,
    group_batches,
    rows_within,
)
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader
from pipeline.storage.store import StoredFile

MIB = 2**20
READ = """
import collections, gc, json, pathlib, pickle, re, sys
import pyarrow as pa
from pipeline.sources.reader import read_slices

def peak_bytes():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+([0-9]+) kB", status)[1]) * 1024

reader, units = pickle.load(sys.stdin.buffer)
gc.disable()
before = peak_bytes()
errors, most = collections.Counter(), 0
for unit in units:
    for key, _, table in read_slices(reader, unit, {key.start for key in unit.slices()}):
        errors.update(str(error) for error in table.column("error").to_pylist())
        most = max(most, table.nbytes)
        del table
    assert not pa.total_allocated_bytes(), "a unit that has been read holds no memory"
print(json.dumps([errors, most, peak_bytes() - before, pa.default_memory_pool().max_memory()]))
"""


def read_apart(
    folder: Path, slice_rows: int, **fields: Any
) -> tuple[dict[str, int], int, int, int]:
    """Read all rows in a child.

    Returns:
        Error -> rows; the most bytes of a slice, of all memory and of what Arrow holds at once.
    """
    made, plan = plan_job(folder, slice_rows, **fields)
    made = Reader(made.store, made.source, plan.pass_through, plan.fields)
    done = subprocess.run(
        [sys.executable, "-c", READ],
        input=pickle.dumps((made, plan.units)),
        capture_output=True,
        check=True,
    )
    errors, most, peak, held = json.loads(done.stdout)
    return errors, most, peak, held


def repeated(value: str | bytes, num_rows: int) -> pa.Array:
    """One value in a dictionary, that many rows refer to."""
    indices = pa.array(np.zeros(num_rows, np.int32))
    return pa.DictionaryArray.from_arrays(indices, pa.array([value]))


@pytest.mark.parametrize("is_typed", [True, False], ids=["dictionary", "plain"])
@pytest.mark.slow
def test_a_text_that_many_rows_pass_through_is_not_copied_for_each(tmp_path: Path, is_typed: bool):
    table = pa.table({"image": [b"x"] * 60, "t": repeated("a" * 40_000_000, 60)})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", store_schema=is_typed)
    assert (tmp_path / "a.parquet").stat().st_size < 4000
    errors, _, peak, _ = read_apart(tmp_path, 256, pass_through=["t"])
    assert errors == {"too_large": 60}
    assert peak < 6 * MAX_BATCH_BYTES


@pytest.mark.parametrize("is_typed", [True, False], ids=["dictionary", "plain"])
@pytest.mark.slow
def test_rows_of_more_than_2_gib_come_in_pieces_and_none_is_lost(tmp_path: Path, is_typed: bool):
    table = pa.table({"image": repeated(b"i" * 20 * MIB, 110)})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", store_schema=is_typed)
    errors, most, peak, _ = read_apart(tmp_path, 110)
    assert errors == {"None": 110}
    assert most < 2 * units.MAX_SLICE_BYTES
    assert peak < 5 * units.MAX_SLICE_BYTES


@pytest.mark.slow
def test_values_that_share_prefixes_do_not_fill_memory(tmp_path: Path):
    texts = repeated("x" * 20 * MIB, 60).dictionary_decode()
    pq.write_table(pa.table({"image": [b"x"] * 60, "t": texts}), tmp_path / "a.parquet",
                   compression="zstd", use_dictionary=["image"],
                   column_encoding={"t": "DELTA_BYTE_ARRAY"})  # fmt: skip
    del texts
    errors, _, peak, _ = read_apart(tmp_path, 64, pass_through=["t"])
    assert errors == {"too_large": 60}
    assert peak < 6 * MAX_BATCH_BYTES


def test_a_huge_row_group_is_streamed(tmp_path: Path):
    image = np.random.default_rng(0).bytes(100_000)
    images = pa.array([image]).take(pa.array([0] * 1000))
    pq.write_table(
        pa.table({"image": images}),
        tmp_path / "huge.parquet",
        row_group_size=1000,
        compression="none",
        use_dictionary=False,
        write_batch_size=16,  # small pages: reading is by whole pages
    )
    errors, most, _, held = read_apart(tmp_path, 64)
    assert errors == {"None": 1000}
    assert most > 63 * len(image)
    assert held < 0.6 * (tmp_path / "huge.parquet").stat().st_size


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=60),
    rows_at_once=st.integers(1, 9),
    num_rows=st.integers(1, 30),
    joined_bytes=st.integers(1, 200),
)
def test_joined_batches_are_the_same_rows(
    sizes: list[int], rows_at_once: int, num_rows: int, joined_bytes: int
):
    rows = pa.table({"t": ["x" * size for size in sizes]})
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, row_group_size=17)
    shard = pq.ParquetFile(buffer)
    how = Batching(num_rows, 1.0, few_requests=False, rows_at_once=rows_at_once)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_shard, "_JOINED_BYTES", joined_bytes)
        batches = [*group_batches(shard, None, range(shard.num_row_groups), ["t"], how)]
    assert pa.Table.from_batches(batches).equals(rows)
    for batch in batches:
        assert batch.num_rows <= max(num_rows, rows_at_once)
        assert batch.nbytes <= joined_bytes or batch.num_rows <= rows_at_once


def rows_of(table: pa.Table, wanted: int, few: int = 7, **options: Any) -> int:
    """Rows of the only row group of a table that may be read at once."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=1 << 20, **options)
    shard = pq.ParquetFile(buffer)

    def as_dictionaries(leaves: Sequence[str]) -> pq.ParquetFile:
        return pq.ParquetFile(buffer, read_dictionary=[*leaves])

    return rows_within(shard, as_dictionaries, [0], table.column_names, wanted, few)


def test_rows_are_read_as_before_where_none_can_be_large():
    many = 300_000
    ordinary = {
        "numbers": pa.array(np.arange(many)),
        "vectors": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4 * many)), 4),
        "categories": pa.array(["red", "green", "blue"] * (many // 3)),
        "ids": pa.array([f"row {row}" for row in range(many)]),
    }
    for name, column in ordinary.items():
        assert rows_of(pa.table({name: column}), 200_000) == 200_000, name


def test_fewer_rows_are_read_where_they_may_be_large(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet_shard, "MAX_BATCH_BYTES", MIB)
    half = MIB // 2
    indices = pa.array(np.arange(1000, dtype=np.int32) % 2)
    large = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * half, "y"]))
    plain = {"compression": "zstd", "store_schema": False}
    assert rows_of(pa.table({"t": large}), 256, **plain) in (1, 2)
    # As a dictionary it is cut when it has been read.
    assert rows_of(pa.table({"t": large}), 256, compression="zstd") == 256
    texts = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * (MIB // 128), "y"]))
    assert rows_of(pa.table({"t": texts}), 256, **plain) == 128
    lists = pa.ListArray.from_arrays(
        pa.array(np.arange(0, 1001, 10), pa.int32()), texts.dictionary_decode()
    )
    assert rows_of(pa.table({"t": lists}), 100, **plain) == 12
    neighbours = pa.array(["a" * half, "b" * half, "c" * half, *["d"] * 100])
    assert rows_of(pa.table({"t": neighbours}), 64, use_dictionary=False, **plain) == 1
    noise = [np.random.default_rng(row).bytes(half // 4) for row in range(9)]
    assert rows_of(pa.table({"t": [*noise, *[b"d"] * 100]}), 64, use_dictionary=False) == 7
    prefixes = {"use_dictionary": False, "column_encoding": {"t": "DELTA_BYTE_ARRAY"}}
    assert rows_of(pa.table({"t": ["x" * half] * 100}), 64, compression="zstd", **prefixes) == 1
    assert rows_of(pa.table({"t": [noise[0]] * 100}), 64, **prefixes) == 16
    assert rows_of(pa.table({"t": ["x" * 100] * 100}), 64, **prefixes) == 64


@examples(60)
@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=40), slice_rows=st.integers(1, 50))
def test_slices_in_pieces_are_the_rows_of_the_slice(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], slice_rows: int
):
    folder = tmp_path_factory.mktemp("in")
    pq.write_table(
        pa.table({"image": [b"x" * size for size in sizes], "t": [str(s) for s in sizes]}),
        folder / "a.parquet",
    )
    made, plan = plan_job(folder, slice_rows, pass_through=["t"])
    whole = read(made, plan)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "MAX_SLICE_BYTES", 300)
        patch.setattr(parquet_format, "_BATCH_BYTES", 64)
        pieces, counted = read_pieces(made, plan)
    assert pa.concat_tables(pieces.values()).equals(pa.concat_tables(whole.values()))
    assert sum(counters["read"]["rows_out"] for counters in counted) == len(sizes)
    done = dict.fromkeys(pieces, StoredFile("", 0, "", None))
    assert [key for key, _ in require_complete(plan, done)] == [*pieces]
    for key, rows in pieces.items():
        assert rows.num_rows == key.num_rows
        assert key.num_rows == 1 or rows.nbytes <= 2 * 300


def read_pieces(made: Reader, plan: Plan) -> tuple[dict[SliceKey, pa.Table], list[Counters]]:
    pieces, counted = {}, []
    for unit in plan.units:
        for key, counters, rows in read_slices(made, unit, {key.start for key in unit.slices()}):
            pieces[key] = rows
            counted.append(counters)
    return pieces, counted


@pytest.mark.slow
def test_large_rows_that_are_neighbours_do_not_fill_memory(tmp_path: Path):
    """The mean row has 230 kB, as the footer says truly."""
    texts = [*["small"] * 4000, *["b" * 15 * MIB + str(row) for row in range(60)]]
    table = pa.table({"image": [b"x"] * len(texts), "t": pa.array(texts, pa.large_string())})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False,
                   write_batch_size=4)  # fmt: skip
    del texts, table
    errors, most, peak, _ = read_apart(tmp_path, 1024, pass_through=["t"])
    assert errors == {"None": 4060}
    assert most < 2 * units.MAX_SLICE_BYTES
    assert peak < 5 * units.MAX_SLICE_BYTES
