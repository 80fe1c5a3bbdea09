"""An open Parquet shard: its footer, parsed once per process, and batches of its rows."""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.arrays import Numbers
from pipeline.sources.extents import Extent
from pipeline.sources.parquet.footers import arrow_errors, open_parquet
from pipeline.sources.parquet.groups import Batching, group_batches
from pipeline.sources.parquet.sizes import rows_within
from pipeline.sources.rows import require_unchanged
from pipeline.storage.store import Store

_LOCAL_BUFFER_BYTES = 64 << 10
"""Every column has one: with 1 MiB each, the first rows of 1,000 columns took twice as long."""
_REMOTE_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class _Footer:
    """The parsed footer of a shard, cached: successive units often read the same shard."""

    metadata: pq.FileMetaData
    group_ends: Numbers
    """int64 (N,): rows up to the end of each of N row groups."""


_last_footer: dict[tuple[str, str, int, str], _Footer] = {}
"""At most one: a footer of very many row groups is large, and takes a second to parse."""


@dataclass(frozen=True)
class Shard:
    """An open shard."""

    store: Store
    path: str
    parquet: pq.ParquetFile
    buffered: pq.ParquetFile | None
    """The same, in an object store: it reads many columns with one request."""
    group_ends: Numbers

    def groups_with(self, numbers: Sequence[int]) -> Iterator[tuple[list[int], int]]:
        """Yield the row groups that hold some rows: runs of neighbours, each with its first row.

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
        """Return how many rows of some row groups may be in memory at once; see parquet_sizes."""

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
        InfraError: It has changed since it was planned.
        pa.ArrowException: It is broken.
    """
    with store.open(extent.path) as handle:
        # After opening, which pins the version of an object: the checked version is the one read.
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
