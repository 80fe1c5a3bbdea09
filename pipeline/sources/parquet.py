"""Row ranges of Parquet shards, streamed page by page so that a row group may be huge."""

from __future__ import annotations

import contextlib
import itertools
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.backoff import BAD_BLOCK, TRIES, BadBlockError, is_bad_block, wait_before_retry
from pipeline.core.counters import ROUNDED, Counters, StageCounters, add
from pipeline.core.errors import JobError
from pipeline.core.failures import Failure, Reason
from pipeline.core.printable import clean_message
from pipeline.core.schema import FEATURES, IMAGE, IS_ROUNDED
from pipeline.job.source import Source
from pipeline.sources.extents import Extent
from pipeline.sources.feature_columns import FeatureRows, feature_rows, features_to_arrow
from pipeline.sources.fetch import fetch_many
from pipeline.sources.fetch_policy import policy_of, published_uri
from pipeline.sources.int96 import Int96Reader, Moments, int96_columns
from pipeline.sources.parquet_columns import image_column, needed_columns, text_ids, uri_values
from pipeline.sources.parquet_footers import is_unreadable
from pipeline.sources.parquet_shard import Shard, open_shard
from pipeline.sources.pass_through import pass_through
from pipeline.sources.rows import STAGE, Reader, changed, failed_rows, make_rows, require_unchanged

Failures = list[Failure | None]
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
        self.counted: Counters = {}

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
        self.counted = {}
        while num_rows:
            if not self._fill():
                extent = self._extents.popleft()
                self._tables = self._read(extent, self._skip)
                self._skip = 0
                continue
            pieces.append(self._cut(num_rows))
            num_rows -= pieces[-1].num_rows
        rows = pa.concat_tables(pieces, promote_options="default")
        if IS_ROUNDED in rows.column_names:
            # Rows whose features float32 cannot hold exactly.
            if num_rounded := pc.sum(rows.column(IS_ROUNDED)).as_py():
                add(self.counted, ROUNDED, StageCounters(rows_out=num_rounded))
            rows = rows.drop_columns(IS_ROUNDED)
        return rows

    def close(self) -> None:
        """Close the open shard, which a reference cycle would keep open."""
        self._tables = self._rest = None

    def _fill(self) -> bool:
        """Read on in the open extent if no rows are left of it; tell whether there are rows."""
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
        """Yield the rows of an extent from `skip` on; unreadable rows become failed rows."""
        if extent.reason is not None:
            failure = Failure(extent.reason, STAGE, extent.message, num_bytes=extent.size_bytes)
            yield failed_rows(self._reader, extent, skip, failure)
            return
        for attempt in itertools.count(1):
            try:
                for table in self._read_batches(extent, skip):
                    yield table
                    skip += table.num_rows
            except FileNotFoundError:
                failure = Failure(Reason.MISSING, STAGE, "vanished since it was planned")
            except (pa.ArrowException, OSError, BadBlockError) as error:
                if is_bad_block(error) and attempt < TRIES:
                    wait_before_retry(attempt)
                    continue
                if not is_unreadable(error):
                    raise
                self._require_unchanged(extent)  # a file looks broken while it is written
                message = BAD_BLOCK if is_bad_block(error) else str(error)
                failure = Failure(Reason.UNREADABLE_SHARD, STAGE, message)
            else:
                if skip != extent.num_rows:
                    raise changed(self._reader.store, extent)
                return
            yield failed_rows(self._reader, extent, skip, failure)
            return

    def _require_unchanged(self, extent: Extent) -> None:
        """Raise if the shard was written while it was read; a deleted one was not."""
        with contextlib.suppress(FileNotFoundError):
            require_unchanged(self._reader.store, extent)

    def _read_batches(self, extent: Extent, skip: int) -> Iterator[pa.Table]:
        store = self._reader.store
        with open_shard(store, extent) as shard:
            columns = needed_columns(self._reader.source, shard.parquet.schema_arrow)
            numbers = extent.numbers(skip)
            for groups, position in shard.groups_with(numbers):
                for batch, problems in self._batches(shard, extent, groups, columns):
                    begin = bisect_left(numbers, position)
                    end = bisect_left(numbers, position + batch.num_rows)
                    if begin < end:
                        own = numbers[begin:end]
                        failed = {
                            index: problems[number - position]
                            for index, number in enumerate(own if problems else ())
                            if number - position in problems
                        }
                        rows = _take(batch, own, position)
                        yield self._to_rows(extent.piece(skip + begin, end - begin), rows, failed)
                    position += batch.num_rows

    def _batches(
        self, shard: Shard, extent: Extent, groups: Sequence[int], columns: Sequence[str]
    ) -> Iterator[tuple[pa.RecordBatch, dict[int, str]]]:
        """Yield the batches of row groups, each with its rows of invalid timestamps -> message."""
        reader, source = self._reader, self._reader.source
        rows_max = _URIS_AT_ONCE if source.uri_column else _BATCH_ROWS
        rows_at_once = max(1, min(rows_max, int(_BATCH_BYTES / max(1.0, extent.row_bytes))))
        times: Int96Reader | None = None
        if names := int96_columns(shard.parquet, columns):
            as_ns = [f.name for f in reader.pass_through if str(f.type).startswith("timestamp[ns")]
            times = Int96Reader(
                names, as_ns, lambda unit, only: shard.again(unit, rows_at_once, groups, only)
            )
        for batch in shard.batches(shard.parquet, rows_at_once, groups, columns):
            checked = times.check(batch) if times else Moments(batch, {})
            if not reader.store.is_object_store:  # an object cannot change under an open file
                self._require_unchanged(extent)
            yield checked.rows, checked.problems

    def _to_rows(self, extent: Extent, table: pa.Table, failed: dict[int, str]) -> pa.Table:
        """Turn the extent's rows into `reader.schema`; `failed` maps row -> message."""
        reader, source = self._reader, self._reader.source
        ids = [f"{extent.path}#{number}" for number in extent.numbers()]
        failures: Failures = [None] * table.num_rows
        if source.id_column:
            ids, are_null, broken = text_ids(table.column(source.id_column), ids)
            _fail(failures, are_null, f"{source.id_column} is null")
            for row, text in broken.items():
                message = f"{source.id_column} is not UTF-8: {text}"
                failures[row] = Failure(Reason.UNIDENTIFIED, STAGE, message)
        passed, problems = pass_through(reader.pass_through, reader.folders, table, extent.path)
        for row, message in {**problems, **failed}.items():
            failures[row] = failures[row] or Failure(Reason.BAD_SCHEMA, STAGE, message)
        uris = [reader.store.url(extent.path)] * table.num_rows
        if source.features:
            found = self._features(extent, table, failures)
            rows = make_rows(
                reader, ids, uris, {FEATURES: features_to_arrow(found.values)}, failures, passed
            )
            return rows.append_column(IS_ROUNDED, pa.array(found.is_rounded))
        if source.uri_column:
            given = uri_values(table.column(source.uri_column))
            images: pa.Array | list[bytes | None] = self._fetch(given, failures)
            uris = [
                clean_message(published_uri(u)) if u else own
                for u, own in zip(given, uris, strict=True)
            ]
        else:
            images = _images(source, table, failures)
        return make_rows(reader, ids, uris, {IMAGE: images}, failures, passed)

    def _fetch(self, uris: Sequence[str | None], failures: Failures) -> list[bytes | None]:
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

    def _features(self, extent: Extent, table: pa.Table, failures: Failures) -> FeatureRows:
        """Return the feature vectors, float32 (N, F); a row without them fails and gets zeros.

        Raises:
            JobError: Integers would be rounded, and the job does not allow it.
        """
        source = self._reader.source
        found = feature_rows(source, table)
        if found.inexact and not source.lossy_features:
            name, number = next(iter(found.inexact.items()))
            raise JobError(
                f"source.features: {name} holds {number} in {extent.path}, which float32 rounds to "
                f"{int(np.float32(number))}; leave the column out, or accept rounded whole numbers "
                "with source.lossy_features: true"
            )
        if source.null_features == "quarantine":
            _fail_features(failures, Reason.NULL_INPUT, found.nulls, "null")
            found.values[found.is_null()] = 0.0
        _fail_features(failures, Reason.NON_FINITE, found.overflows, "too large for float32")
        found.values[found.is_overflow()] = 0.0
        return found


