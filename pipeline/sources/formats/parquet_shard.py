"""An open Parquet shard: its footer, batches of its rows, and how many rows fit into memory.

A footer holds the bytes of columns as they are stored. Rows may be larger by any factor: many rows
may refer to a value that a dictionary stores once, and the largest rows may be neighbours. Arrow
cuts batches by rows alone, so the number of rows is chosen before it reads. To read all columns as
dictionaries would bound them as well, but takes five times as long where texts are unique.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.core.arrays import Numbers
from pipeline.sources.formats.parquet_footers import arrow_errors, is_below, open_parquet
from pipeline.sources.formats.table_view import TableFile, TableView, View
from pipeline.sources.units import Extent, require_unchanged
from pipeline.storage.store import Store, StoredFile

MAX_BATCH_BYTES = 128 << 20
_LOCAL_BUFFER_BYTES = 64 << 10
"""Per column: with 1 MiB each, the first rows of 1,000 columns took twice as long."""
_REMOTE_BUFFER_BYTES = 1 << 20
_JOINED_BYTES = 16 << 20
_BUFFERED_BYTES = 512 << 20
"""Larger row groups are read from an object store column by column."""
_USUAL_RATIO = 100
"""Text compresses three to ten times; values that compress more repeat themselves."""
_PREFIXES = "DELTA_BYTE_ARRAY"
_FEW_PREFIXED = 16
"""Rows of such columns that are read at once: each may have all stored bytes."""
_NUMBER_BYTES = 8
_LISTS = (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)

OpenAsDictionaries = Callable[[Sequence[str]], pq.ParquetFile]
"""Opens the shard so that some leaves of bytes are read as dictionaries, not copied per row."""


@dataclass(frozen=True)
class _Leaf:
    index: int
    path: str
    is_bytes: bool
    varies: bool
    """Whether rows may have different sizes."""
    stays: bool
    """Whether Arrow leaves the values in their dictionary."""


@dataclass(frozen=True)
class _Group:
    """Facts in a footer about the columns of varying size of a row group."""

    index: int
    num_rows: int
    stored_bytes: float
    """Unpacked bytes. A row, and all rows together, hold more only by references to a dictionary,
    or by prefixes that values share with earlier ones."""
    packed_bytes: int
    prefixed_bytes: float
    """Maximum bytes of a row in columns that store such prefixes once."""
    row_bytes: float
    """Mean bytes of the lists of numbers of a row."""
    dictionaries: Sequence[tuple[_Leaf, pq.ColumnChunkMetaData]]
    """The leaves with a dictionary."""
    values_per_row: float
    """Mean values per row of these leaves; more than one for lists."""


def rows_within(
    parquet: pq.ParquetFile,
    open_as_dictionaries: OpenAsDictionaries,
    groups: Sequence[int],
    columns: Sequence[str],
    num_rows: int,
    few_rows: int,
) -> int:
    """Return how many rows of some row groups Arrow may read at once; at least one.

    Args:
        parquet: The open shard.
        open_as_dictionaries: Opens it again if the footer does not bound the size of rows.
        groups: Neighbouring row groups.
        columns: The columns or leaves to read.
        num_rows: Rows to read at once if memory allows.
        few_rows: Maximum rows where large rows may be neighbours.
    """
    leaves = [*_varying(parquet, columns)]
    if not leaves:
        return num_rows
    row_groups = [_group(parquet.metadata, index, leaves) for index in groups]
    rows = num_rows
    is_usual = all(g.stored_bytes <= _USUAL_RATIO * g.packed_bytes for g in row_groups)
    if _stored_at_once(row_groups, num_rows) > MAX_BATCH_BYTES:
        rows = min(num_rows, few_rows if is_usual else 1)
    most = min(num_rows, sum(group.num_rows for group in row_groups))
    prefixed = max(group.prefixed_bytes for group in row_groups)
    if most * prefixed > MAX_BATCH_BYTES:
        rows = min(rows, max(_FEW_PREFIXED if is_usual else 1, int(MAX_BATCH_BYTES / prefixed)))
    longest = max(_longest(open_as_dictionaries, group, most) for group in row_groups)
    row_bytes = longest + max(group.row_bytes for group in row_groups)
    if min(rows, most) * row_bytes > MAX_BATCH_BYTES:
        rows = max(1, int(MAX_BATCH_BYTES / row_bytes))
    return rows


def _varying(parquet: pq.ParquetFile, columns: Sequence[str]) -> Iterator[_Leaf]:
    """Yield the leaves of columns of bytes or lists; the rows of others have one size."""
    wanted = frozenset(columns)
    schema = parquet.schema
    for index in range(len(schema)):
        leaf = schema.column(index)
        is_bytes = leaf.physical_type == "BYTE_ARRAY"
        if not is_bytes and not leaf.max_repetition_level:
            continue
        if is_below(leaf.path, wanted):
            top = parquet.schema_arrow.get_field_index(leaf.path.split(".")[0])
            dtype = parquet.schema_arrow.field(top).type if top >= 0 else pa.null()
            yield _Leaf(
                index,
                leaf.path,
                is_bytes,
                is_bytes or not pa.types.is_fixed_size_list(dtype),
                pa.types.is_dictionary(dtype),
            )


def _group(metadata: pq.FileMetaData, index: int, leaves: Sequence[_Leaf]) -> _Group:
    group = metadata.row_group(index)
    num_rows = max(1, group.num_rows)
    stored, packed, prefixed, row_bytes, most_values = 0.0, 0, 0.0, 0.0, 1.0
    dictionaries: list[tuple[_Leaf, pq.ColumnChunkMetaData]] = []
    for leaf in leaves:
        chunk = group.column(leaf.index)
        values = max(1.0, chunk.num_values / num_rows)
        size = float(chunk.total_uncompressed_size)
        if not leaf.is_bytes:
            size = max(size, float(_NUMBER_BYTES * chunk.num_values))
            row_bytes += _NUMBER_BYTES * values
        if leaf.is_bytes and _PREFIXES in chunk.encodings:
            prefixed += values * size
        if leaf.varies:
            stored, packed = stored + size, packed + chunk.total_compressed_size
        is_encoded = any("DICTIONARY" in name for name in chunk.encodings)
        if leaf.is_bytes and not leaf.stays and (is_encoded or chunk.has_dictionary_page):
            dictionaries.append((leaf, chunk))
            most_values = max(most_values, values)
    return _Group(index, num_rows, stored, packed, prefixed, row_bytes, dictionaries, most_values)


def _stored_at_once(groups: Sequence[_Group], num_rows: int) -> float:
    """Return the maximum stored bytes of the row groups in which `num_rows` rows may lie."""
    ends = np.cumsum([group.num_rows for group in groups])
    stored = np.append(0.0, np.cumsum([group.stored_bytes for group in groups]))
    # From the last row of each group on.
    last = np.searchsorted(ends, ends + num_rows - 2, "right")
    return float((stored[np.minimum(last, len(groups) - 1) + 1] - stored[:-1]).max())


def _longest(open_as_dictionaries: OpenAsDictionaries, group: _Group, num_rows: int) -> float:
    """Return the maximum bytes of a row by references to dictionaries.

    The footer is asked first, then the dictionaries themselves. They come with the first row of
    their columns; reading any row takes as much memory.
    """
    total = sum(int(chunk.total_uncompressed_size) for _, chunk in group.dictionaries)
    if num_rows * group.values_per_row * total > MAX_BATCH_BYTES:
        paths = [leaf.path for leaf, _ in group.dictionaries]
        first = next(
            open_as_dictionaries(paths).iter_batches(
                batch_size=1, row_groups=[group.index], columns=paths, use_threads=False
            )
        )
        total = sum(_longest_value(column) for column in first.columns)
    return group.values_per_row * total


def _longest_value(column: pa.Array) -> int:
    if isinstance(column.type, pa.BaseExtensionType):
        return _longest_value(column.storage)
    if pa.types.is_dictionary(column.type):
        return int(pc.max(pc.binary_length(column.dictionary)).as_py() or 0)
    if pa.types.is_struct(column.type):
        return sum(_longest_value(field) for field in column.flatten())
    if pa.types.is_map(column.type):
        return _longest_value(column.keys) + _longest_value(column.items)
    return _longest_value(column.values) if isinstance(column, _LISTS) else 0


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
    view: View
    """Its columns, which are those of the table if it is a file of one."""
    given: tuple[str | None, ...] = ()
    """As `Extent.given`."""

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
        stored = self.view.stored(columns)
        with arrow_errors():
            for batch in group_batches(self.parquet, self.buffered, groups, stored, how):
                yield self.view.shown(batch, columns, self.given)
                del batch  # not kept while the next one is read

    def rows_within(
        self, groups: Sequence[int], columns: Sequence[str], num_rows: int, few_rows: int
    ) -> int:
        """Return how many rows of some row groups may be in memory at once."""

        def as_dictionaries(leaves: Sequence[str]) -> pq.ParquetFile:
            handle = opened.enter_context(self.store.open(self.path))
            return _open(self.store, handle, self.parquet.metadata, read_dictionary=[*leaves])

        with contextlib.ExitStack() as opened, arrow_errors():
            stored = self.view.stored(columns)
            return rows_within(self.parquet, as_dictionaries, groups, stored, num_rows, few_rows)


@contextlib.contextmanager
def open_shard(store: Store, extent: Extent, table: pa.Schema | None = None) -> Iterator[Shard]:
    """Open the shard of an extent.

    Args:
        table: The table of which the shard is a file, as `TableFile.table`.

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
        schema = parquet.schema_arrow
        view = View(schema) if table is None else TableView(table, schema)
        yield _shard(store, extent.path, handle, parquet, known.group_ends, view, extent.given)


def _shard(
    store: Store,
    path: str,
    handle: BinaryIO,
    parquet: pq.ParquetFile,
    group_ends: Numbers,
    view: View,
    given: tuple[str | None, ...],
) -> Shard:
    buffered = None
    if store.is_object_store:
        buffered = open_parquet(handle, metadata=parquet.metadata, pre_buffer=True)
    return Shard(store, path, parquet, buffered, group_ends, view, given)


def shard_of(
    store: Store, shard: StoredFile, handle: BinaryIO, parquet: pq.ParquetFile, view: View
) -> Shard:
    """Return a listed shard that is open, and whose footer is read."""
    given = shard.given if isinstance(shard, TableFile) else ()
    parquet = _open(store, handle, parquet.metadata)
    return _shard(store, shard.path, handle, parquet, _parse(parquet).group_ends, view, given)


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
