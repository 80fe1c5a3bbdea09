"""Parquet: columns hold images, URIs, features or texts; footers count the rows."""

from __future__ import annotations

import contextlib
import functools
import math
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.backoff import BAD_BLOCK, BadBlockError, Retries, is_bad_block
from pipeline.core.errors import AccessDenied, InputMissing
from pipeline.core.failures import Failure, Reason
from pipeline.core.figures import READ
from pipeline.core.ranges import Ranges
from pipeline.core.semantics import SEMANTICS
from pipeline.job.source import FIELDS_OF_COLUMNS, Source
from pipeline.sources.columns.column_path import take_paths
from pipeline.sources.columns.value_sizes import bounded
from pipeline.sources.formats.parquet_choice import chosen_rows, may_have_rows
from pipeline.sources.formats.parquet_extents import extents_of
from pipeline.sources.formats.parquet_footers import (
    Needed,
    declare_columns,
    is_unreadable,
    named_columns,
    needed_columns,
    read_footers,
)
from pipeline.sources.formats.parquet_shard import MAX_BATCH_BYTES, Batching, Shard, open_shard
from pipeline.sources.formats.table_view import TableFile, narrowed, view_of
from pipeline.sources.input_columns import columns_of
from pipeline.sources.rows import Reader, to_rows
from pipeline.sources.source_format import (
    CountsRows,
    FirstRows,
    LeftOut,
    Measured,
    RowIds,
    Rows,
    SourceFormat,
    failed_rows,
)
from pipeline.sources.units import Extent, require_unchanged
from pipeline.storage.store import Store, StoredFile

_FIRST_ROWS = 32
_BATCH_BYTES = 16 << 20
_TABLE_BATCH_BYTES = 64 << 20
"""For tables, each of whose columns costs time per batch."""
_FEW_ROWS, _FEW_TABLE_ROWS = 16, 4096
"""Rows that are read at once if large ones may be neighbours."""


def read_tables(reader: Reader, extent: Extent) -> Iterator[pa.Table]:
    """Yield the rows of an extent; unreadable rows become failed rows.

    Damage costs the rest of its row group, from the first unreadable row on: always the same rows,
    whatever is read with them.
    """
    if extent.reason is not None:
        failure = Failure(extent.reason, READ, extent.message, num_bytes=extent.size_bytes)
        yield failed_rows(reader, extent, 0, failure)
        return
    damage = yield from _read_until_damage(reader, extent)
    if damage is None:
        return
    is_bad_disk = damage.failure.message == BAD_BLOCK  # each group would wait again
    groups = [] if is_bad_disk else _by_groups(reader, extent, damage.first)
    if not groups:
        yield failed_rows(reader, extent, *damage)
    for group in groups:
        damage = yield from _read_until_damage(reader, group, one_by_one=True)
        if damage is not None:
            yield failed_rows(reader, group, *damage)


class _Damage(NamedTuple):
    """The first row of an extent that cannot be read, and why."""

    first: int
    failure: Failure


def _read_until_damage(
    reader: Reader, extent: Extent, *, one_by_one: bool = False
) -> Generator[pa.Table, None, _Damage | None]:
    skip, retries = 0, Retries(limit_s=math.inf)
    while True:
        try:
            for table in _read_batches(reader, extent, skip, one_by_one=one_by_one):
                skip += table.num_rows
                yield table
                del table
        except FileNotFoundError:
            if reader.table is not None:
                raise InputMissing(
                    f"{reader.store.url(extent.path)}: gone since the run planned, as by VACUUM; "
                    "run again to read the newest version of the table"
                ) from None
            return _Damage(skip, Failure(Reason.MISSING, READ, "vanished since it was planned"))
        except (pa.ArrowException, OSError, BadBlockError, AccessDenied) as error:
            if is_bad_block(error) and retries.wait():
                continue
            if not is_unreadable(error):
                raise
            message = BAD_BLOCK if is_bad_block(error) else str(error)
        else:
            if skip == extent.num_rows:
                return None
            message = "damaged: a page holds too few rows"
        break
    _require_unchanged(reader, extent)  # a file looks broken while it is written
    return _Damage(skip, Failure(Reason.UNREADABLE_SHARD, READ, message))


def _by_groups(reader: Reader, extent: Extent, skip: int) -> list[Extent]:
    """Return the rest of an extent by row groups; [] if the shard can no longer be opened."""
    numbers = extent.numbers(skip)
    try:
        with open_shard(reader.store, extent, reader.table) as shard:
            ends = [bisect_left(numbers, end) for end in shard.group_ends.tolist()]
    except (pa.ArrowException, OSError, BadBlockError, AccessDenied):
        return []
    cuts = sorted({0, *ends, len(numbers)})
    return [extent.piece(skip + begin, end - begin) for begin, end in pairwise(cuts)]


def _require_unchanged(reader: Reader, extent: Extent) -> None:
    """Raise if the shard was written while it was read; a deleted or denied one was not."""
    with contextlib.suppress(FileNotFoundError, AccessDenied):
        require_unchanged(reader.store, extent)


def _read_batches(
    reader: Reader, extent: Extent, skip: int, *, one_by_one: bool
) -> Iterator[pa.Table]:
    store = reader.store
    with open_shard(store, extent, reader.table) as shard:
        needed = needed_columns(reader.source, shard.view.schema, extent.path)
        numbers = extent.numbers(skip)
        for groups, position in shard.groups_with(numbers):
            for batch in _batches(reader, shard, extent, groups, needed, one_by_one=one_by_one):
                begin = bisect_left(numbers, position)
                end = bisect_left(numbers, position + batch.num_rows)
                if begin < end:
                    wanted = numbers[begin:end]
                    rows = take_paths(_take(batch, wanted, position), needed.paths)
                    yield to_rows(reader, extent.path, wanted, rows, [None] * len(wanted))
                    del rows  # not kept while the next ones are read
                position += batch.num_rows
                del batch
                if position > numbers[-1]:
                    return