def _images(source: Source, table: pa.Table, failures: Failures) -> pa.Array:
    """Return the encoded images; a row without one fails."""
    images = image_column(source, table)
    _fail(failures, images.is_null().to_pylist(), f"{source.image_column} is null")
    if any(failures):
        images = pc.if_else(pa.array([failure is None for failure in failures]), images, None)
    return images


def _fail_features(
    failures: Failures, reason: Reason, where: Mapping[str, npt.NDArray[np.bool_]], what: str
) -> None:
    """Fail the rows with invalid features; earlier failures of a row stay."""
    rows = sorted({row for mask in where.values() for row in np.flatnonzero(mask).tolist()})
    for row in rows:
        names = [name for name, mask in where.items() if mask[row]]
        which = f"feature {names[0]} is" if len(names) == 1 else f"features {', '.join(names)} are"
        failures[row] = failures[row] or Failure(reason, STAGE, f"{which} {what}")


def _fail(failures: Failures, where: Sequence[bool], message: str) -> None:
    """Fail the rows that have no input; earlier failures of a row stay."""
    for index, is_null in enumerate(where):
        if is_null and failures[index] is None:
            failures[index] = Failure(Reason.NULL_INPUT, STAGE, message)


def _take(batch: pa.RecordBatch, numbers: Sequence[int], position: int) -> pa.Table:
    """Return rows of a batch by their numbers in the shard; its first row is `position`."""
    first = numbers[0] - position
    if numbers[-1] - numbers[0] + 1 == len(numbers):
        return pa.Table.from_batches([batch.slice(first, len(numbers))])
    # Arrow cannot choose rows of views, only slices.
    rows = [batch.slice(number - position, 1) for number in numbers]
    return pa.Table.from_batches(rows).combine_chunks()
