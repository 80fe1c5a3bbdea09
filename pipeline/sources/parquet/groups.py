"""The rows of row groups, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

_JOINED_BYTES = 16 << 20
_BUFFERED_BYTES = 512 << 20
"""Row groups of more bytes are read from an object store column by column."""


class Batching(NamedTuple):
    """How rows are put into batches."""

    num_rows: int
    """Rows of a batch, at most."""
    row_bytes: float
    """Bytes of a row in memory, about."""
    few_requests: bool
    """Read row groups that fit into memory from an object store by few requests."""
    rows_at_once: int | None = None
    """Rows that Arrow reads at once, if these may be large; joined to batches as bytes allow."""


def group_batches(
    parquet: pq.ParquetFile,
    buffered: pq.ParquetFile | None,
    groups: Sequence[int],
    columns: Sequence[str],
    how: Batching,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of row groups.

    One thread reads: other readers and the model have the other cores, and over 1,000 columns
    threads take 1.4 times the CPU time.

    Args:
        parquet: The shard.
        buffered: The same, in an object store, by few requests for what is asked for at once.
        groups: The row groups, ascending.
        columns: What to read; a column inside another one has a dot.
        how: How to put them into batches.
    """
    if how.rows_at_once is not None:
        yield from _joined(_stream(parquet, groups, columns, how.rows_at_once), how.num_rows)
    elif buffered is None or not how.few_requests:
        yield from _stream(parquet, groups, columns, how.num_rows)
    else:
        for run, num_rows in _runs(parquet.metadata, groups, how.num_rows):
            file = buffered if num_rows * how.row_bytes <= _BUFFERED_BYTES else parquet
            yield from _stream(file, run, columns, how.num_rows)


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
