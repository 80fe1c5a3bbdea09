"""The shards of a version: what is known of each, and the file that holds it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.commit.keys.meta import UNITS, KeyFile, VersionKeys, part_starts, put_file
from pipeline.core.arrays import Numbers, as_array
from pipeline.planning.carried import KnownShard
from pipeline.planning.plan import Plan
from pipeline.storage.store import Store

_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("failed", pa.list_(pa.int64()), nullable=False),
        pa.field("computed_day", pa.int32(), nullable=False),
    ]
)
_ENCODING = {
    **dict.fromkeys(("uri", "version"), "DELTA_BYTE_ARRAY"),
    **dict.fromkeys(
        ("size_bytes", "num_rows", "part", "row", "computed_day"), "DELTA_BINARY_PACKED"
    ),
    "failed.list.element": "DELTA_BINARY_PACKED",
}


def known_shards(
    plan: Plan,
    unit_rows: Sequence[int] | Numbers,
    failed: Numbers,
    unread: Numbers,
    *,
    is_limited: bool,
    today: int,
    days: Mapping[str, int],
) -> list[KnownShard]:
    """Say of each shard of a version which predictions are of its rows, in input order.

    Left out are shards of which not all rows are known: those that stand as one row, and those
    whose last row stands for an unreadable rest.

    Args:
        plan: Of all rows of the version.
        unit_rows: Rows of each unit, (U,), as published.
        failed: int64 (F,), ascending: ranks of the rows without a prediction among all rows.
        unread: Those of them whose reason is `unreadable_shard`.
        is_limited: Whether `run.limit_rows` leaves rows out: then no shard is known.
        today: Days from 1970 to when what is computed was.
        days: URI of a shard -> the same of its carried predictions.
    """
    units = plan.units
    if is_limited or any(unit.cut is not None and len(unit.extents) != 1 for unit in units):
        return []
    extents = [extent for unit in units for extent in unit.extents]
    if not extents:
        return []
    paths = [extent.path for extent in extents]
    begins = np.flatnonzero([True, *(one != other for one, other in pairwise(paths))])
    rows = _rows_of_extents(plan, unit_rows)
    num_rows = np.add.reduceat(rows, begins)
    starts = np.cumsum(num_rows) - num_rows
    low, high = (np.searchsorted(failed, ranks) for ranks in (starts, starts + num_rows))
    counted = np.repeat([unit.cut is None for unit in units], [len(u.extents) for u in units])
    ends_unread = np.isin(starts + num_rows - 1, unread) & ~counted[begins] & (num_rows > 0)
    is_one_row = np.logical_or.reduceat([extent.is_whole_shard for extent in extents], begins)
    root = Store(plan.source_root)
    return [
        KnownShard(
            uri := root.url(paths[at]),
            extents[at].size_bytes,
            extents[at].exact_version,
            count,
            start - before,
            tuple((failed[before:until] - start).tolist()) if until > before else (),
            min(today, days.get(uri, today)),
        )
        for at, count, start, before, until, is_left_out in zip(
            *(each.tolist() for each in (begins, num_rows, starts, low, high)),
            (ends_unread | is_one_row).tolist(),
            strict=True,
        )
        if not is_left_out
    ]


def _rows_of_extents(plan: Plan, unit_rows: Sequence[int] | Numbers) -> Numbers:
    """Return int64 (E,); an uncounted unit has one extent, which has all its rows."""
    return np.array(
        [
            extent.num_rows if unit.cut is None else count
            for unit, count in zip(plan.units, unit_rows, strict=True)
            for extent in unit.extents
        ],
        np.int64,
    )


def write_shards(
    store: Store, folder: str, shards: Sequence[KnownShard], part_rows: Sequence[int]
) -> KeyFile:
    """Write `units.parquet`."""
    parts, rows = to_places(np.array([shard.first for shard in shards], np.int64), part_rows)
    offsets = np.cumsum([0, *(len(shard.failed) for shard in shards)])
    flat = pa.array([row for shard in shards for row in shard.failed], pa.int64())
    table = pa.table(
        [
            [shard.uri for shard in shards],
            [shard.size_bytes for shard in shards],
            [shard.version for shard in shards],
            [shard.num_rows for shard in shards],
            parts,
            rows,
            pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat),
            [shard.computed_day for shard in shards],
        ],
        schema=_SCHEMA,
    )
    return put_file(store, folder, UNITS, encode(table, _ENCODING), len(shards))


def read_shards(keys: VersionKeys) -> list[KnownShard]:
    """Read the shards of a version, in input order.

    Raises:
        NoKeys: The file is missing or damaged.
        PipelineError: The store failed.
    """
    # A thread of Arrow's that still holds bytes of Python's while the process ends, aborts it
    # (apache/arrow#34314).
    table = pq.ParquetFile(pa.BufferReader(keys.read(UNITS))).read(use_threads=False)
    first = to_ordinals(table.column("part"), table.column("row"), keys)
    if first is None:
        raise keys.damaged(UNITS)
    failed: Iterable[tuple[int, ...]] = [()] * table.num_rows
    if table.num_rows and len(pc.list_flatten(table.column("failed"))):
        failed = map(tuple, table.column("failed").to_pylist())
    names = ("uri", "size_bytes", "version", "num_rows")
    columns = [table.column(name).to_pylist() for name in names]
    days = table.column("computed_day").to_pylist()
    return list(map(KnownShard, *columns, first.tolist(), failed, days))


def encode(table: pa.Table, encoding: dict[str, str], row_group_rows: int = 2**20) -> bytes:
    """Return a table as a Parquet file without dictionaries."""
    buffer = io.BytesIO()
    how = {"compression": "zstd", "use_dictionary": False, "column_encoding": encoding}
    pq.write_table(table, buffer, row_group_size=row_group_rows, **how)
    return buffer.getvalue()


def to_places(
    ordinals: Numbers, part_rows: Sequence[int]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return part and row of predictions, int32 (N,); the one after the last is in the last part.

    Args:
        ordinals: int64 (N,), at most the sum of the rows.
        part_rows: Predictions of each part, at least one part.
    """
    starts = part_starts(part_rows)
    parts = np.searchsorted(starts + part_rows, ordinals, "right").clip(max=len(part_rows) - 1)
    return parts.astype(np.int32), (ordinals - starts[parts]).astype(np.int32)


def to_ordinals(parts: pa.ChunkedArray, rows: pa.ChunkedArray, keys: VersionKeys) -> Numbers | None:
    """Undo `to_places`: return int64 (N,); None if there are no such rows."""
    # Arrow's own way to numpy, and its read_table, import pandas, which a run has time for while
    # Ray starts.
    part, row = (np.from_dlpack(as_array(each)).astype(np.int64) for each in (parts, rows))
    if len(part) == 0:
        return row
    sizes = np.array(keys.part_rows, np.int64)
    if part.min() < 0 or part.max() >= len(sizes) or row.min() < 0 or (row > sizes[part]).any():
        return None
    ordinals: Numbers = keys.starts[part] + row
    return ordinals
