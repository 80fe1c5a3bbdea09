"""Compare two published versions: the whole way on one page."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import Numbers
from pipeline.core.schema import LABEL, LABEL_ID, ROW_ID, SCORE, URI
from pipeline.published.diff.columns import ColumnSums, Floats, compare_column, comparison_of
from pipeline.published.diff.difference import Difference, LabelScores, Mover
from pipeline.published.diff.joining import REASON, Bucket, Version, buckets, match

_LEFT_OUT = (ROW_ID, URI, LABEL_ID)
"""The id of a row; where it lies, as in the folder of a date; and the number of a label, which says
no more than its name."""
WriteRows = Callable[[pa.Table], None]


def compare_versions(
    before: Version,
    now: Version,
    *,
    tolerance: float,
    num_movers: int,
    write_rows: WriteRows | None = None,
) -> Difference:
    """Compare the predictions of two versions, row by row.

    Args:
        before: One side.
        now: The other; it may be of another output, on another store.
        tolerance: As `compare_column`.
        num_movers: How many of the rows that differ most are kept.
        write_rows: Gets, table after table, the id of each row that differs, `change` (`added`,
            `removed`, `changed`) and how much.

    Raises:
        JobError: Ids are not unique.
        NotReadable: A part is gone, also from the history, or a store failed.
    """
    difference = Difference(before.name, now.name, tolerance)
    difference.rows_before, difference.rows_now = (v.manifest.num_predicted for v in (before, now))
    difference.carried = int(now.manifest.carried.get("rows", 0))
    not_shared = now.rows_beside(before).num_rows
    difference.same_files_rows = difference.both = difference.rows_now - not_shared
    schema = _find_columns(difference, _schema(before), _schema(now))
    movers: list[tuple[float, str, Mover]] = []
    for bucket in buckets(before, now, schema):
        ids = bucket.before.column(ROW_ID), bucket.now.column(ROW_ID)
        places = match(*ids, f"{difference.before} and {difference.now}")
        rows = np.flatnonzero(places >= 0)
        gone = np.setdiff1d(np.arange(len(ids[0])), places[rows])
        pair = bucket.before.take(pa.array(places[rows])), bucket.now.take(pa.array(rows))
        sizes = _compare(difference, pair)
        _count_rows(difference, bucket, gone, np.flatnonzero(places < 0), sizes)
        _keep_largest(movers, pair, sizes, num_movers)
        if write_rows is not None:
            _write(write_rows, bucket, gone, places, sizes)
    difference.largest = tuple(mover for _, _, mover in sorted(movers, key=lambda m: (-m[0], m[1])))
    return difference


def _schema(version: Version) -> pa.Schema:
    """Return the columns, by the first part; none of a version without parts."""
    parts = version.rows("predictions")
    return parts.only([0][: len(parts.parts)]).schema


def _find_columns(difference: Difference, before: pa.Schema, now: pa.Schema) -> pa.Schema:
    """Sort columns into those that are compared, and others; return the former after the row id."""
    sides = [
        {f.name: f.type for f in schema if f.name not in _LEFT_OUT} for schema in (before, now)
    ]
    row_id = pa.field(ROW_ID, pa.string())
    if not before.names or not now.names:  # a side without parts has no columns either
        return pa.schema([row_id])
    difference.only_before = tuple(name for name in sides[0] if name not in sides[1])
    difference.only_now = tuple(name for name in sides[1] if name not in sides[0])
    common = [name for name in sides[1] if name in sides[0]]
    difference.other_types = {
        name: (str(sides[0][name]), str(sides[1][name]))
        for name in common
        if sides[0][name] != sides[1][name]
    }
    names = [name for name in common if name not in difference.other_types]
    difference.columns = {name: ColumnSums(name, comparison_of(sides[1][name])) for name in names}
    return pa.schema([row_id, *(now.field(name) for name in names)])


def _compare(difference: Difference, pair: tuple[pa.Table, pa.Table]) -> dict[str, Floats]:
    """Compare the columns of matched rows; return how much each differs, 0: not at all."""
    before, now = pair
    sizes: dict[str, Floats] = {}
    for name, sums in difference.columns.items():
        differs, size = compare_column(sums, before[name], now[name], difference.tolerance)
        sizes[name] = np.where(differs, size, 0.0)
    if {LABEL, SCORE} <= difference.columns.keys() and before.num_rows:
        columns = {"label": before[LABEL], "before": before[SCORE], "now": now[SCORE]}
        grouped = pa.table(columns).group_by("label")
        sums_of = [("before", "sum"), ("now", "sum"), ("before", "count")]
        for row in grouped.aggregate(sums_of).to_pylist():
            if not row["before_count"]:
                continue
            of_label = difference.label_scores.setdefault(str(row["label"]), LabelScores())
            of_label.rows += row["before_count"]
            of_label.sum_before += row["before_sum"] or 0.0
            of_label.sum_now += row["now_sum"] or 0.0
    return sizes


def _count_rows(
    difference: Difference, bucket: Bucket, gone: Numbers, new: Numbers, sizes: dict[str, Floats]
) -> None:
    matched = bucket.now.num_rows - len(new)
    difference.both += matched
    difference.added += len(new)
    difference.removed += len(gone)
    difference.changed += int((_total(sizes, matched) > 0).sum())
    difference.recovered += _reasons(bucket.failed_before, bucket.now.column(ROW_ID).take(new))
    difference.failed += _reasons(bucket.failed_now, bucket.before.column(ROW_ID).take(gone))


def _reasons(quarantine: pa.Table, ids: pa.ChunkedArray) -> Counter[str]:
    """Count the reasons of the rows of a quarantine that are among some ids."""
    if not quarantine.num_rows or not len(ids):
        return Counter()
    rows = quarantine.filter(pc.is_in(quarantine.column(ROW_ID), value_set=ids.combine_chunks()))
    return Counter(rows.column(REASON).to_pylist())


def _total(sizes: dict[str, Floats], num_rows: int) -> Floats:
    return sum(sizes.values(), np.zeros(num_rows))


def _keep_largest(
    movers: list[tuple[float, str, Mover]],
    pair: tuple[pa.Table, pa.Table],
    sizes: dict[str, Floats],
    most: int,
) -> None:
    total = _total(sizes, pair[0].num_rows)
    largest = np.argsort(-total, kind="stable")[:most]
    for row in largest[total[largest] > 0].tolist():
        size, row_id = float(total[row]), pair[0].column(ROW_ID)[row].as_py()
        if len(movers) == most and size <= movers[0][0]:
            break
        names = [name for name, column_sizes in sizes.items() if column_sizes[row] > 0]
        before, now = ({name: side[name][row].as_py() for name in names} for side in pair)
        entry = (size, row_id, Mover(row_id, size, before, now))
        (heapq.heappushpop if len(movers) == most else heapq.heappush)(movers, entry)


def _write(
    write_rows: WriteRows, bucket: Bucket, gone: Numbers, places: Numbers, sizes: dict[str, Floats]
) -> None:
    """Give the rows of a bucket that differ: id, change, size."""
    rows = np.flatnonzero(places >= 0)
    total = _total(sizes, len(rows))
    changed, new = rows[total > 0], np.flatnonzero(places < 0)
    ids_now, ids_before = bucket.now.column(ROW_ID), bucket.before.column(ROW_ID)
    for change, ids, size in (
        ("changed", ids_now.take(changed), total[total > 0]),
        ("added", ids_now.take(new), np.zeros(len(new))),
        ("removed", ids_before.take(gone), np.zeros(len(gone))),
    ):
        if len(ids):
            columns: dict[str, Any] = {ROW_ID: ids, "change": [change] * len(ids), "size": size}
            write_rows(pa.table(columns))
