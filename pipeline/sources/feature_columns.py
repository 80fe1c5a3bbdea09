"""Feature columns: the columns of a shard become one float32 vector per row.

Pure over Arrow. An integer that float32 cannot hold would become another integer, perhaps another
key: it is refused unless the job allows it. Fractions are rounded to seven digits and counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import as_array
from pipeline.job.source import Source

_EXACT = 2**24
"""float32 holds every integer up to this one."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FeatureRows:
    """The feature vectors of N rows, and which values float32 cannot hold."""

    values: npt.NDArray[np.float32]
    """float32 (N, F); a null is NaN, or 0 if the job says so."""
    nulls: dict[str, Mask] = field(default_factory=dict)
    """Column with nulls -> bool (N,): rows that have one."""
    overflows: dict[str, Mask] = field(default_factory=dict)
    """Column with finite numbers beyond float32 -> bool (N,): rows that have one."""
    inexact: dict[str, int] = field(default_factory=dict)
    """Column with integers that float32 cannot hold -> one of these integers."""
    is_rounded: Mask = field(default_factory=lambda: np.zeros(0, bool))
    """bool (N,): rows with a value that float32 rounds."""

    def is_null(self) -> Mask:
        """Return bool (N,): rows that have a null."""
        return self._any(self.nulls)

    def is_overflow(self) -> Mask:
        """Return bool (N,): rows that have a number beyond float32."""
        return self._any(self.overflows)

    def _any(self, masks: dict[str, Mask]) -> Mask:
        none = np.zeros(len(self.values), np.bool_)
        return np.asarray(np.logical_or.reduce([none, *masks.values()]), np.bool_)


def count_features(source: Source, schema: pa.Schema) -> int:
    """Return F, the length of the feature vector: lists count all their items."""
    kinds = [schema.field(name).type for name in source.features]
    return sum(kind.list_size if pa.types.is_fixed_size_list(kind) else 1 for kind in kinds)


def feature_rows(source: Source, table: pa.Table, *, has_integers: bool = True) -> FeatureRows:
    """Join the feature columns to float32 (N, F).

    Args:
        source: Names the columns, in the order of the vector.
        table: N rows of a shard.
        has_integers: Whether the types of columns tell whole numbers from fractions; if not, a
            number is whole if its value is.
    """
    found = {
        name: _column(as_array(table.column(name)), has_integers=has_integers)
        for name in source.features
    }
    columns = [found[name] for name in source.features]
    joined = np.concatenate([column.values for column in columns], axis=1)
    if source.null_features == "zero":
        joined[np.concatenate([column.nulls for column in columns], axis=1)] = 0.0
    by_row = {name: _rows(column.nulls) for name, column in found.items()}
    overflows = {name: _rows(column.overflows) for name, column in found.items()}
    rounded = [_rows(column.rounded) for column in columns]
    return FeatureRows(
        joined,
        {name: mask for name, mask in by_row.items() if mask.any()},
        {name: mask for name, mask in overflows.items() if mask.any()},
        {name: c.inexact for name, c in found.items() if c.inexact is not None},
        np.logical_or.reduce(rounded),
    )


def _rows(where: Mask) -> Mask:
    return np.asarray(where.any(axis=1), np.bool_)


@dataclass(frozen=True)
class _Column:
    """One column, (N, width) each."""

    values: npt.NDArray[np.float32]
    nulls: Mask
    overflows: Mask
    rounded: Mask
    inexact: int | None


def _column(column: pa.Array, *, has_integers: bool) -> _Column:
    width = 1
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
        outer = np.repeat(column.is_null().to_numpy(zero_copy_only=False), width)
        column = column.values.slice(column.offset * width, len(column) * width)
    else:
        outer = np.zeros(len(column), bool)
    nulls = outer | column.is_null().to_numpy(zero_copy_only=False)
    exact = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    exact = np.where(nulls, np.nan, exact)
    with np.errstate(over="ignore"):
        values = exact.astype(np.float32)
    rounded = np.zeros(len(exact), bool)
    inexact = None
    if pa.types.is_integer(column.type):
        rounded = _no_float32(column) & ~nulls
        if rounded.any():
            inexact = column[int(np.flatnonzero(rounded)[0])].as_py()
    elif pa.types.is_float64(column.type) or pa.types.is_decimal(column.type):
        rounded = (values != exact) & ~np.isnan(exact)
        whole = rounded & np.isfinite(values) & (exact == np.floor(exact))
        if not has_integers and whole.any():
            inexact = int(exact[int(np.flatnonzero(whole)[0])])
    return _Column(
        values.reshape(-1, width),
        nulls.reshape(-1, width),
        (np.isinf(values) & np.isfinite(exact)).reshape(-1, width),
        rounded.reshape(-1, width),
        inexact,
    )


def _no_float32(column: pa.Array) -> Mask:
    """Return bool: integers with more than the 24 significant bits of float32."""
    bounds = pc.min_max(column).as_py()
    low, high = bounds["min"] or 0, bounds["max"] or 0
    if low >= -_EXACT and high <= _EXACT:
        return np.zeros(len(column), bool)
    numbers = column.fill_null(0).to_numpy(zero_copy_only=False)
    # The lowest 64-bit number has no positive counterpart, yet as uint64 it is right again.
    size = np.abs(numbers.astype(np.int64)) if numbers.dtype != np.uint64 else numbers
    bits = size.astype(np.uint64)
    lowest = np.maximum(bits & (~bits + np.uint64(1)), np.uint64(1))
    return np.asarray(bits // lowest >= np.uint64(_EXACT))


def features_to_arrow(values: npt.NDArray[np.float32]) -> pa.Array:
    """Turn float32 (N, F) into a fixed-size list column."""
    flat: Any = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
