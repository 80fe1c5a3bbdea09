"""Feature columns: how those of a shard become one vector of float32 a row, and what is lost.

Pure over Arrow. An integer that float32 cannot hold is another number, perhaps a key of something
else: it is refused unless the job allows it. Fractions are rounded to seven digits and counted.
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
"""float32 holds every whole number up to this one."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FeatureRows:
    """The feature vectors of some rows, and what is wrong with them."""

    values: npt.NDArray[np.float32]
    """(N, F); NaN at nulls, or 0 where the job says so."""
    nulls: dict[str, Mask] = field(default_factory=dict)
    """Columns with nulls -> (N,) where they are."""
    overflows: dict[str, Mask] = field(default_factory=dict)
    """Columns with numbers that are infinite in float32 only -> (N,) where they are."""
    inexact: dict[str, int] = field(default_factory=dict)
    """Columns with whole numbers that float32 cannot hold -> one of these numbers."""
    is_rounded: Mask = field(default_factory=lambda: np.zeros(0, bool))
    """(N,) rows in which float32 differs from what the shard holds."""

    def is_null(self) -> Mask:
        """Return (N,) which rows have a null."""
        return self._any(self.nulls)

    def is_overflow(self) -> Mask:
        """Return (N,) which rows have a number that float32 cannot hold."""
        return self._any(self.overflows)

    def _any(self, masks: dict[str, Mask]) -> Mask:
        none = np.zeros(len(self.values), np.bool_)
        return np.asarray(np.logical_or.reduce([none, *masks.values()]), np.bool_)


def count_features(source: Source, schema: pa.Schema) -> int:
    """Return the length of the feature vector."""
    kinds = [schema.field(name).type for name in source.features]
    return sum(kind.list_size if pa.types.is_fixed_size_list(kind) else 1 for kind in kinds)


def feature_rows(source: Source, table: pa.Table) -> FeatureRows:
    """Join the feature columns to float32 (N, F)."""
    found = {name: _column(as_array(table.column(name))) for name in source.features}
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


def _column(column: pa.Array) -> _Column:
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
    return _Column(
        values.reshape(-1, width),
        nulls.reshape(-1, width),
        (np.isinf(values) & np.isfinite(exact)).reshape(-1, width),
        rounded.reshape(-1, width),
        inexact,
    )


def _no_float32(column: pa.Array) -> Mask:
    """Tell which whole numbers have more than the 24 significant bits of float32."""
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
