"""Row groups are the same rows however they are read; an object store takes few requests."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.selection import examples
from support.servers.faultproxy import DENIED, FaultProxy, Rule
from support.servers.object_stores import S3Server

from pipeline.core.errors import JobError
from pipeline.job.source import Source
from pipeline.sources.formats.parquet_shard import Batching, group_batches, open_shard
from pipeline.sources.listing.inputs import list_inputs
from pipeline.sources.units import Extent
from pipeline.storage.store import Store

NUM_COLUMNS = 230
NAMES = [f"f{index}" for index in range(NUM_COLUMNS)]
SIZES = (40, 7, 1, 64, 13)


def table(num_rows: int = sum(SIZES)) -> pa.Table:
    """Numbers with nulls here and there, and a column of each other shape."""
    rng = np.random.default_rng(0)
    columns = {
        name: pa.array(
            rng.standard_normal(num_rows).astype(np.float32), mask=rng.random(num_rows) < 0.1
        )
        for name in NAMES
    }
    columns["id"] = pa.array([f"row {row}" for row in range(num_rows)])
    columns["pair"] = pa.array([[row, row + 1] for row in range(num_rows)], pa.list_(pa.int64(), 2))
    columns["at"] = pa.array([{"x": row, "y": [row] * (row % 3)} for row in range(num_rows)])
    return pa.table(columns)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> pq.ParquetFile:
    """Row groups of different sizes."""
    path = tmp_path_factory.mktemp("wide") / "wide.parquet"
    rows, start = table(), 0
    with pq.ParquetWriter(path, rows.schema) as writer:
        for size in SIZES:
            writer.write_table(rows.slice(start, size))
            start += size
    return pq.ParquetFile(path)


def joined(batches: Sequence[pa.RecordBatch], columns: Sequence[str]) -> pa.Table:
    return pa.Table.from_batches(batches).select(columns).combine_chunks()


@examples(80)
@given(
    groups=st.sets(st.integers(0, len(SIZES) - 1), min_size=1),
    columns=st.lists(st.sampled_from([*NAMES, "id", "pair", "at"]), min_size=1, unique=True)
    | st.just([*NAMES, "id", "pair", "at"]),
    num_rows=st.integers(1, 200),
    row_bytes=st.sampled_from([1.0, 1e6, 1e8]),
    few_requests=st.booleans(),
)
def test_any_way_of_reading_gives_the_rows_of_the_row_groups(
    shard: pq.ParquetFile,
    groups: set[int],
    columns: list[str],
    num_rows: int,
    row_bytes: float,
    few_requests: bool,
):
    # A hundred megabytes a row make them too large to be held.
    how = Batching(num_rows, row_bytes, few_requests)
    batches = [*group_batches(shard, shard, sorted(groups), columns, how)]
    assert all(0 < batch.num_rows <= num_rows for batch in batches)
    expected = shard.read_row_groups(sorted(groups), columns=columns)
    assert joined(batches, columns).equals(expected.select(columns).combine_chunks())


def test_fields_of_a_column_are_read_beside_whole_columns(shard: pq.ParquetFile):
    how = Batching(50, 1.0, few_requests=True)
    batches = [*group_batches(shard, shard, [0, 1], ["f0", "at.x"], how)]
    assert joined(batches, ["at"]).column("at").to_pylist() == [{"x": row} for row in range(47)]


@pytest.fixture
def in_bucket(s3: S3Server) -> Iterator[tuple[FaultProxy, Store, Extent]]:
    """A shard of one row group of 2,000 rows, behind a proxy."""
    buffer, direct = io.BytesIO(), s3.store()
    pq.write_table(table(2000), buffer)
    direct.put("a.parquet", buffer.getvalue())
    with FaultProxy(s3.endpoint_url) as proxy:
        options = s3.options_at(proxy.url)
        source = Source(
            uri=direct.uri, format="parquet", features=tuple(NAMES), storage_options=options
        )
        [extent] = list_inputs(source, max_extent_rows=2000).extents
        yield proxy, Store(direct.uri, options), extent


def test_a_wide_row_group_of_an_object_store_takes_few_requests(
    in_bucket: tuple[FaultProxy, Store, Extent],
):
    proxy, store, extent = in_bucket
    proxy.requests.clear()
    with open_shard(store, extent) as shard:
        batches = [*shard.batches([0], NAMES, Batching(500, 1.0, few_requests=True))]
    assert sum(method == "GET" for method, _, _ in proxy.requests) <= 3
    assert joined(batches, NAMES).equals(table(2000).select(NAMES))


@pytest.mark.parametrize("few_requests", [True, False])
def test_a_store_that_fails_is_not_taken_for_a_broken_shard(
    few_requests: bool, in_bucket: tuple[FaultProxy, Store, Extent]
):
    proxy, store, extent = in_bucket
    with open_shard(store, extent) as shard:
        proxy.rules = (Rule(DENIED, "GET", last=999),)
        with pytest.raises(JobError, match=r"a\.parquet: access denied"):
            list(shard.batches([0], NAMES, Batching(500, 1.0, few_requests)))


def test_rows_before_damage_are_read(tmp_path: Path):
    path, rows = tmp_path / "a.parquet", table(300).select(NAMES)
    pages = {"use_dictionary": False, "data_page_size": 100, "write_batch_size": 50}
    pq.write_table(rows, path, compression="zstd", **pages)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    data = bytearray(path.read_bytes())
    data[middle : middle + 100] = bytes(100)
    path.write_bytes(data)
    shard = pq.ParquetFile(path)
    batches = group_batches(shard, shard, [0], NAMES, Batching(50, 1.0, True))
    read_batches = [next(batches), next(batches)]
    assert joined(read_batches, NAMES).equals(rows.slice(0, 100).combine_chunks())
    with pytest.raises((pa.ArrowException, OSError)):
        list(batches)
