"""Read the rows of a unit and yield them slice by slice; formats differ only in here.

A row that cannot be read is a row with a reason. Trouble with the store is raised, because
reading again may cure it. An input that is no longer the one that was planned is raised too:
a new run plans it anew, so that old and new bytes are never mixed under one fingerprint.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import InfraError
from pipeline.inputs import Extent, is_unreadable
from pipeline.job import Source
from pipeline.plan import Unit
from pipeline.schema import (
    ERROR,
    IMAGE,
    ROW_ID,
    URI,
    Failure,
    Reason,
    SliceKey,
    as_array,
    failure_columns,
    source_schema,
)
from pipeline.stats import Counters, measure
from pipeline.storage import Store

STAGE = "read"
_FILES_AT_ONCE = 64
_READ_BUFFER_BYTES = 1 << 20
_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 256


@dataclass(frozen=True)
class Reader:
    """Everything needed to read any unit of one job; plain enough for Ray."""

    store: Store
    source: Source
    pass_through: pa.Schema

    @property
    def schema(self) -> pa.Schema:
        """Return the schema of the tables that `read_slices` yields."""
        return source_schema(list(self.pass_through))


class _Stream(Protocol):
    """The rows of a unit in order: take the next ones, or pass over them unread."""

    def take(self, num_rows: int) -> pa.Table: ...

    def skip(self, num_rows: int) -> None: ...

    def close(self) -> None: ...


def read_slices(
    reader: Reader, unit: Unit, wanted_starts: Set[int]
) -> Iterator[tuple[SliceKey, Counters, pa.Table]]:
    """Yield the wanted slices of a unit, in order.

    Args:
        reader: How to read.
        unit: What to read.
        wanted_starts: First rows of the slices that have no staged part yet.

    Yields:
        The slice's key, its counters (stage `read`) and its rows in `source_schema`.

    Raises:
        InfraError: The store failed, or an input changed since it was planned.
    """
    images = reader.source.format == "images"
    stream: _Stream = (
        _ImageStream(reader, unit.extents) if images else _ParquetStream(reader, unit.extents)
    )
    with contextlib.closing(stream):
        for key in unit.slices():
            if key.start not in wanted_starts:
                stream.skip(key.num_rows)
                continue
            counters: Counters = {}
            with measure(counters, STAGE) as done:
                table = stream.take(key.num_rows)
                done.rows_in = table.num_rows
                done.rows_out = table.column(ERROR).null_count
                done.rows_quarantined = done.rows_in - done.rows_out
                done.bytes_in = done.bytes_out = _encoded_bytes(table)
            yield key, counters, table
            del table  # not kept while the next one is read


def _encoded_bytes(table: pa.Table) -> int:
    return pc.sum(pc.binary_length(table.column(IMAGE))).as_py() or 0


def _rows(
    reader: Reader,
    row_ids: Sequence[str] | pa.Array,
    uris: Sequence[str],
    images: Sequence[bytes | None] | pa.Array,
    failures: Sequence[Failure | None],
    pass_through: pa.Table | None = None,
) -> pa.Table:
    columns = {ROW_ID: pa.array(row_ids, pa.string()), URI: pa.array(uris, pa.string())}
    for field in reader.pass_through:
        columns[field.name] = (
            pa.nulls(len(uris), field.type)
            if pass_through is None
            else pass_through.column(field.name)
        )
    columns[IMAGE] = images if isinstance(images, pa.Array) else pa.array(images, pa.large_binary())
    columns.update(failure_columns(failures))
    return pa.table(columns, schema=reader.schema)


def _failed_rows(reader: Reader, extent: Extent, skip: int, failure: Failure) -> pa.Table:
    """Make one failed row for every row of an extent that could not be read."""
    num_rows = extent.num_rows - skip
    ids = (
        [extent.path]
        if extent.is_whole_shard
        else [f"{extent.path}#{extent.first_row + skip + i}" for i in range(num_rows)]
    )
    uris = [reader.store.url(extent.path)] * num_rows
    return _rows(reader, ids, uris, [None] * num_rows, [failure] * num_rows)


class _ImageStream:
    """Loose image files: an extent is a file is a row."""

    def __init__(self, reader: Reader, extents: Sequence[Extent]) -> None:
        self._reader = reader
        self._extents = extents
        self._next = 0

    def skip(self, num_rows: int) -> None:
        self._next += num_rows

    def take(self, num_rows: int) -> pa.Table:
        wanted = self._extents[self._next : self._next + num_rows]
        self._next += num_rows
        pieces = [
            self._read(wanted[i : i + _FILES_AT_ONCE])
            for i in range(0, len(wanted), _FILES_AT_ONCE)
        ]
        return pa.concat_tables(pieces)

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _read(self, extents: Sequence[Extent]) -> pa.Table:
        limit = self._reader.source.max_image_bytes
        small = [e.path for e in extents if e.size_bytes <= limit]
        found = self._reader.store.read_many(small)
        images: list[bytes | None] = []
        failures: list[Failure | None] = []
        for extent in extents:
            data, failure = self._judge(extent, found.get(extent.path))
            images.append(data)
            failures.append(failure)
        ids = [extent.path for extent in extents]
        uris = [self._reader.store.url(extent.path) for extent in extents]
        return _rows(self._reader, ids, uris, images, failures)

    def _judge(
        self, extent: Extent, found: bytes | Exception | None
    ) -> tuple[bytes | None, Failure | None]:
        if found is None:
            limit = self._reader.source.max_image_bytes
            message = f"{extent.size_bytes} bytes, the limit is {limit}"
            return None, Failure(Reason.TOO_LARGE, STAGE, message, num_bytes=extent.size_bytes)
        if isinstance(found, FileNotFoundError):
            return None, Failure(Reason.MISSING, STAGE, "vanished since it was planned")
        if isinstance(found, Exception):
            raise found
        if len(found) != extent.size_bytes:
            raise _changed(self._reader.store, extent)
        return found, None


class _ParquetStream:
    """Row ranges of Parquet shards, streamed page by page so that a row group may be huge."""

    def __init__(self, reader: Reader, extents: Sequence[Extent]) -> None:
        self._reader = reader
        self._extents = deque(extents)
        self._skip = 0
        self._tables: Iterator[pa.Table] | None = None
        self._rest: pa.Table | None = None

    def skip(self, num_rows: int) -> None:
        while num_rows:
            if self._fill():
                num_rows -= self._cut(num_rows).num_rows
                continue
            left = self._extents[0].num_rows - self._skip
            if num_rows < left:
                self._skip += num_rows
                return
            num_rows -= left
            self._extents.popleft()
            self._skip = 0

    def take(self, num_rows: int) -> pa.Table:
        pieces = []
        while num_rows:
            if not self._fill():
                extent = self._extents.popleft()
                self._tables = self._read(extent, self._skip)
                self._skip = 0
                continue
            pieces.append(self._cut(num_rows))
            num_rows -= pieces[-1].num_rows
        return pa.concat_tables(pieces)

    def close(self) -> None:
        """Let go of the open shard: it refers back to this object, so that it would outlive it."""
        self._tables = self._rest = None

    def _fill(self) -> bool:
        """Have rows at hand from the extent that is open, if one is."""
        while self._rest is None and self._tables is not None:
            self._rest = next(self._tables, None)
            if self._rest is None:
                self._tables = None
        return self._rest is not None

    def _cut(self, num_rows: int) -> pa.Table:
        rows = self._rest
        assert rows is not None, "filled before"
        self._rest = rows.slice(num_rows) if rows.num_rows > num_rows else None
        return rows.slice(0, num_rows)

    def _read(self, extent: Extent, skip: int) -> Iterator[pa.Table]:
        """Yield the rows of an extent from `skip` on; what cannot be read becomes failed rows."""
        if extent.reason is not None:
            failure = Failure(extent.reason, STAGE, extent.message, num_bytes=extent.size_bytes)
            yield _failed_rows(self._reader, extent, skip, failure)
            return
        try:
            for table in self._read_batches(extent, skip):
                yield table
                skip += table.num_rows
        except FileNotFoundError:
            failure = Failure(Reason.MISSING, STAGE, "vanished since it was planned")
        except (pa.ArrowException, OSError) as error:
            if not is_unreadable(error):
                raise
            failure = Failure(Reason.UNREADABLE_SHARD, STAGE, str(error))
        else:
            if skip != extent.num_rows:
                raise _changed(self._reader.store, extent)
            return
        yield _failed_rows(self._reader, extent, skip, failure)

    def _read_batches(self, extent: Extent, skip: int) -> Iterator[pa.Table]:
        store, source = self._reader.store, self._reader.source
        found = store.stat(extent.path)
        if found is None:
            raise FileNotFoundError(extent.path)
        if (found.size_bytes, found.version) != (extent.size_bytes, extent.version):
            raise _changed(store, extent)
        columns = [source.image_column, *self._reader.pass_through.names]
        columns += [source.id_column] if source.id_column else []
        rows_at_once = max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(1.0, extent.row_bytes))))
        with store.open(extent.path) as handle:
            # No pre_buffer: it would hold whole column chunks, 2 GB for a huge row group.
            parquet = pq.ParquetFile(handle, buffer_size=_READ_BUFFER_BYTES, pre_buffer=False)
            first = extent.first_row + skip
            stop = extent.first_row + extent.num_rows
            groups, position = _groups_from(parquet, first, stop)
            for batch in parquet.iter_batches(
                batch_size=rows_at_once, row_groups=groups, columns=list(dict.fromkeys(columns))
            ):
                begin, end = max(first, position), min(stop, position + batch.num_rows)
                if begin < end:
                    piece = batch.slice(begin - position, end - begin)
                    yield self._to_rows(extent, pa.Table.from_batches([piece]), begin)
                position += batch.num_rows

    def _to_rows(self, extent: Extent, table: pa.Table, first_row: int) -> pa.Table:
        source = self._reader.source
        numbers = range(first_row, first_row + table.num_rows)
        ids = [f"{extent.path}#{number}" for number in numbers]
        images = as_array(table.column(source.image_column)).cast(pa.large_binary())
        failures: list[Failure | None] = [
            None if valid else Failure(Reason.NULL_INPUT, STAGE, f"{source.image_column} is null")
            for valid in images.is_valid().to_pylist()
        ]
        if source.id_column:
            given = table.column(source.id_column).cast(pa.string()).to_pylist()
            for index, value in enumerate(given):
                if value is None:
                    message = f"{source.id_column} is null"
                    failures[index] = Failure(Reason.NULL_INPUT, STAGE, message)
            if None in given:
                images = pc.if_else(pa.array([value is not None for value in given]), images, None)
            ids = [
                fallback if value is None else value
                for value, fallback in zip(given, ids, strict=True)
            ]
        uris = [self._reader.store.url(extent.path)] * table.num_rows
        return _rows(self._reader, ids, uris, images, failures, table)


def _groups_from(parquet: pq.ParquetFile, first: int, stop: int) -> tuple[list[int], int]:
    """Return the row groups that hold rows [first, stop) and the first row of the first one."""
    groups: list[int] = []
    position = begin = 0
    for index in range(parquet.metadata.num_row_groups):
        num_rows = parquet.metadata.row_group(index).num_rows
        if position < stop and position + num_rows > first:
            if not groups:
                begin = position
            groups.append(index)
        position += num_rows
    return groups, begin


def _changed(store: Store, extent: Extent) -> InfraError:
    return InfraError(
        f"{store.url(extent.path)}: changed since it was planned; run again to plan it anew"
    )
