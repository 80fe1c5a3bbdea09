"""Tell which rows of two columns are equal, whatever their type: lists, structs, numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Mask = npt.NDArray[np.bool_]


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
    """Return the values of all rows, those of null rows, too."""
    size = column.type.list_size
    return column.values.slice(column.offset * size, len(column) * size)


def list_lengths(column: pa.Array) -> npt.NDArray[np.int64]:
    """Return how many entries each row has, int64 (N,); null: 0."""
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
