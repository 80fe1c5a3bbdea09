"""Compare one column of matched rows by its Arrow type, and add up the differences."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import as_array

Comparison = Literal["value", "number", "vector", "entries"]
Floats = npt.NDArray[np.float64]
_MOST_PAIRS = 2_000
"""Pairs of different values that are counted separately; further pairs are counted together."""
Mask = npt.NDArray[np.bool_]


@dataclass
class ColumnSums:
    """How a column differs, summed over the rows compared so far."""

    name: str
    comparison: Comparison
    differing: int = 0
    """Rows whose values differ by more than the tolerance."""
    became_null: int = 0
    was_null: int = 0
    compared: int = 0
    """Rows with a value on both sides."""
    sum_diff: float = 0.0
    """Numbers: now minus before. Vectors: cosines."""
    sum_abs_diff: float = 0.0
    max_abs_diff: float = 0.0
    min_cosine: float = 1.0
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Values: before, now -> rows in which they differ."""
    other_pairs: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with the figures of this comparison."""
        document: dict[str, Any] = {
            "kind": self.comparison,
            "differing_rows": self.differing,
            "became_null": self.became_null,
            "was_null": self.was_null,
        }
        if self.comparison == "number" and self.compared:
            document["mean_shift"] = self.sum_diff / self.compared
            document["mean_abs_diff"] = self.sum_abs_diff / self.compared
            document["max_abs_diff"] = self.max_abs_diff
        if self.comparison == "vector" and self.compared:
            document["mean_cosine"] = self.sum_diff / self.compared
            document["min_cosine"] = self.min_cosine
        return document


def comparison_of(column_type: pa.DataType) -> Comparison:
    """Return how columns of a type are compared."""
    if pa.types.is_floating(column_type):
        return "number"
    if _is_list(column_type):
        if pa.types.is_floating(column_type.value_type):
            return "vector"
        if pa.types.is_struct(column_type.value_type):
            return "entries"
    return "value"


def compare_column(
    sums: ColumnSums, before: pa.ChunkedArray, now: pa.ChunkedArray, tolerance: float
) -> tuple[Mask, Floats]:
    """Compare a column of N matched rows, and add to its sums.

    Args:
        sums: The sums of the column.
        before: (N,).
        now: (N,), of the same type.
        tolerance: The largest difference of equal numbers: absolute up to 1, relative above. For
            vectors: how far the cosine may be below 1.

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
        differs[rows], size[rows] = _COMPARE[sums.comparison](sums, *pair, tolerance)
    sums.differing += int(differs.sum())
    return differs, size


def _values(sums: ColumnSums, one: pa.Array, other: pa.Array, _: float) -> tuple[Mask, Floats]:
    differs = ~equal_rows(one, other)
    rows = pa.array(np.flatnonzero(differs))
    if len(rows) and not pa.types.is_nested(one.type):
        texts = (pc.cast(column.take(rows), pa.string(), safe=False) for column in (one, other))
        counted = pa.table(dict(zip("ab", texts, strict=True))).group_by(["a", "b"])
        for entry in counted.aggregate([([], "count_all")]).to_pylist():
            key = (entry["a"], entry["b"])
            if key in sums.pairs or len(sums.pairs) < _MOST_PAIRS:
                sums.pairs[key] += entry["count_all"]
            else:
                sums.other_pairs += entry["count_all"]
    return differs, differs.astype(np.float64)


def _numbers(
    sums: ColumnSums, one: pa.Array, other: pa.Array, tolerance: float
) -> tuple[Mask, Floats]:
    diff, size = _differences(one, other)
    sums.sum_diff += float(diff.sum())
    sums.sum_abs_diff += float(np.abs(diff).sum())
    sums.max_abs_diff = max(sums.max_abs_diff, float(np.abs(diff).max()))
    return size > tolerance, size


def _differences(one: pa.Array, other: pa.Array) -> tuple[Floats, Floats]:
    """Return now minus before, 0 where either is not finite, and the size of the difference.

    The size is absolute up to 1, relative above; 1 where only one is finite.
    """
    before, now = (np.asarray(column, np.float64) for column in (one, other))
    with np.errstate(invalid="ignore"):
        diff = np.where(equal_rows(one, other), 0.0, now - before)
    is_odd = ~np.isfinite(diff)
    diff[is_odd] = 0.0
    size = np.abs(diff) / np.maximum(1.0, np.nan_to_num(np.abs(before), posinf=1.0))
    size[is_odd] = 1.0
    return diff, size


