"""Compare one column of matched rows, by its Arrow type; sums can be added bucket after bucket."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit.published.diff.entries import match_entries, score_of
from pipeline.commit.published.diff.equality import Mask, as_mask, equal_rows, list_lengths
from pipeline.core.arrays import Numbers, as_array
from pipeline.core.schema import SCORE

Kind = Literal["value", "number", "vector", "entries"]
Floats = npt.NDArray[np.float64]
_MOST_PAIRS = 2_000
"""Pairs of different values that are counted one by one; further ones together."""


@dataclass
class ColumnSums:
    """How a column of the rows of both sides differs, summed over the rows compared so far."""

    name: str
    kind: Kind
    differing: int = 0
    """Rows whose values differ by more than the tolerance."""
    became_null: int = 0
    was_null: int = 0
    compared: int = 0
    """Rows with a value on both sides."""
    sum_diff: float = 0.0
    """Of numbers: now minus before. Of vectors: cosines. Of entries: of the scores of pairs."""
    sum_abs_diff: float = 0.0
    max_abs_diff: float = 0.0
    min_cosine: float = 1.0
    paired: int = 0
    """Of entries: those on both sides."""
    gone: int = 0
    new: int = 0
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Of values: before, now -> rows, where they differ."""
    other_pairs: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: what has a meaning for the kind."""
        found: dict[str, Any] = {
            "kind": self.kind,
            "differing_rows": self.differing,
            "became_null": self.became_null,
            "was_null": self.was_null,
        }
        if self.kind == "number" and self.compared:
            found["mean_shift"] = self.sum_diff / self.compared
            found["mean_abs_diff"] = self.sum_abs_diff / self.compared
            found["max_abs_diff"] = self.max_abs_diff
        if self.kind == "vector" and self.compared:
            found["mean_cosine"] = self.sum_diff / self.compared
            found["min_cosine"] = self.min_cosine
        if self.kind == "entries":
            found |= {"paired": self.paired, "gone": self.gone, "new": self.new}
            if self.paired:
                found["mean_score_shift"] = self.sum_diff / self.paired
                found["max_score_diff"] = self.max_abs_diff
        return found


def kind_of(kind: pa.DataType) -> Kind:
    """Return how columns of a type are compared."""
    if pa.types.is_floating(kind):
        return "number"
    if _is_list(kind):
        if pa.types.is_floating(kind.value_type):
            return "vector"
        if pa.types.is_struct(kind.value_type):
            return "entries"
    return "value"


def compare_column(
    sums: ColumnSums, before: pa.ChunkedArray, now: pa.ChunkedArray, tolerance: float
) -> tuple[Mask, Floats]:
    """Compare a column of N matched rows, and add to its sums.

    Args:
        sums: Of the column.
        before: (N,).
        now: (N,), of the same type.
        tolerance: How far numbers may be off: absolutely up to 1, relatively above. Vectors: how
            far the cosine may be below 1.

    Returns:
        Which rows differ, bool (N,), and how much, float64 (N,): 0 if they do not.
    """
    one, other = as_array(before), as_array(now)
    nulls = as_mask(pc.is_null(one)), as_mask(pc.is_null(other))
    both = ~(nulls[0] | nulls[1])
    differs, size = np.asarray(nulls[0] != nulls[1]), np.zeros(len(one))
    size[differs] = 1.0
    sums.became_null += int((nulls[1] & ~nulls[0]).sum())
    sums.was_null += int((nulls[0] & ~nulls[1]).sum())
    rows = np.flatnonzero(both)
    sums.compared += len(rows)
    if len(rows):
        pair = one.take(pa.array(rows)), other.take(pa.array(rows))
        differs[rows], size[rows] = _COMPARE[sums.kind](sums, *pair, tolerance)
    sums.differing += int(differs.sum())
    return differs, size


def _values(sums: ColumnSums, one: pa.Array, other: pa.Array, _: float) -> tuple[Mask, Floats]:
    differs = ~equal_rows(one, other)
    rows = pa.array(np.flatnonzero(differs))
    if len(rows) and not pa.types.is_nested(one.type):
        texts = (pc.cast(each.take(rows), pa.string(), safe=False) for each in (one, other))
        counted = pa.table(dict(zip("ab", texts, strict=True))).group_by(["a", "b"])
        for each in counted.aggregate([([], "count_all")]).to_pylist():
            key = (each["a"], each["b"])
            if key in sums.pairs or len(sums.pairs) < _MOST_PAIRS:
                sums.pairs[key] += each["count_all"]
            else:
                sums.other_pairs += each["count_all"]
    return differs, differs.astype(np.float64)


def _numbers(
    sums: ColumnSums, one: pa.Array, other: pa.Array, tolerance: float
) -> tuple[Mask, Floats]:
    before, now = (np.asarray(each, np.float64) for each in (one, other))
    with np.errstate(invalid="ignore"):
        diff = np.where(equal_rows(one, other), 0.0, now - before)
    is_odd = ~np.isfinite(diff)  # one of them is no finite number
    diff[is_odd] = 0.0
    size = np.abs(diff)
    sums.sum_diff += float(diff.sum())
    sums.sum_abs_diff += float(size.sum())
    sums.max_abs_diff = max(sums.max_abs_diff, float(size.max()))
    size /= np.maximum(1.0, np.nan_to_num(np.abs(before), posinf=1.0))
    size[is_odd] = 1.0
    return size > tolerance, size


def _vectors(
    sums: ColumnSums, one: pa.Array, other: pa.Array, tolerance: float
) -> tuple[Mask, Floats]:
    lengths = [np.asarray(pc.list_value_length(each)) for each in (one, other)]
    size = np.ones(len(one))
    for length in np.unique(lengths[0][lengths[0] == lengths[1]]).tolist():
        rows = np.flatnonzero((lengths[0] == length) & (lengths[1] == length))
        sides = [
            np.asarray(each.take(pa.array(rows)).flatten(), np.float64).reshape(len(rows), length)
            for each in (one, other)
        ]
        norms = [np.linalg.norm(side, axis=1) for side in sides]
        product = norms[0] * norms[1]
        is_same = (sides[0] == sides[1]).all(axis=1)
        cosine = np.divide(
            (sides[0] * sides[1]).sum(axis=1), product, where=product > 0, out=np.zeros(len(rows))
        )
        size[rows] = np.where(is_same, 0.0, 1.0 - np.clip(cosine, -1.0, 1.0))
    sums.sum_diff += float((1.0 - size).sum())
    sums.min_cosine = min(sums.min_cosine, float(1.0 - size.max()))
    return size > tolerance, size


def _entries(
    sums: ColumnSums, one: pa.Array, other: pa.Array, tolerance: float
) -> tuple[Mask, Floats]:
    """Rows of which nothing differs but scores need no matching, and most rows are such."""
    is_equal = equal_rows(one, other)
    sums.paired += int(pc.sum(pc.list_value_length(one.filter(pa.array(is_equal)))).as_py() or 0)
    size = np.zeros(len(one))
    rows = np.flatnonzero(~is_equal)
    rows = _with_other_entries(sums, one, other, rows, size)
    lists = (each.take(pa.array(rows)).to_pylist() for each in (one, other))
    for row, before, now in zip(rows.tolist(), *lists, strict=True):
        pairs, gone, new = match_entries(before, now)
        shifts = [score_of(b) - score_of(a) for a, b in pairs]
        largest = max(map(abs, shifts), default=0.0)
        sums.paired += len(pairs)
        sums.gone += len(gone)
        sums.new += len(new)
        sums.sum_diff += sum(shifts)
        sums.max_abs_diff = max(sums.max_abs_diff, largest)
        size[row] = len(gone) + len(new) + largest
    return size > tolerance, size


def _with_other_entries(
    sums: ColumnSums, one: pa.Array, other: pa.Array, rows: Numbers, size: Floats
) -> Numbers:
    """Compare the scores of those rows whose entries are the same; return the other rows."""
    names = [field.name for field in one.type.value_type]
    if SCORE not in names or not len(rows):
        return rows
    sides = [each.take(pa.array(rows)) for each in (one, other)]
    lengths = list_lengths(sides[0])
    kept = np.flatnonzero((lengths == list_lengths(sides[1])) & (lengths > 0))
    if not len(kept):
        return rows
    flat = (side.take(pa.array(kept)).flatten().flatten() for side in sides)
    entries = [dict(zip(names, each, strict=True)) for each in flat]
    starts = np.cumsum(lengths[kept]) - lengths[kept]
    same = np.ones(int(lengths[kept].sum()), bool)
    for name in names:
        if name != SCORE:
            same &= equal_rows(entries[0][name], entries[1][name])
    is_same = np.logical_and.reduceat(same, starts)
    scores = (np.asarray(pc.fill_null(each[SCORE], 0.0), np.float64) for each in entries)
    before, now = scores
    shifts = (now - before)[np.repeat(is_same, lengths[kept])]
    largest = np.maximum.reduceat(np.abs(now - before), starts)[is_same]
    size[rows[kept[is_same]]] = largest
    sums.paired += len(shifts)
    sums.sum_diff += float(shifts.sum())
    sums.max_abs_diff = max(sums.max_abs_diff, float(largest.max(initial=0.0)))
    return np.delete(rows, kept[is_same])


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


_COMPARE = {"value": _values, "number": _numbers, "vector": _vectors, "entries": _entries}
