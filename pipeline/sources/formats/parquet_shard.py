"""An open Parquet shard: its footer, parsed once per process, and batches of its rows."""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.arrays import Numbers
from pipeline.sources.formats.parquet_footers import arrow_errors, open_parquet
from pipeline.sources.formats.parquet_sizes import rows_within
from pipeline.sources.units import Extent, require_unchanged
from pipeline.storage.store import Store

_LOCAL_BUFFER_BYTES = 64 << 10
"""Per column: with 1 MiB each, the first rows of 1,000 columns took twice as long."""
_REMOTE_BUFFER_BYTES = 1 << 20
_JOINED_BYTES = 16 << 20
_BUFFERED_BYTES = 512 << 20
"""Larger row groups are read from an object store column by column."""


class Batching(NamedTuple):
    """The way to put rows into batches."""

    num_rows: int
    """Maximum rows of a batch."""
    row_bytes: float
    """Approximate bytes of a row in memory."""
    few_requests: bool
    """Whether to read row groups that fit into memory by few requests to an object store."""
    rows_at_once: int | None = None
    """Rows that Arrow reads at once if rows may be large; they are joined to batches by bytes."""


def group_batches(
    parquet: pq.ParquetFile,
    buffered: pq.ParquetFile | None,
    groups: Sequence[int],
    columns: Sequence[str],
    how: Batching,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of row groups.

    One thread reads, because other readers and the model use the other cores. For 1,000 columns
    several threads take 1.4 times the CPU time.

    Args:
        parquet: The shard.
        buffered: The same shard in an object store, read by few requests.
        groups: The row groups, ascending.
        columns: The columns to read; `column.field` for a field.
        how: The way to put them into batches.
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
    """Join neighbouring batches up to limits of rows and bytes."""
    pending: list[pa.RecordBatch] = []
    left_rows, left_bytes = num_rows, _JOINED_BYTES
    try:
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
    except Exception:  # the rows before the damage can be read
        yield from _one(pending)
        raise
    yield from _one(pending)


def _one(batches: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Take the batches out of a list, joined."""
    if len(batches) > 1:
        batches[:] = pa.Table.from_batches(batches).combine_chunks().to_batches()
    while batches:
        yield batches.pop(0)


def _runs(
    metadata: pq.FileMetaData, groups: Sequence[int], num_rows: int
) -> Iterator[tuple[list[int], int]]:
    """Yield as many neighbouring row groups as fill a batch, with their rows."""
    run: list[int] = []
    run_rows = 0
    for group in groups:
        group_rows = metadata.row_group(group).num_rows
        if run and run_rows + group_rows > num_rows:
            yield run, run_rows
            run, run_rows = [], 0
        run.append(group)
        run_rows += group_rows
    if run:
        yield run, run_rows


@dataclass(frozen=True)
class _Footer:
    """The parsed footer of a shard, cached: successive units often read the same shard."""

    metadata: pq.FileMetaData
    group_ends: Numbers
    """int64 (N,), rows up to the end of each of N row groups."""


_last_footer: dict[tuple[str, str, int, str], _Footer] = {}
"""Only the last one: a footer of very many row groups is large and takes a second to parse."""


@dataclass(frozen=True)
class Shard:
    """An open shard."""

    store: Store
    path: str
    parquet: pq.ParquetFile
    buffered: pq.ParquetFile | None
    """The same shard in an object store, opened to read many columns with one request."""
    group_ends: Numbers

    def groups_with(self, numbers: Sequence[int]) -> Iterator[tuple[list[int], int]]:
        """Yield the row groups that hold some rows, as runs of neighbours with their first row.

        Args:
            numbers: Row numbers in the shard, ascending.
        """
        ends = self.group_ends
        first, last = np.searchsorted(ends, (numbers[0], numbers[-1]), "right").tolist()
        position = begin = int(ends[first - 1]) if first else 0
        groups: list[int] = []
        for index in range(first, min(last + 1, len(ends))):
            end = int(ends[index])
            if bisect_left(numbers, position) < bisect_left(numbers, end):
                begin = begin if groups else position
                groups.append(index)
            elif groups:
                yield groups, begin
                groups = []
            position = end
        if groups:
            yield groups, begin

    def num_rows(self, groups: Sequence[int]) -> int:
        """Return the rows of neighbouring row groups."""
        before = int(self.group_ends[groups[0] - 1]) if groups[0] else 0
        return int(self.group_ends[groups[-1]]) - before

    def batches(
        self, groups: Sequence[int], columns: Sequence[str], how: Batching
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of some row groups."""
        with arrow_errors():
            yield from group_batches(self.parquet, self.buffered, groups, columns, how)

    def rows_within(
        self, groups: Sequence[int], columns: Sequence[str], num_rows: int, few_rows: int
    ) -> int:
        """Return how many rows of some row groups may be in memory at once; see `parquet_sizes`."""

        def as_dictionaries(leaves: Sequence[str]) -> pq.ParquetFile:
            handle = opened.enter_context(self.store.open(self.path))
            return _open(self.store, handle, self.parquet.metadata, read_dictionary=[*leaves])

        with contextlib.ExitStack() as opened, arrow_errors():
            return rows_within(self.parquet, as_dictionaries, groups, columns, num_rows, few_rows)


@contextlib.contextmanager
def open_shard(store: Store, extent: Extent) -> Iterator[Shard]:
    """Open the shard of an extent.

    Raises:
        FileNotFoundError: The shard no longer exists.
        InfraError: The shard changed since it was planned.
        pa.ArrowException: The shard is broken.
    """
    with store.open(extent.path) as handle:
        # Opening pins the version of an object, so the version checked after it is the one read.
        require_unchanged(store, extent)
        key = (store.uri, extent.path, extent.size_bytes, extent.version)
        known = _last_footer.get(key)
        parquet = _open(store, handle, known.metadata if known else None)
        if known is None:
            known = _parse(parquet)
            if not store.is_object_store:
                require_unchanged(store, extent)
            _last_footer.clear()
            _last_footer[key] = known
        buffered = None
        if store.is_object_store:
            buffered = open_parquet(handle, metadata=parquet.metadata, pre_buffer=True)
        yield Shard(store, extent.path, parquet, buffered, known.group_ends)


def _open(
    store: Store,
    handle: BinaryIO,
    metadata: pq.FileMetaData | None,
    read_dictionary: Sequence[str] | None = None,
) -> pq.ParquetFile:
    # No pre_buffer: it would hold whole column chunks, 2 GB for a huge row group.
    return open_parquet(
        handle,
        metadata=metadata,
        read_dictionary=read_dictionary,
        buffer_size=_REMOTE_BUFFER_BYTES if store.is_object_store else _LOCAL_BUFFER_BYTES,
        pre_buffer=False,
    )


def _parse(parquet: pq.ParquetFile) -> _Footer:
    with arrow_errors():
        metadata = parquet.metadata
        rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    return _Footer(metadata, np.cumsum(rows, dtype=np.int64))