def _vectors(
    sums: ColumnSums, one: pa.Array, other: pa.Array, tolerance: float
) -> tuple[Mask, Floats]:
    lengths = [np.asarray(pc.list_value_length(column)) for column in (one, other)]
    size = np.ones(len(one))
    for length in np.unique(lengths[0][lengths[0] == lengths[1]]).tolist():
        rows = np.flatnonzero((lengths[0] == length) & (lengths[1] == length))
        sides = [
            np.asarray(column.take(pa.array(rows)).flatten(), np.float64).reshape(len(rows), length)
            for column in (one, other)
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
    _: ColumnSums, one: pa.Array, other: pa.Array, tolerance: float
) -> tuple[Mask, Floats]:
    """Lists differ by 1, or by their largest difference of numbers if all else is equal."""
    size = np.where(equal_rows(one, other), 0.0, 1.0)
    lengths = list_lengths(one)
    rows = np.flatnonzero((size > 0) & (lengths == list_lengths(other)) & (lengths > 0))
    if len(rows):
        before, now = (column.take(pa.array(rows)).flatten() for column in (one, other))
        sizes = [np.where(equal_rows(before.is_null(), now.is_null()), 0.0, 1.0)]
        for pair in zip(before.flatten(), now.flatten(), strict=True):
            is_number = pa.types.is_floating(pair[0].type)
            field_size = (
                _differences(*pair)[1] if is_number else np.where(equal_rows(*pair), 0.0, 1.0)
            )
            sizes.append(field_size)
        starts = np.cumsum(lengths[rows]) - lengths[rows]
        size[rows] = np.maximum.reduceat(np.max(sizes, axis=0), starts)
    return size > tolerance, size


def _is_list(column_type: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(column_type)
        or pa.types.is_large_list(column_type)
        or pa.types.is_fixed_size_list(column_type)
    )


_COMPARE = {"value": _values, "number": _numbers, "vector": _vectors, "entries": _entries}


def equal_rows(before: pa.Array, now: pa.Array) -> Mask:
    """Return bool (N,): whether both values are equal, or both null; NaN equals NaN.

    Args:
        before: (N,), of any type.
        now: (N,), of the same type.
    """
    column_type = before.type
    if pa.types.is_list(column_type) or pa.types.is_large_list(column_type):
        return _equal_lists(before, now)
    if pa.types.is_fixed_size_list(column_type):
        is_null, are_null = (_is_null(column) for column in (before, now))
        flat = (_fixed_values(column) for column in (before, now))
        values = equal_rows(*flat).reshape(len(before), column_type.list_size).all(axis=1)
        equal: Mask = np.where(is_null | are_null, is_null & are_null, values)
        return equal
    if pa.types.is_struct(column_type):
        is_null, are_null = (_is_null(column) for column in (before, now))
        fields = (pair for pair in zip(before.flatten(), now.flatten(), strict=True))
        equal = is_null == are_null
        for one, other in fields:
            equal &= equal_rows(one, other)
        return equal
    same = pc.fill_null(pc.equal(before, now), False)
    both_null = pc.and_(pc.is_null(before), pc.is_null(now))
    is_equal = pc.or_(same, both_null)
    if pa.types.is_floating(column_type):
        nan = (pc.fill_null(pc.is_nan(column), False) for column in (before, now))
        is_equal = pc.or_(is_equal, pc.and_(*nan))
    return as_mask(is_equal)


def as_mask(column: pa.Array) -> Mask:
    """Return a boolean column without nulls as bool (N,)."""
    return np.asarray(column.to_numpy(zero_copy_only=False), bool)


def _is_null(column: pa.Array) -> Mask:
    return as_mask(pc.is_null(column))


def _fixed_values(column: pa.FixedSizeListArray) -> pa.Array:
    """Return the values of all rows, null rows included."""
    size = column.type.list_size
    return column.values.slice(column.offset * size, len(column) * size)


def list_lengths(column: pa.Array) -> npt.NDArray[np.int64]:
    """Return the number of entries of each row, int64 (N,); 0 for null."""
    lengths: Any = pc.fill_null(pc.list_value_length(column), 0)
    return np.asarray(lengths.to_numpy(zero_copy_only=False), np.int64)


def _equal_lists(before: pa.Array, now: pa.Array) -> Mask:
    is_null, are_null = (_is_null(column) for column in (before, now))
    lengths, others = list_lengths(before), list_lengths(now)
    equal: Mask = (is_null == are_null) & (lengths == others)
    rows = np.flatnonzero(equal & (lengths > 0))
    if len(rows):
        taken = pa.array(rows)
        same = equal_rows(*(column.take(taken).flatten() for column in (before, now)))
        starts = np.cumsum(lengths[rows]) - lengths[rows]
        equal[rows] = np.logical_and.reduceat(same, starts)
    return equal
