"""Conditions on columns of known types: which rows match, and what statistics tell of a row group.

NaN is greater than all numbers, as in DuckDB, Spark and PostgreSQL. Statistics do not count NaN, so
the largest number of a row group does not bound its floats.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import Numbers
from pipeline.job.condition import (
    Comparison,
    Condition,
    Op,
    Value,
    text_of,
    time_of,
)
from pipeline.sources.columns.arrow_types import is_text, plain_type
from pipeline.sources.columns.column_path import find

Mask = npt.NDArray[np.bool_]
Known = Mapping[str, tuple[pa.DataType | None, str | None]]
"""Columns with one value in a whole shard -> their type, and the value as text. The name of a
folder has no type (None): it takes that of the values that it is compared with."""
_COMPARE = {"<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}
_FOLDER_TYPES: Sequence[tuple[type, pa.DataType]] = (
    (bool, pa.bool_()), (int, pa.int64()), (Decimal, pa.float64()), (str, pa.string()),
    (dt.datetime, pa.timestamp("us")), (dt.date, pa.date32()),
)  # fmt: skip


@dataclass(frozen=True)
class Typed:
    """A comparison with values of the column's type."""

    column: str
    op: Op
    values: pa.Array
    """Of the type of `comparable`."""

    def matches(self, column: pa.Array) -> Mask:
        """Tell which rows match, (N,) -> bool (N,).

        Args:
            column: The values, as `comparable` returns them.
        """
        if self.op in ("is null", "is not null"):
            return _mask(pc.is_null(column) if self.op == "is null" else pc.is_valid(column))
        if self.op in ("in", "not in"):
            is_in = _mask(pc.is_in(column, value_set=self.values, skip_nulls=True))
            return is_in if self.op == "in" else ~is_in & _mask(pc.is_valid(column))
        is_true = _mask(_COMPARE[self.op](column, self.values[0]))
        if self.op in (">", ">=") and pa.types.is_floating(column.type):
            is_true |= _mask(pc.is_nan(column))
        return is_true


@dataclass(frozen=True)
class TypedJunction:
    """Conditions of which all or one must be true."""

    word: Literal["and", "or"]
    parts: tuple[TypedCondition, ...]


def _mask(is_true: pa.Array) -> Mask:
    """Return booleans (N,) as bool (N,); null is false."""
    mask: Mask = np.array(pc.fill_null(is_true, False))
    return mask


TypedCondition = Typed | TypedJunction | bool
"""A bool is a condition on columns with one value."""


class Statistics(NamedTuple):
    """What the footer of a shard tells of one column in N row groups."""

    lows: pa.Array
    """No value is less, (N,), as `comparable`; null if unknown. NaN is not counted."""
    highs: pa.Array
    nulls: Numbers
    """int64 (N,); -1: unknown."""


class Outlook(NamedTuple):
    """What is known of N row groups before their rows are read."""

    may: Mask
    """Some row may match, bool (N,)."""
    must: Mask
    """Every row matches, bool (N,)."""


def typed(condition: Condition, schema: pa.Schema | None, known: Known) -> TypedCondition | None:
    """Return a condition for a shard.

    Args:
        schema: The columns of its rows; None: not known yet.
        known: Columns with one value in the whole shard; they come before those of the schema.

    Returns:
        The condition; None if it depends on a schema that is not known.

    Raises:
        ValueError: There is no such column, or a value is none of its type.
    """
    if isinstance(condition, Comparison):
        if condition.column in known:
            return _decided(condition, *known[condition.column])
        if schema is None:
            return None
        return _typed(condition, find(condition.column, schema).dtype)
    parts = [typed(part, schema, known) for part in condition.parts]
    decisive = condition.word == "or"
    if any(part is decisive for part in parts):
        return decisive
    left = [part for part in parts if not isinstance(part, bool)]
    if not left:
        return not decisive
    open_parts = [part for part in left if part is not None]
    if len(open_parts) < len(left):
        return None
    return open_parts[0] if len(left) == 1 else TypedJunction(condition.word, tuple(open_parts))


def matches(condition: TypedCondition, column: Callable[[str], pa.Array], num_rows: int) -> Mask:
    """Tell which of N rows match, bool (N,).

    Args:
        column: Name -> values, as `comparable` returns them.
    """
    if isinstance(condition, bool):
        return np.full(num_rows, condition)
    if isinstance(condition, Typed):
        return condition.matches(column(condition.column))
    masks = [matches(part, column, num_rows) for part in condition.parts]
    joined: Mask = (np.logical_and if condition.word == "and" else np.logical_or).reduce(masks)
    return joined


