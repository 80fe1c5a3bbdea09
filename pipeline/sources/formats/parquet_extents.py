"""Extents of Parquet shards: neighbouring row groups, without the rows that are no input."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipeline.core.failures import Reason
from pipeline.core.ranges import Ranges
from pipeline.job.source import Source
from pipeline.sources.columns.column_path import with_paths
from pipeline.sources.columns.pass_through import type_problem
from pipeline.sources.formats.parquet_footers import Footer, schema_of, schema_problem
from pipeline.sources.formats.table_view import TableFile
from pipeline.sources.units import Extent
from pipeline.storage.store import StoredFile


def extents_of(
    shard: StoredFile, footer: Footer, source: Source, declared: pa.Schema, max_rows: int
) -> Iterator[Extent]:
    """Yield the extents of a shard, given the declared pass-through columns."""
    if footer.view is None:
        # Its row count is unknown: one row takes the place of the shard.
        yield Extent(
            shard.path, shard.size_bytes, shard.version, 0, 1, 0.0, footer.reason, footer.message
        )
        return
    schema = schema_of(source, footer.view.schema, shard.path)
    message = schema_problem(source, footer.view, shard) or type_problem(
        source, declared, with_paths(schema, source.passed.values())
    )
    reason = Reason.BAD_SCHEMA if message else None
    live, given = footer.live_rows(shard), shard.given if isinstance(shard, TableFile) else ()
    facts = (shard.path, shard.size_bytes, shard.version)
    for rows, row_bytes in _joined_groups(footer.group_rows, footer.group_bytes, live, max_rows):
        extent = Extent(*facts, rows[0], len(rows), round(row_bytes, 1), reason, message)
        extent = replace(extent, given=given) if given else extent
        yield extent if isinstance(rows, range) else extent.choose(rows)


def _joined_groups(
    group_rows: Sequence[int], group_bytes: Sequence[int], live: Ranges | None, max_rows: int
) -> Iterator[tuple[range | Ranges, float]]:
    """Join neighbouring row groups up to `max_rows` live rows; drop those without.

    Args:
        live: The rows that are read; None: all.

    Yields:
        Live rows, and the mean bytes of a row in their groups.
    """
    ends = np.cumsum(group_rows, dtype=np.int64)
    until = ends if live is None else np.array([bisect_left(live, end) for end in ends.tolist()])
    counts = np.diff(until, prepend=0)
    held: list[int] = []
    for index in (*np.flatnonzero(counts).tolist(), None):
        if held and (index is None or until[index] - until[held[0]] + counts[held[0]] > max_rows):
            first, last = int(until[held[0]] - counts[held[0]]), int(until[held[-1]])
            rows = range(first, last) if live is None else live[first:last]
            num_rows, num_bytes = (sum(of[i] for i in held) for of in (group_rows, group_bytes))
            is_run = rows[-1] - rows[0] + 1 == len(rows)
            yield range(rows[0], rows[-1] + 1) if is_run else rows, num_bytes / num_rows
            held = []
        if index is not None:
            held.append(index)