def _batches(
    reader: Reader,
    shard: Shard,
    extent: Extent,
    groups: Sequence[int],
    needed: Needed,
    *,
    one_by_one: bool,
) -> Iterator[pa.RecordBatch]:
    """Yield the batches of row groups."""
    how = _batching(reader, extent, shard.num_rows(groups))
    is_table = columns_of(reader.source).has_small_rows
    few_rows = _FEW_TABLE_ROWS if is_table else _FEW_ROWS
    most_rows = 1 if one_by_one else how.num_rows
    safe_rows = shard.rows_within(groups, needed.read, most_rows, few_rows)
    if safe_rows < how.num_rows:
        how = how._replace(rows_at_once=safe_rows, few_requests=False)
    for batch in shard.batches(groups, needed.read, how):
        for piece in bounded(batch, MAX_BATCH_BYTES):
            if not reader.store.is_object_store:  # an object cannot change under an open file
                _require_unchanged(reader, extent)
            yield piece
            del piece  # not kept while the next one is read
        del batch


def _batching(reader: Reader, extent: Extent, group_rows: int) -> Batching:
    """Return how to read an extent from row groups with a total of `group_rows` rows."""
    columns = columns_of(reader.source)
    is_table = columns.has_small_rows
    row_bytes = max(extent.row_bytes, _vector_bytes(reader), 1.0)
    fit = int((_TABLE_BATCH_BYTES if is_table else _BATCH_BYTES) / row_bytes)
    rows = max(1, min(columns.rows_at_once, fit))
    # Most slices have a power of two of rows; a slice across several batches is copied.
    num_rows = 1 << (rows.bit_length() - 1)
    is_mostly_wanted = 2 * extent.num_rows >= group_rows
    return Batching(num_rows, row_bytes, few_requests=is_table and is_mostly_wanted)


def _vector_bytes(reader: Reader) -> int:
    """Return the bytes of the feature vectors of a row, which may be encoded in fewer."""
    types = [field.type for field in reader.fields if pa.types.is_fixed_size_list(field.type)]
    return sum(dtype.list_size * dtype.value_type.bit_width // 8 for dtype in types)


def _take(batch: pa.RecordBatch, numbers: Sequence[int], position: int) -> pa.Table:
    """Return rows of a batch by their numbers in the shard; the batch begins at `position`."""
    # Arrow cannot choose rows of views, only slices.
    runs = Ranges.of(numbers).ranges()
    pieces = [batch.slice(run.start - position, len(run)) for run in runs]
    table = pa.Table.from_batches(pieces)
    return table if len(pieces) == 1 else table.combine_chunks()


class Parquet(SourceFormat):
    """Parquet shards, read page by page."""

    name = "parquet"
    suffixes = (".parquet", ".pq")
    counts_rows: CountsRows = "footer"
    semantics = SEMANTICS["parquet"]
    file_types = frozenset(["Parquet"])
    fields = frozenset([*FIELDS_OF_COLUMNS, "where"])

    def first_rows(self, store: Store, shard: StoredFile, source: Source) -> FirstRows:
        """Read only one batch: a row group may hold all images of a shard."""
        with store.open(shard.path) as handle:
            file = pq.ParquetFile(handle)
            view = view_of(shard, file.schema_arrow)
            names, given = view.schema.names, shard.given if isinstance(shard, TableFile) else ()
            rows, end = view.schema.empty_table(), 0
            for batch in file.iter_batches(batch_size=_FIRST_ROWS, columns=view.stored(names)):
                first, end = end, end + batch.num_rows
                live = shard.rows if isinstance(shard, TableFile) else None
                wanted = range(first, end) if live is None else live.within(first, end)
                if wanted:
                    rows = _take(view.shown(batch, names, given), wanted, first)
                    break
        return FirstRows(rows, "" if len(rows) else "has no rows")

    def row_ids(self, source: Source) -> RowIds:
        return "column" if source.id_column else "path#row"

    def measure(
        self, store: Store, shards: Sequence[StoredFile], source: Source, *, max_extent_rows: int
    ) -> Measured:
        """Read the footers, choose rows, and join neighbouring row groups to extents."""
        num_shards = len(shards)
        table = next((file.table for file in shards if isinstance(file, TableFile)), None)
        choose = None
        if source.where is not None:
            shards = [shard for shard in shards if may_have_rows(source, shard)]
            choose = functools.partial(chosen_rows, store, source)
        footers = read_footers(store, shards, source, choose)
        declared, fields = declare_columns(store, source, shards, footers)
        extents = [
            extent
            for shard, footer in zip(shards, footers, strict=True)
            for extent in extents_of(shard, footer, source, declared, max_extent_rows)
        ]
        table = table and narrowed(table, named_columns(source))
        pairs = zip(shards, footers, strict=True)
        left_out = LeftOut(
            sum(footer.num_left_out(shard) for shard, footer in pairs), num_shards - len(shards)
        )
        return Measured(tuple(extents), declared, fields=fields, table=table, left_out=left_out)

    def read(
        self, reader: Reader, extents: Sequence[Extent], is_wanted: Callable[[int], bool]
    ) -> Iterator[Rows]:
        [extent] = extents
        return map(Rows, read_tables(reader, extent))


FORMAT = Parquet()