def outlook(
    condition: TypedCondition, statistics: Callable[[str], Statistics], num_rows: Numbers
) -> Outlook:
    """Tell what statistics prove of row groups.

    Args:
        statistics: Name of a column -> its statistics.
        num_rows: Rows of each group, int64 (N,).
    """
    if isinstance(condition, bool):
        return Outlook(*np.full((2, len(num_rows)), condition))
    if isinstance(condition, Typed):
        return _outlook(condition, statistics(condition.column), num_rows)
    parts = [outlook(part, statistics, num_rows) for part in condition.parts]
    join = np.logical_and if condition.word == "and" else np.logical_or
    return Outlook(*join.reduce(parts))


def _outlook(test: Typed, of: Statistics, num_rows: Numbers) -> Outlook:
    has_null, has_value = of.nulls != 0, of.nulls != num_rows
    if test.op == "is null":
        return Outlook(has_null, ~has_value)
    if test.op == "is not null":
        return Outlook(has_value, ~has_null)
    is_bounded = _mask(pc.and_(pc.is_valid(of.lows), pc.is_valid(of.highs)))
    if test.op in ("<", "<="):
        may, must = test.matches(of.lows), test.matches(of.highs)
    elif test.op in (">", ">="):
        may, must = test.matches(of.highs), test.matches(of.lows)
    else:
        may = np.zeros(len(num_rows), np.bool_)
        for value in test.values:
            inside = pc.and_(pc.less_equal(of.lows, value), pc.greater_equal(of.highs, value))
            may |= _mask(inside)
        must = may & _mask(pc.equal(of.lows, of.highs))
        if test.op == "not in":
            may, must = ~must, ~may
    if pa.types.is_floating(of.lows.type):
        matches_nan = test.op in (">", ">=", "not in")
        may, must = may | matches_nan, must & matches_nan
    return Outlook((may | ~is_bounded) & has_value, must & is_bounded & ~has_null)


def comparable_type(dtype: pa.DataType) -> pa.DataType:
    """Return the type in which values are compared: texts as bytes, half floats as floats."""
    dtype = plain_type(dtype)
    if is_text(dtype):
        return pa.binary() if pa.types.is_string(dtype) else pa.large_binary()
    return pa.float32() if pa.types.is_float16(dtype) else dtype


def comparable(column: pa.Array) -> pa.Array:
    """Return values in the type in which they are compared, (N,) -> (N,)."""
    column = column.cast(plain_type(column.type)).cast(comparable_type(column.type))
    # -0.0 is 0.0, but not to a search in a set of values.
    return pc.add(column, 0.0) if pa.types.is_floating(column.type) else column


def _decided(test: Comparison, dtype: pa.DataType | None, text: str | None) -> bool:
    """Tell whether a value that all rows have matches."""
    if dtype is None:
        values = test.values or ("",)
        dtype = next(t for of, t in _FOLDER_TYPES if isinstance(values[0], of))
    try:
        column = pa.array([text], pa.string()).cast(dtype)
    except pa.ArrowInvalid:
        raise ValueError(
            f"the folder {test.column}={text} is compared with {text_of(test.values[0])}"
        ) from None
    return bool(_typed(test, dtype).matches(comparable(column))[0])


def _typed(test: Comparison, dtype: pa.DataType) -> Typed:
    dtype, kept = plain_type(dtype), comparable_type(dtype)
    if test.op in ("is null", "is not null") or pa.types.is_null(dtype):
        return Typed(test.column, test.op if test.op.startswith("is") else "in", pa.nulls(0))
    values = [_as(value, dtype, test.column).cast(kept).as_py() for value in test.values]
    return Typed(test.column, test.op, pa.array(values, kept))


def _as(value: Value, dtype: pa.DataType, name: str) -> pa.Scalar:
    """Return a value in the type of a column."""
    is_number = isinstance(value, int | Decimal) and not isinstance(value, bool)
    is_date, is_time = pa.types.is_date(dtype), pa.types.is_timestamp(dtype)
    if isinstance(value, str) and (is_date or is_time):
        value = time_of(value)
    has_zone = isinstance(value, dt.datetime) and value.tzinfo is not None
    with contextlib.suppress(pa.ArrowException, OverflowError):
        if is_text(dtype) and isinstance(value, str):
            return pa.scalar(value.encode())
        if pa.types.is_boolean(dtype) and isinstance(value, bool):
            return pa.scalar(value)
        if pa.types.is_floating(dtype) and is_number:
            return pa.scalar(float(str(value)) + 0.0).cast(comparable_type(dtype))
        if (pa.types.is_integer(dtype) or pa.types.is_decimal(dtype)) and is_number:
            return pa.scalar(Decimal(str(value))).cast(dtype)
        if (is_date and type(value) is dt.date) or (
            is_time and isinstance(value, dt.date) and (dtype.tz is not None or not has_zone)
        ):
            return pa.scalar(value).cast(dtype)
    raise ValueError(f"column {name!r} is {str(dtype)[:80]}, which {text_of(value)} does not fit")
