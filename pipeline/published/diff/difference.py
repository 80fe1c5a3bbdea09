"""What is found when two versions are compared."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.printable import json_value
from pipeline.published.diff.columns import ColumnSums

_SHOWN, _SHOWN_ENTRIES = 20, 10


@dataclass
class LabelScores:
    """The scores of the rows that had a label before."""

    rows: int = 0
    sum_before: float = 0.0
    sum_now: float = 0.0


@dataclass(frozen=True)
class Mover:
    """A row that differs much."""

    row_id: str
    size: float
    """The sum over its columns: 1 for another value or list, the difference of numbers, 1 - cosine
    of vectors, the largest difference of numbers in lists that are alike otherwise."""
    before: dict[str, Any]
    """Values of the columns that differ."""
    now: dict[str, Any]


@dataclass
class Difference:
    """How a version differs from another one of the same or of another output."""

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
    """Rows of `both` of which a column differs."""
    added: int = 0
    removed: int = 0
    carried: int = 0
    """Rows that the later version took over from earlier ones."""
    recovered: Counter[str] = field(default_factory=Counter)
    """Reason -> added rows that were in quarantine before."""
    failed: Counter[str] = field(default_factory=Counter)
    """Reason -> removed rows that are in quarantine now."""
    columns: dict[str, ColumnSums] = field(default_factory=dict)
    only_before: tuple[str, ...] = ()
    only_now: tuple[str, ...] = ()
    other_types: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Column -> its types; such columns are not compared."""
    label_scores: dict[str, LabelScores] = field(default_factory=dict)
    largest: tuple[Mover, ...] = ()
    """The rows that differ most, in descending order."""

    @property
    def changed_pct(self) -> float:
        """Changed rows, of those on both sides."""
        return 100.0 * self.changed / self.both if self.both else 0.0

    @property
    def differing_pct(self) -> float:
        """Rows that are changed, added or removed, of the rows of either side."""
        rows = self.both + self.added + self.removed
        return 100.0 * (self.changed + self.added + self.removed) / rows if rows else 0.0

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs: no row, no column, no type."""
        columns = self.only_before or self.only_now or self.other_types
        return not (self.changed or self.added or self.removed or columns)

    @property
    def verdict(self) -> str:
        """The whole in a line."""
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
        """Return before, now and rows of a column of values, the most frequent pair first."""
        return [(a, b, rows) for (a, b), rows in self.columns[column].pairs.most_common()]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; of long lists the first entries."""
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
