"""An open Parquet shard: its footer, parsed once per process, and batches of its rows."""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.arrays import Numbers
from pipeline.sources.extents import Extent
from pipeline.sources.parquet_footers import arrow_errors, open_parquet
from pipeline.sources.rows import require_unchanged
from pipeline.storage.store import Store

_READ_BUFFER_BYTES = 1 << 20


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
    group_ends: Numbers
    opened: contextlib.ExitStack
    """Closes what is opened later."""

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

    def batches(
        self, parquet: pq.ParquetFile, rows: int, groups: Sequence[int], columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of some row groups, `rows` per batch."""
        with arrow_errors():
            yield from parquet.iter_batches(
                batch_size=rows, row_groups=[*groups], columns=[*columns]
            )

    def again(
        self, int96_unit: str, rows: int, groups: Sequence[int], columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        """Yield the same rows again, with INT96 in another unit."""
        handle = self.opened.enter_context(self.store.open(self.path))
        parquet = open_parquet(
            handle,
            int96_unit=int96_unit,
            metadata=self.parquet.metadata,
            buffer_size=_READ_BUFFER_BYTES,
            pre_buffer=False,
        )
        yield from self.batches(parquet, rows, groups, columns)


@contextlib.contextmanager
def open_shard(store: Store, extent: Extent) -> Iterator[Shard]:
    """Open the shard of an extent.

    Raises:
        FileNotFoundError: The shard no longer exists.
        InfraError: It has changed since it was planned.
        pa.ArrowException: It is broken.
    """
    with contextlib.ExitStack() as opened:
        handle = opened.enter_context(store.open(extent.path))
        # After opening, which pins the version of an object: the checked version is the one read.
        require_unchanged(store, extent)
        key = (store.uri, extent.path, extent.size_bytes, extent.version)
        known = _last_footer.get(key)
        # No pre_buffer: it would hold whole column chunks, 2 GB for a huge row group.
        parquet = open_parquet(
            handle,
            metadata=known.metadata if known else None,
            buffer_size=_READ_BUFFER_BYTES,
            pre_buffer=False,
        )
        if known is None:
            known = _parse(parquet)
            if not store.is_object_store:
                require_unchanged(store, extent)
            _last_footer.clear()
            _last_footer[key] = known
        yield Shard(store, extent.path, parquet, known.group_ends, opened)


def _parse(parquet: pq.ParquetFile) -> _Footer:
    with arrow_errors():
        metadata = parquet.metadata
        rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    return _Footer(metadata, np.cumsum(rows, dtype=np.int64))
