"""What the footers of Parquet shards say: rows, where to cut, and whether a shard fits the job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.columns import (
    check_names,
    count_features,
    declare,
    schema_problem,
    type_problem,
)
from pipeline.errors import JobError, PipelineError
from pipeline.extents import Extent
from pipeline.job_source import Source
from pipeline.schema import Reason
from pipeline.storage import Store, StoredFile
from pipeline.uri_policy import policy_of

_FOOTER_THREADS = 16


def measure_parquet(
    store: Store, shards: Sequence[StoredFile], source: Source, *, max_extent_rows: int
) -> tuple[tuple[Extent, ...], pa.Schema, int]:
    """Read the footers of shards.

    Returns:
        The extents in order, the declared pass-through columns, and the length of the feature
        vector (0 without features).

    Raises:
        JobError: No shard has the columns that the job names.
    """
    footers = _read_footers(store, shards, source)
    declared, num_features = _declare(store, source, shards, footers)
    extents = tuple(
        extent
        for shard, footer in zip(shards, footers, strict=True)
        for extent in _parquet_extents(shard, footer, source, declared, max_extent_rows)
    )
    return extents, declared, num_features


def measure_again(
    store: Store,
    shards: Sequence[StoredFile],
    source: Source,
    declared: pa.Schema,
    *,
    max_extent_rows: int,
) -> dict[str, tuple[Extent, ...]]:
    """Read the footers of some shards, whose pass-through columns are declared; extents by path."""
    footers = _read_footers(store, shards, source)
    return {
        shard.path: tuple(_parquet_extents(shard, footer, source, declared, max_extent_rows))
        for shard, footer in zip(shards, footers, strict=True)
    }


@dataclass(frozen=True)
class _Footer:
    """What a Parquet footer says, or why it cannot be read."""

    group_rows: tuple[int, ...] = ()
    group_bytes: tuple[int, ...] = ()
    schema: pa.Schema | None = None
    reason: Reason | None = None
    message: str = ""


def is_unreadable(error: BaseException) -> bool:
    """Tell a broken Parquet file (Arrow complains) from trouble with the store."""
    if isinstance(error, pa.ArrowException) and not isinstance(error, OSError):
        return True
    return type(error) is OSError and error.errno is None


def open_parquet(handle: BinaryIO, **options: Any) -> pq.ParquetFile:
    """Open a shard; `options` are those of `pyarrow.parquet.ParquetFile`.

    Raises:
        pa.ArrowException: It is broken, or a type that somebody has registered (Ray does) is not
            made of what the file says of it.
    """
    try:
        return pq.ParquetFile(handle, **options)
    except (pa.ArrowException, OSError, PipelineError):
        raise
    except Exception as error:
        raise pa.ArrowInvalid(f"no column type: {type(error).__name__}: {error}") from error


def _read_footers(store: Store, shards: Sequence[StoredFile], source: Source) -> list[_Footer]:
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        return list(pool.map(lambda shard: _read_footer(store, shard, source), shards))


def _read_footer(store: Store, shard: StoredFile, source: Source) -> _Footer:
    try:
        with store.open(shard.path) as handle:
            parquet = open_parquet(handle)
            metadata, schema = parquet.metadata, parquet.schema_arrow
    except FileNotFoundError:
        return _Footer(reason=Reason.MISSING, message="vanished while it was listed")
    except (pa.ArrowException, OSError) as error:
        if not is_unreadable(error):
            raise
        return _Footer(reason=Reason.UNREADABLE_SHARD, message=str(error))
    inputs = source.features or (source.uri_column or source.image_column,)
    wanted = {source.id_column, *inputs, *source.pass_through}
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return _Footer(
        group_rows=tuple(group.num_rows for group in groups),
        group_bytes=tuple(_wanted_bytes(group, wanted) for group in groups),
        schema=schema,
    )


def _wanted_bytes(group: Any, wanted: set[str | None]) -> int:
    columns = (group.column(i) for i in range(group.num_columns))
    return sum(
        column.total_uncompressed_size
        for column in columns
        if column.path_in_schema in wanted or column.path_in_schema.split(".")[0] in wanted
    )


def _declare(
    store: Store, source: Source, shards: Sequence[StoredFile], footers: Sequence[_Footer]
) -> tuple[pa.Schema, int]:
    """Take pass-through types and the vector's length from the first shard that fits the job."""
    check_names(source)
    if source.uri_column:
        policy_of(source, store.uri)  # raises before anything is started
    first_problem = ""
    readable = [(s, f) for s, f in zip(shards, footers, strict=True) if f.schema is not None]
    for shard, footer in readable:
        problem = schema_problem(source, footer.schema, shard.path)
        if not problem:
            declared = declare(source, footer.schema, shard.path)
            return declared, count_features(source, footer.schema)
        first_problem = first_problem or f"{shard.path}: {problem}"
    if readable:
        raise JobError(f"source: no shard fits the job; {first_problem}")
    return pa.schema([]), 0


def _parquet_extents(
    shard: StoredFile, footer: _Footer, source: Source, declared: pa.Schema, max_rows: int
) -> Iterator[Extent]:
    if footer.schema is None:
        # Its row count is unknown: the shard itself stands as one row.
        yield Extent(
            shard.path, shard.size_bytes, shard.version, 0, 1, 0.0, footer.reason, footer.message
        )
        return
    message = schema_problem(source, footer.schema, shard.path) or type_problem(
        source, declared, footer.schema
    )
    reason = Reason.BAD_SCHEMA if message else None
    first = 0
    for num_rows, num_bytes in _join_groups(footer.group_rows, footer.group_bytes, max_rows):
        row_bytes = round(num_bytes / num_rows, 1)
        yield Extent(
            shard.path, shard.size_bytes, shard.version, first, num_rows, row_bytes, reason, message
        )
        first += num_rows


def _join_groups(
    rows: Sequence[int], sizes: Sequence[int], max_rows: int
) -> Iterator[tuple[int, int]]:
    """Join neighbouring row groups while they stay within max_rows; drop empty ones."""
    joined_rows = joined_bytes = 0
    for num_rows, num_bytes in zip(rows, sizes, strict=True):
        if joined_rows and joined_rows + num_rows > max_rows:
            yield joined_rows, joined_bytes
            joined_rows = joined_bytes = 0
        joined_rows += num_rows
        joined_bytes += num_bytes
    if joined_rows:
        yield joined_rows, joined_bytes
