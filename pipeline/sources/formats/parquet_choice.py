"""The rows of Parquet shards that `source.where` chooses.

A shard that its folder, or its table, rules out is never opened, and a row group that statistics
decide is not read. Of the others, only the columns of the condition are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.arrays import Numbers, as_array
from pipeline.core.ranges import Ranges
from pipeline.job.condition import columns_in
from pipeline.job.source import Source
from pipeline.sources.columns.arrow_types import is_text, plain_type
from pipeline.sources.columns.column_path import extract, find
from pipeline.sources.columns.matching import (
    Mask,
    Statistics,
    TypedCondition,
    comparable,
    comparable_type,
    matches,
    outlook,
)
from pipeline.sources.formats.parquet_footers import Footer, is_below, known_values, typed_condition
from pipeline.sources.formats.parquet_shard import Batching, Shard, shard_of
from pipeline.sources.formats.table_view import View
from pipeline.storage.store import Store, StoredFile

_ROWS, _FEW_ROWS = 65_536, 64
"""Rows that are read at once, and if large ones may be neighbours."""
_BOUNDED = (
    *(pa.types.is_integer, pa.types.is_float32, pa.types.is_float64, pa.types.is_boolean),
    *(pa.types.is_decimal, pa.types.is_date, pa.types.is_timestamp),
)
"""Types besides text whose statistics are read."""


def may_have_rows(source: Source, shard: StoredFile) -> bool:
    """Tell whether the values that all rows of a shard have leave rows to choose."""
    try:
        return typed_condition(source, shard) is not False
    except ValueError:  # the shard says why when it is opened
        return True


def chosen_rows(
    store: Store,
    source: Source,
    shard: StoredFile,
    handle: BinaryIO,
    parquet: pq.ParquetFile,
    footer: Footer,
) -> Ranges:
    """Return the rows of an open shard for which the condition is true, deleted ones included.

    Raises:
        pa.ArrowException, OSError: Its columns cannot be read.
    """
    view, where = footer.view, source.condition
    assert view is not None, "its footer was read"
    condition, known = typed_condition(source, shard, view), known_values(source, shard, view)
    assert where is not None, "the job chooses rows"
    assert condition is not None, "its columns are known"
    num_rows = np.array(footer.group_rows, np.int64)
    ends = np.cumsum(num_rows)
    names = [name for name in columns_in(where) if name not in known]
    statistics = {name: _statistics(parquet, view, name, num_rows) for name in names}
    may, must = outlook(condition, statistics.__getitem__, num_rows)
    must, is_open = must & (num_rows > 0), may & ~must
    pieces = [_rows_of(must, ends)]
    if is_open.any():
        opened = shard_of(store, shard, handle, parquet, view)
        pieces += _matching(opened, is_open, names, condition)
    return Ranges.in_at_least(1, pieces)


def _rows_of(groups: Mask, ends: Numbers) -> Ranges:
    """Return the rows of chosen row groups, given the end of each in the shard."""
    edges = np.append(0, ends)
    return Ranges(tuple(edges[[*Ranges.of_mask(groups).bounds]].tolist()))


def _matching(
    shard: Shard, groups: Mask, names: Sequence[str], condition: TypedCondition
) -> Iterator[Ranges]:
    """Read the columns of a condition in some row groups, and yield the rows that match."""
    indices, rows, begin = np.flatnonzero(groups).tolist(), _rows_of(groups, shard.group_ends), 0
    at_once = shard.rows_within(indices, names, _ROWS, _FEW_ROWS)
    row_bytes = _row_bytes(shard, indices, names)
    paths = {name: find(name, shard.view.schema) for name in names}
    how = Batching(at_once, row_bytes, few_requests=at_once == _ROWS)
    for batch in shard.batches(indices, names, how):
        columns = {
            name: comparable(extract(as_array(batch.column(path.column)), path.fields))
            for name, path in paths.items()
        }
        mask = matches(condition, columns.__getitem__, batch.num_rows)
        numbers = np.fromiter(rows[begin : begin + batch.num_rows], np.int64, batch.num_rows)
        begin += batch.num_rows
        yield Ranges.of(numbers[mask])
        del batch, columns  # not kept while the next one is read


def _row_bytes(shard: Shard, groups: Sequence[int], names: Sequence[str]) -> float:
    """Return about the most stored bytes per row of some columns."""
    metadata, stored = shard.parquet.metadata, {*shard.view.stored(names)}
    leaves = [i for i, leaf in enumerate(pq.ParquetSchema(metadata)) if is_below(leaf.path, stored)]
    row_groups = map(metadata.row_group, groups)
    sizes = [
        sum(group.column(i).total_uncompressed_size for i in leaves) / max(1, group.num_rows)
        for group in row_groups
    ]
    return float(max(sizes))


def _statistics(parquet: pq.ParquetFile, view: View, name: str, num_rows: Numbers) -> Statistics:
    """Return the statistics of a column; all are unknown if it is no single leaf of the shard."""
    dtype, size = find(name, view.schema).dtype, len(num_rows)
    unknown = pa.nulls(size, comparable_type(dtype))
    if not (stored := view.stored([name])):
        return Statistics(unknown, unknown, num_rows)
    metadata = parquet.metadata
    schema = pq.ParquetSchema(metadata)
    leaves = [i for i, leaf in enumerate(schema) if leaf.path == stored[0]]
    if len(leaves) != 1 or schema.column(leaves[0]).max_repetition_level:
        return Statistics(unknown, unknown, np.full(size, -1))
    chunks = [metadata.row_group(i).column(leaves[0]).statistics for i in range(size)]
    nulls = [chunk.null_count if chunk and chunk.has_null_count else -1 for chunk in chunks]
    stored_type = plain_type(find(stored[0], parquet.schema_arrow).dtype)
    bounds = [_bounds(chunk, stored_type) for chunk in chunks]
    try:
        lows, highs = (
            pa.array(values, pa.binary()).cast(unknown.type)
            if is_text(dtype)
            else comparable(pa.array(values, stored_type).cast(plain_type(dtype)))
            for values in zip(*bounds, strict=True)
        )
    except pa.ArrowException:  # a bound that the type of the table does not hold
        lows = highs = unknown
    return Statistics(lows, highs, np.array(nulls))


def _bounds(chunk: pq.Statistics | None, dtype: pa.DataType) -> tuple[Any, Any]:
    """Return the least and the greatest value of a column in a row group; None if unknown."""
    if chunk is None or not chunk.has_min_max:
        return None, None
    if is_text(dtype):  # as bytes: long ones are cut, and the last byte raised
        return chunk.min_raw, chunk.max_raw
    if not any(is_type(dtype) for is_type in _BOUNDED):
        return None, None
    try:
        low, high = chunk.min, chunk.max
    except (ValueError, OverflowError):  # a time that Python does not have
        return None, None
    return (None, None) if low != low or high != high else (low, high)
