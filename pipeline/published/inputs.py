"""Read rows of a version's input again: the shards of its stored plan, read as the run has read
them.

A row's id says where it lies (the path of a file, a row of a shard, a key of a tar); if ids are a
column, its URI names the shard, which is read until they are found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from pipeline.core.errors import JobError
from pipeline.core.failures import Failure
from pipeline.core.figures.counters import READ
from pipeline.core.schema import ROW_ID
from pipeline.planning.plan import Plan
from pipeline.sources.input_columns import columns_of
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader, make_rows
from pipeline.sources.units import Extent, RowFilter, UncountedPlan, Unit
from pipeline.sources.uris.fetch import fetch_many
from pipeline.sources.uris.policy import policy_of

_ROWS_AT_ONCE, _BYTES_AT_ONCE = 256, 64 * 2**20


def are_fetched(reader: Reader, plan: Plan) -> bool:
    """Tell whether the id and URI of a row find its input without its shard."""
    return columns_of(reader.source).is_fetched and plan.row_ids == "column"


def fetch_rows(reader: Reader, asked: Sequence[tuple[str, str]]) -> pa.Table:
    """Fetch the input of rows, given as id and URI; returns them as `reader.schema`."""
    ids, uris = [row_id for row_id, _ in asked], [uri for _, uri in asked]
    fetched = fetch_many(uris, policy_of(reader.source, reader.store.uri))
    failures = [result.failure and Failure(result.failure[0], READ, result.failure[1])
                for result in fetched]  # fmt: skip
    [field] = reader.fields
    return make_rows(reader, ids, uris, {field.name: [result.data for result in fetched]}, failures)


def by_shard(
    reader: Reader, plan: Plan, asked: Sequence[tuple[str, str]], where: str
) -> Iterator[tuple[list[Extent], set[str]]]:
    """Yield the extents of each shard that has wanted rows, and the ids of these.

    Args:
        asked: Id and URI of rows; the URI names the shard if ids are a column.
        where: The output and partition, for messages.

    Raises:
        JobError: A row is of no shard of the plan.
    """
    extents: dict[str, list[Extent]] = {}
    for unit in plan.units:
        for extent in unit.extents:
            extents.setdefault(extent.path, []).append(extent)
    by_url = {reader.store.url(path): path for path in extents}
    ids: dict[str, set[str]] = {}
    for row_id, uri in asked:
        path = by_url.get(uri) if plan.row_ids == "column" else _shard_of(plan, row_id, extents)
        if path is None:
            hint = "; give a table with the column uri" if not uri else ""
            raise JobError(f"{where}: row {row_id} is not of its input{hint}")
        ids.setdefault(path, set()).add(row_id)
    for path, wanted in ids.items():
        yield extents[path], wanted


def _shard_of(plan: Plan, row_id: str, known: Mapping[str, Any]) -> str | None:
    """Return the shard that an id names, if it is one of the plan."""
    if row_id in known:
        return row_id
    if plan.row_ids == "path#row":
        path, _, number = row_id.rpartition("#")
        return path if path in known and number.isdecimal() else None
    path = row_id
    while path:  # of a key of a tar, which may have slashes as well
        path = path.rpartition("/")[0]
        if path in known:
            return path
    return None


def read_rows(
    reader: Reader, plan: Plan, extents: Sequence[Extent], ids: set[str]
) -> Iterator[pa.Table]:
    """Read a shard until all wanted rows are found; yields them as `reader.schema`.

    Raises:
        InfraError: The shard is no longer what its extents say, or cannot be read.
    """
    numbers = None
    if plan.row_ids == "path#row" and not ids & {extents[0].path}:
        numbers = sorted(int(row_id.rpartition("#")[2]) for row_id in ids)
    unit = _unit(plan, extents, numbers)
    starts = frozenset(unit.bounds[:-1])
    left = set(ids)
    for _, _, rows in read_slices(reader, unit, starts):
        is_wanted = pa.array([row_id in left for row_id in rows.column(ROW_ID).to_pylist()])
        matches = rows.filter(is_wanted)
        left.difference_update(matches.column(ROW_ID).to_pylist())
        yield matches
        if not left:
            return


def _unit(plan: Plan, extents: Sequence[Extent], numbers: Sequence[int] | None) -> Unit:
    """Return a unit of the rows with these numbers in the shard; None: of all rows."""
    if plan.counts_by_reading:
        rows = RowFilter() if numbers is None else RowFilter(tuple(numbers))
        cut = UncountedPlan(_ROWS_AT_ONCE, _BYTES_AT_ONCE, rows=rows)
        return Unit(0, (replace(extents[0], only=None),), (), cut)
    chosen = list(extents)
    if numbers is not None:
        wanted = [[n for n in numbers if n in extent.numbers()] for extent in extents]
        chosen = [extent.choose(some) for extent, some in zip(extents, wanted, strict=True) if some]
    total = sum(extent.num_rows for extent in chosen)
    return Unit(0, tuple(chosen), (*range(0, total, _ROWS_AT_ONCE), total))
