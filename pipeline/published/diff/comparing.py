"""Compare two published versions: differences, counted and summed, and the largest of them."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import Numbers
from pipeline.core.printable import json_value
from pipeline.core.schema import LABEL, LABEL_ID, ROW_ID, SCORE, URI
from pipeline.published.diff.columns import ColumnSums, Floats, compare_column, comparison_of
from pipeline.published.diff.joining import REASON, Bucket, Version, buckets, match

_LEFT_OUT = (ROW_ID, URI, LABEL_ID)
"""Columns that are not compared: the id; the URI, which may have a date; and the number of a label,
which its name implies."""
WriteRows = Callable[[pa.Table], None]
_SHOWN, _SHOWN_ENTRIES = 20, 10


@dataclass
class LabelScores:
    """Sums of the scores of rows that had a label before."""

    rows: int = 0
    sum_before: float = 0.0
    sum_now: float = 0.0


@dataclass(frozen=True)
class Mover:
    """A row that differs, and how much."""

    row_id: str
    size: float
    """The sum over its columns: 1 for another value or list, the difference of numbers, 1 - cosine
    of vectors, the largest difference of numbers in lists that are otherwise equal."""
    before: dict[str, Any]
    """Values of the columns that differ."""
    now: dict[str, Any]


@dataclass
class Difference:
    """How a version differs from another one, of the same or of another output."""

    before: str
    now: str
    tolerance: float
    rows_before: int = 0
    rows_now: int = 0
    same_files_rows: int = 0
    """Rows of files that both versions have; they are equal, and were not read."""
    both: int = 0
    """Rows with a prediction on both sides, those of the same files among them."""
    changed: int = 0
    """Rows of `both` in which a column differs."""
    added: int = 0
    removed: int = 0
    carried: int = 0
    """Rows that the later version carried from earlier ones."""
    recovered: Counter[str] = field(default_factory=Counter)
    """Reason -> added rows that were in quarantine before."""
    failed: Counter[str] = field(default_factory=Counter)
    """Reason -> removed rows that are in quarantine now."""
    columns: dict[str, ColumnSums] = field(default_factory=dict)
    only_before: tuple[str, ...] = ()
    only_now: tuple[str, ...] = ()
    other_types: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Column -> its two types; such columns are not compared."""
    label_scores: dict[str, LabelScores] = field(default_factory=dict)
    largest: tuple[Mover, ...] = ()
    """The rows that differ most, in descending order."""

    @property
    def changed_pct(self) -> float:
        """Share of changed rows in the rows on both sides, in percent."""
        return 100.0 * self.changed / self.both if self.both else 0.0

    @property
    def differing_pct(self) -> float:
        """Share of changed, added and removed rows in the rows of either side, in percent."""
        rows = self.both + self.added + self.removed
        return 100.0 * (self.changed + self.added + self.removed) / rows if rows else 0.0

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs: no row, no column, no type."""
        columns = self.only_before or self.only_now or self.other_types
        return not (self.changed or self.added or self.removed or columns)

    @property
    def verdict(self) -> str:
        """The result in a line."""
        if self.is_equal:
            return f"equal: {self.both} rows"
        clauses = [f"{self.changed} of {self.both} rows in both differ ({self.changed_pct:.2f}%)"]
        if not self.both and (self.added or self.removed):
            clauses = ["no row id is in both"]
        differing = [(sums.differing, name) for name, sums in self.columns.items()]
        named = [f"{name} in {rows}" for rows, name in sorted(differing, reverse=True) if rows]
        if named:
            clauses[0] += f": {', '.join(named[:3])}"
        clauses += [f"{self.added} added"] if self.added else []
        clauses += [f"{self.removed} removed"] if self.removed else []
        if self.failed:
            clauses[-1] += f" ({self.failed.total()} of them in quarantine now)"
        left_out = [*self.only_before, *self.only_now, *self.other_types]
        clauses += [f"columns that cannot be compared: {', '.join(left_out)}"] if left_out else []
        return "; ".join(clauses)

    def flips(self, column: str) -> list[tuple[str, str, int]]:
        """Return value before, value now and rows, the most frequent pair first."""
        return [(a, b, rows) for (a, b), rows in self.columns[column].pairs.most_common()]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with the first entries of long lists."""
        return {
            "verdict": self.verdict,
            "before": self.before,
            "now": self.now,
            "tolerance": self.tolerance,
            "rows": {
                name: getattr(self, name)
                for name in (
                    *("rows_before", "rows_now", "both", "changed", "added", "removed"),
                    *("same_files_rows", "carried"),
                )
            },
            "changed_pct": round(self.changed_pct, 6),
            "differing_pct": round(self.differing_pct, 6),
            "recovered": dict(self.recovered),
            "failed": dict(self.failed),
            "only_before": list(self.only_before),
            "only_now": list(self.only_now),
            "other_types": {name: list(pair) for name, pair in self.other_types.items()},
            "columns": {name: sums.to_dict() for name, sums in self.columns.items()},
            "flips": {
                name: [list(flip) for flip in self.flips(name)[:_SHOWN]]
                for name, sums in self.columns.items()
                if sums.pairs
            },
            "label_scores": {
                name: {
                    "rows": scores.rows,
                    "mean_before": json_value(scores.sum_before / scores.rows),
                    "mean_now": json_value(scores.sum_now / scores.rows),
                }
                for name, scores in sorted(
                    self.label_scores.items(),
                    key=lambda pair: -abs(pair[1].sum_now - pair[1].sum_before),
                )[:_SHOWN]
            },
            "movers": [
                {
                    "row_id": m.row_id,
                    "size": round(m.size, 6),
                    "before": json_value(m.before, _SHOWN_ENTRIES),
                    "now": json_value(m.now, _SHOWN_ENTRIES),
                }
                for m in self.largest
            ],
        }


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
        before: The earlier version.
        now: The later version; it may belong to another output on another store.
        tolerance: As for `compare_column`.
        num_movers: How many of the rows that differ most are kept.
        write_rows: Called with tables of the rows that differ: id, `change` (`added`, `removed`,
            `changed`) and size.

    Raises:
        JobError: Ids are not unique.
        NotReadable: A part is missing, also in the history, or a store failed.
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
    """Return the columns of the first part; none if there is no part."""
    parts = version.rows("predictions")
    return parts.only([0][: len(parts.parts)]).schema


def _find_columns(difference: Difference, before: pa.Schema, now: pa.Schema) -> pa.Schema:
    """Note the columns that cannot be compared; return the others after the row id."""
    sides = [
        {f.name: f.type for f in schema if f.name not in _LEFT_OUT} for schema in (before, now)
    ]
    row_id = pa.field(ROW_ID, pa.string())
    if not before.names or not now.names:  # a side without parts has no columns
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
    """Compare the columns of matched rows; return column -> size of the difference, 0: equal."""
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
    """Count the reasons in a quarantine of the rows with some ids."""
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
    """Write the rows of a bucket that differ: id, change, size."""
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
