"""Row ranges of Parquet shards, streamed page by page so that a row group may be huge."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.columns import (
    feature_rows,
    features_to_arrow,
    image_column,
    needed_columns,
    pass_through_column,
    text_ids,
    uri_values,
)
from pipeline.extents import Extent
from pipeline.fetch import fetch_many
from pipeline.parquet_inputs import is_unreadable, open_parquet
from pipeline.rows import STAGE, Reader, changed, failed_rows, make_rows
from pipeline.schema import Failure, Reason, clean_message
from pipeline.uri_policy import policy_of, published_uri

_READ_BUFFER_BYTES = 1 << 20
_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 256
_URIS_AT_ONCE = 64


class ParquetStream:
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
            yield failed_rows(self._reader, extent, skip, failure)
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
                raise changed(self._reader.store, extent)
            return
        yield failed_rows(self._reader, extent, skip, failure)

    def _read_batches(self, extent: Extent, skip: int) -> Iterator[pa.Table]:
        store, source = self._reader.store, self._reader.source
        found = store.stat(extent.path)
        if found is None:
            raise FileNotFoundError(extent.path)
        if (found.size_bytes, found.version) != (extent.size_bytes, extent.version):
            raise changed(store, extent)
        rows_max = _URIS_AT_ONCE if source.uri_column else _BATCH_ROWS
        rows_at_once = max(1, min(rows_max, int(_BATCH_BYTES / max(1.0, extent.row_bytes))))
        with store.open(extent.path) as handle:
            # No pre_buffer: it would hold whole column chunks, 2 GB for a huge row group.
            parquet = open_parquet(handle, buffer_size=_READ_BUFFER_BYTES, pre_buffer=False)
            columns = needed_columns(source, parquet.schema_arrow)
            numbers = extent.numbers(skip)
            for groups, position in _groups_with(parquet, numbers):
                for batch in parquet.iter_batches(
                    batch_size=rows_at_once, row_groups=groups, columns=columns
                ):
                    begin = bisect_left(numbers, position)
                    end = bisect_left(numbers, position + batch.num_rows)
                    if begin < end:
                        rows = _take(batch, numbers[begin:end], position)
                        yield self._to_rows(extent.piece(skip + begin, end - begin), rows)
                    position += batch.num_rows

    def _to_rows(self, extent: Extent, table: pa.Table) -> pa.Table:
        """Make rows of those of a shard, which are just the extent's."""
        reader, source = self._reader, self._reader.source
        ids = [f"{extent.path}#{number}" for number in extent.numbers()]
        failures: list[Failure | None] = [None] * table.num_rows
        if source.id_column:
            ids, are_null = text_ids(table.column(source.id_column), ids)
            _fail(failures, are_null, f"{source.id_column} is null")
        uris = [reader.store.url(extent.path)] * table.num_rows
        if source.uri_column:
            given = uri_values(table.column(source.uri_column))
            inputs: pa.Array | list[bytes | None] = self._fetch(given, failures)
            uris = [
                clean_message(published_uri(u)) if u else own
                for u, own in zip(given, uris, strict=True)
            ]
        else:
            inputs = self._inputs(table, failures)
        try:
            passed = {
                field.name: pass_through_column(field, table, extent.path)
                for field in reader.pass_through
            }
        except pa.ArrowInvalid as error:
            return failed_rows(reader, extent, 0, Failure(Reason.BAD_SCHEMA, STAGE, str(error)))
        return make_rows(reader, ids, uris, inputs, failures, passed)

    def _fetch(
        self, uris: Sequence[str | None], failures: list[Failure | None]
    ) -> list[bytes | None]:
        """Return the bytes behind the URIs of the rows that have not failed yet."""
        policy = policy_of(self._reader.source, self._reader.store.uri)
        wanted = [index for index, failure in enumerate(failures) if failure is None]
        images: list[bytes | None] = [None] * len(uris)
        found = fetch_many([uris[index] for index in wanted], policy)
        for index, fetched in zip(wanted, found, strict=True):
            images[index] = fetched.data
            if fetched.failure is not None:
                failures[index] = Failure(fetched.failure[0], STAGE, fetched.failure[1])
        return images

    def _inputs(self, table: pa.Table, failures: list[Failure | None]) -> pa.Array:
        """Return the model's input of each row; what is null is failed."""
        source = self._reader.source
        if source.features:
            values, has_null = feature_rows(source, table)
            if source.null_features == "quarantine":
                _fail(failures, has_null.tolist(), "a feature is null")
                values[has_null] = 0.0
            return features_to_arrow(values)
        images = image_column(source, table)
        _fail(failures, images.is_null().to_pylist(), f"{source.image_column} is null")
        if any(failures):
            images = pc.if_else(pa.array([failure is None for failure in failures]), images, None)
        return images


def _fail(failures: list[Failure | None], where: Sequence[bool], message: str) -> None:
    """Fail the rows that have no input; a failure that a row has already is kept."""
    for index, is_null in enumerate(where):
        if is_null and failures[index] is None:
            failures[index] = Failure(Reason.NULL_INPUT, STAGE, message)


def _take(batch: pa.RecordBatch, numbers: Sequence[int], position: int) -> pa.Table:
    """Return rows of a batch by their numbers in the shard; the batch's first one is `position`."""
    first = numbers[0] - position
    if numbers[-1] - numbers[0] + 1 == len(numbers):
        return pa.Table.from_batches([batch.slice(first, len(numbers))])
    return pa.Table.from_batches([batch]).take([number - position for number in numbers])


def _groups_with(
    parquet: pq.ParquetFile, numbers: Sequence[int]
) -> Iterator[tuple[list[int], int]]:
    """Yield the row groups that hold some rows: neighbours together, with their first row."""
    groups: list[int] = []
    position = begin = 0
    for index in range(parquet.metadata.num_row_groups):
        num_rows = parquet.metadata.row_group(index).num_rows
        if bisect_left(numbers, position) < bisect_left(numbers, position + num_rows):
            if not groups:
                begin = position
            groups.append(index)
        elif groups:
            yield groups, begin
            groups = []
        position += num_rows
    if groups:
        yield groups, begin
