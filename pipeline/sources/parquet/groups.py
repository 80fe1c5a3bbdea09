"""The rows of row groups, in batches: streamed, or group by group where these fit into memory.

Arrow's batches keep a decoder, and the dictionary, of every column until a row group ends. Of
1,000 columns of float32, 62,500 rows in each row group, that is 780 MiB, and 170,000 rows/s on one
core; a hundred columns after the other, with all rows of a group, take 500 MiB and make 320,000.
Of larger row groups the numbers themselves weigh more: 500,000 rows take 2.9 GiB either way, and
if the numbers repeat themselves, streaming 250,000 rows takes 0.5 GiB instead of 1.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

_COLUMNS_AT_ONCE = 100
_SMALL_BYTES = 32 << 20
"""Smaller row groups are read with all columns at once, by few requests to an object store."""
_JOINED_BYTES = 16 << 20
_WHOLE_BYTES = 512 << 20
"""Row groups of more bytes are streamed."""


class Batching(NamedTuple):
    """How rows are put into batches."""

    num_rows: int
    """Rows of a batch, at most."""
    row_bytes: float
    """Bytes of a row in memory, about."""
    whole_groups: bool
    """Read row groups that fit into memory before the first batch of them is cut."""
    rows_at_once: int | None = None
    """Rows that Arrow reads at once, if these may be large; joined to batches as bytes allow."""


def group_batches(
    parquet: pq.ParquetFile,
    for_whole_groups: pq.ParquetFile,
    groups: Sequence[int],
    columns: Sequence[str],
    how: Batching,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of row groups.

    One thread reads: other readers and the model have the other cores, and over 1,000 columns
    threads take 1.4 times the CPU time.

    Args:
        parquet: The shard, to stream.
        for_whole_groups: The shard, to read whole row groups.
        groups: The row groups, ascending.
        columns: What to read; a column inside another one has a dot.
        how: How to put them into batches.
    """
    # A dot may also be in a name, which Arrow then finds twice.
    if not how.whole_groups or any("." in name for name in columns):
        if how.rows_at_once is None:
            yield from _stream(parquet, groups, columns, how.num_rows)
        else:
            yield from _joined(_stream(parquet, groups, columns, how.rows_at_once), how.num_rows)
        return
    for run, num_rows in _runs(parquet.metadata, groups, how.num_rows):
        num_bytes = num_rows * how.row_bytes
        if num_bytes > _WHOLE_BYTES:
            yield from _stream(parquet, run, columns, how.num_rows)
            continue
        at_once = len(columns) if num_bytes <= _SMALL_BYTES else _COLUMNS_AT_ONCE
        try:
            batches = iter(_read(for_whole_groups, run, columns, at_once).to_batches(how.num_rows))
        except (pa.ArrowException, OSError):  # rows before the damage can be streamed
            batches = _stream(parquet, run, columns, how.num_rows)
        yield from batches


def _stream(
    parquet: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str], num_rows: int
) -> Iterator[pa.RecordBatch]:
    batches: Iterator[pa.RecordBatch] = parquet.iter_batches(
        batch_size=num_rows, row_groups=[*groups], columns=[*columns], use_threads=False
    )
    return batches


def _joined(batches: Iterator[pa.RecordBatch], num_rows: int) -> Iterator[pa.RecordBatch]:
    """Join neighbouring batches while they are few rows and few bytes."""
    pending: list[pa.RecordBatch] = []
    left_rows, left_bytes = num_rows, _JOINED_BYTES
    for batch in batches:
        if pending and (batch.num_rows > left_rows or batch.nbytes > left_bytes):
            yield from _one(pending)
            pending, left_rows, left_bytes = [], num_rows, _JOINED_BYTES
        pending.append(batch)
        left_rows, left_bytes = left_rows - batch.num_rows, left_bytes - batch.nbytes
        del batch
        if left_rows <= 0 or left_bytes <= 0:  # not kept while the next one is read
            yield from _one(pending)
            pending, left_rows, left_bytes = [], num_rows, _JOINED_BYTES
    yield from _one(pending)


def _one(batches: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Take batches out of a list, joined."""
    if len(batches) > 1:
        batches[:] = pa.Table.from_batches(batches).combine_chunks().to_batches()
    while batches:
        yield batches.pop(0)


def _runs(
    metadata: pq.FileMetaData, groups: Sequence[int], num_rows: int
) -> Iterator[tuple[list[int], int]]:
    """Yield neighbouring row groups, as many as fill a batch, and their rows."""
    run: list[int] = []
    run_rows = 0
    for group in groups:
        own = metadata.row_group(group).num_rows
        if run and run_rows + own > num_rows:
            yield run, run_rows
            run, run_rows = [], 0
        run.append(group)
        run_rows += own
    if run:
        yield run, run_rows


def _read(
    parquet: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str], at_once: int
) -> pa.Table:
    pieces = [
        parquet.read_row_groups(
            [*groups], columns=[*columns[start : start + at_once]], use_threads=False
        )
        for start in range(0, len(columns), at_once)
    ]
    arrays = [column for piece in pieces for column in piece.columns]
    return pa.Table.from_arrays(
        arrays, schema=pa.schema(f for piece in pieces for f in piece.schema)
    )
