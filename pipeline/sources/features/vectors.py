"""Join feature columns of a shard to one vector per row, of float32 or float64.

An integer beyond 2^24 may become another one in float32, perhaps another key: it is refused unless
the job allows it. Fractions are rounded to seven digits.
All columns are joined at once from Arrow's buffers: 1,000 columns of float32 are joined at the
speed of memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import as_array, with_nulls
from pipeline.core.failures import Reason
from pipeline.core.hive_paths import hive_values
from pipeline.core.schema import widths_of
from pipeline.job.features import FeatureColumn, FeatureEntry, column_of
from pipeline.job.source import Source
from pipeline.sources.columns.arrow_types import is_list
from pipeline.sources.columns.input_reader import Failures, fail
from pipeline.sources.features.encodings import find_categories, read_times

_EXACT = {"float32": 2**24, "float64": 2**53}
"""Type of the vectors -> up to here it holds every integer; larger ones are refused."""

Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[Any]


@dataclass(frozen=True)
class FeatureRows:
    """The feature vectors of N rows, and the values that they cannot hold."""

    values: Values
    """float32 or float64 (N, F); nulls are replaced, by NaN where they cost the row."""
    nulls: dict[str, Mask] = field(default_factory=dict)
    """Column with nulls that cost their rows -> bool (N,)."""
    unknown: dict[str, Mask] = field(default_factory=dict)
    """Column with values that are no category or date and cost their rows -> bool (N,)."""
    overflows: dict[str, Mask] = field(default_factory=dict)
    """Column with finite numbers beyond float32 -> bool (N,)."""
    inexact: dict[str, int] = field(default_factory=dict)
    """Column with integers that are too large for the vectors -> one of them."""

    def is_bad(self) -> Mask:
        """Return bool (N,), the rows without a vector."""
        masks = (*self.nulls.values(), *self.unknown.values(), *self.overflows.values())
        none = np.zeros(len(self.values), np.bool_)
        return np.asarray(np.logical_or.reduce([none, *masks]), np.bool_)


@dataclass(frozen=True)
class Piece:
    """The numbers of one entry."""

    name: str
    values: Values
    """(N, W), of any numeric type; anything at nulls."""
    column: pa.Array | None = None
    """(N * W,), the numbers; None if float32 holds all numbers of their type."""
    nulls: Mask | None = None
    """bool (N, W); None if there are none."""
    null_means: float | None = None
    """The number in place of a null; None if a null costs the row."""
    unknown: Mask | None = None
    """bool (N,), rows whose value costs them; None if there are none."""


def number_type(features: Sequence[FeatureEntry]) -> pa.DataType:
    """Return the type of the vector: float64 if an entry is declared as float64."""
    is_wide = any(getattr(entry, "read_as", None) == "float64" for entry in features)
    return pa.float64() if is_wide else pa.float32()


def text_names(features: Sequence[FeatureEntry]) -> list[str]:
    """Return the columns whose texts stay texts, beside the vector."""
    return [column_of(entry) for entry in features if _is_text(entry)]


def _is_text(entry: FeatureEntry) -> bool:
    return isinstance(entry, FeatureColumn) and entry.is_text


def count_features(source: Source, schema: pa.Schema) -> int:
    """Return F, the length of the feature vector, to which lists add all their items.

    Args:
        source: The section that names the columns.
    """
    pairs = zip(source.features, list_widths(source, schema), strict=True)
    return sum(_width(entry, width) for entry, width in pairs if not _is_text(entry))


def list_widths(source: Source, schema: pa.Schema) -> list[int]:
    """Return the length of each feature that is a list of numbers, 0 for others."""
    widths = []
    for entry in source.features:
        index = schema.get_field_index(column_of(entry))
        dtype = schema.field(index).type if index >= 0 else pa.null()
        widths.append(dtype.list_size if pa.types.is_fixed_size_list(dtype) else 0)
    return widths


def _width(entry: FeatureEntry, list_width: int) -> int:
    if isinstance(entry, FeatureColumn) and entry.is_category:
        has_other = entry.unknown == "own"
        return 1 if entry.encoding == "index" else len(categories_of(entry)) + has_other
    return list_width or 1


def categories_of(entry: FeatureColumn) -> tuple[str, ...]:
    """Return the categories of a categorical column, in order."""
    assert isinstance(entry.categories, tuple), "`with_categories` has read the file"
    return entry.categories


def feature_rows(
    source: Source, table: pa.Table, *, has_integers: bool = True, path: str = ""
) -> FeatureRows:
    """Join the feature columns, except texts, to (N, F) of `number_type`.

    Args:
        source: The section that names the columns, in the order of the vector.
        table: N rows of a shard.
        has_integers: Whether types distinguish integers from fractions; if not, values do.
        path: The path of the shard, whose folders may hold a column.
    """
    vector_type = number_type(source.features)
    if (joined := _joined_at_once(source, table, vector_type)) is not None:
        return FeatureRows(joined)
    null_features = source.null_features
    batches = table.to_batches()
    arrays = batches[0].columns if len(batches) == 1 else table.columns
    columns = dict(zip(table.column_names, arrays, strict=True))
    pieces = [
        _piece(entry, _column(entry, columns, table.num_rows, path), null_features)
        for entry in source.features
        if not _is_text(entry)
    ]
    shape = (table.num_rows, sum(piece.values.shape[1] for piece in pieces))
    values: Values = np.empty(shape, vector_type.to_pandas_dtype())
    with np.errstate(over="ignore", invalid="ignore"):
        if pieces:
            np.concatenate([piece.values for piece in pieces], axis=1, out=values, casting="unsafe")
    return _judged(pieces, values, has_integers=has_integers)


def _judged(pieces: Sequence[Piece], values: Values, *, has_integers: bool) -> FeatureRows:
    """Put the numbers for nulls into the vectors, and find the values that they cannot hold."""
    rows = FeatureRows(values)
    is_finite = bool(np.isfinite(values).all())
    start = 0
    for piece in pieces:
        out = values[:, start : start + piece.values.shape[1]]
        start += piece.values.shape[1]
        if piece.column is not None:
            is_there = np.ones((), np.bool_) if piece.nulls is None else ~piece.nulls
            if not is_finite:
                overflow = np.isinf(out) & np.isfinite(piece.values) & is_there
                if overflow.any():
                    _note(rows.overflows, piece.name, _rows(overflow))
            lost = is_there & _is_inexact(
                piece.values, piece.column, out, has_integers=has_integers
            )
            if lost.any():
                place = int(np.flatnonzero(lost)[0])
                rows.inexact.setdefault(piece.name, int(piece.column[place].as_py()))
        if piece.nulls is not None:
            out[piece.nulls] = np.nan if piece.null_means is None else piece.null_means
            if piece.null_means is None:
                _note(rows.nulls, piece.name, _rows(piece.nulls))
        if piece.unknown is not None:
            _note(rows.unknown, piece.name, piece.unknown)
    return rows


def _note(masks: dict[str, Mask], name: str, mask: Mask) -> None:
    masks[name] = masks[name] | mask if name in masks else mask


def _is_inexact(numbers: Values, column: pa.Array, out: Values, *, has_integers: bool) -> Mask:
    """Return bool (N, W): integers beyond those that the vectors all hold; anything at nulls.

    Args:
        numbers: (N, W): the values of the column, those of decimals as float64.
        column: (N * W,).
        out: (N, W): the numbers in the vectors.
        has_integers: As in `feature_rows`.
    """
    limit = _EXACT[out.dtype.name]
    if pa.types.is_integer(column.type):
        bounds = pc.min_max(column).as_py()
        if -limit <= (bounds["min"] or 0) and (bounds["max"] or 0) <= limit:
            return np.zeros(out.shape, np.bool_)
        return np.asarray((numbers > limit) | (numbers < -limit), np.bool_)
    if has_integers and not is_whole_decimal(column.type):
        return np.zeros(out.shape, np.bool_)
    # A number that float64 rounded when it was read may have come down to the limit.
    is_large = np.abs(numbers) >= limit + (out.dtype != np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(is_large & np.isfinite(out) & (numbers == np.floor(numbers)), np.bool_)


def is_whole_decimal(dtype: pa.DataType) -> bool:
    """Tell whether a type is that of decimals without places, which are integers."""
    return bool(pa.types.is_decimal(dtype) and dtype.scale <= 0)


def _rows(where: Mask) -> Mask:
    """Return bool (N,): rows of bool (N, W) with one."""
    return np.asarray(where.any(axis=1), np.bool_)


def _joined_at_once(source: Source, table: pa.Table, vector_type: pa.DataType) -> Values | None:
    """Return the vectors as Arrow joins them, if all columns have their type and no nulls.

    Looking at each of 1,000 columns costs several times as much as joining them.
    """
    names = [*source.features]
    types = dict(zip(table.column_names, table.schema.types, strict=True))
    if not all(isinstance(name, str) and types.get(name) == vector_type for name in names):
        return None
    batches = table.select(names).to_batches()
    if len(batches) != 1:
        return None
    try:
        tensor = batches[0].to_tensor(null_to_nan=False, row_major=True)
    except pa.ArrowTypeError:  # there are nulls
        return None
    return np.asarray(tensor.to_numpy())


def with_fixed_lists(
    source: Source, fields: pa.Schema, table: pa.Table, failures: Failures
) -> pa.Table:
    """Return a table whose features are numbers, or lists of the planned lengths.

    Args:
        source: The section that names the columns.
        fields: The input columns, which hold the lengths.
        table: N rows of a shard.
        failures: (N,), extended by rows whose lists have another length.
    """
    widths = widths_of(fields)
    if not widths and not any(dtype.num_fields for dtype in table.schema.types):
        return table
    for entry, width in zip(source.features, widths or (0,) * len(source.features), strict=True):
        name = column_of(entry)
        if not is_number_entry(entry) or (index := table.schema.get_field_index(name)) < 0:
            continue
        dtype = table.schema.field(index).type
        if is_list(dtype) and width:
            made, lengths = _fixed(as_array(table.column(index)), width)
            for row, length in lengths.items():
                message = f"{name} has {length} numbers, expected {width}"
                fail(failures, [row], Reason.BAD_SCHEMA, message)
        elif is_list(dtype) or width:
            made = pa.nulls(len(table), pa.list_(pa.float64(), width) if width else pa.float64())
            if not pa.types.is_null(dtype):
                message = f"{name} is {dtype}, in other shards {width or 'no list of'} numbers"
                fail(failures, range(len(table)), Reason.BAD_SCHEMA, message)
        else:
            continue
        table = table.set_column(index, name, made)
    return table


def is_number_entry(entry: FeatureEntry) -> bool:
    """Tell whether a feature is a number, or several."""
    return isinstance(entry, str) or not (entry.is_category or entry.part or entry.is_text)


def _fixed(column: pa.Array, width: int) -> tuple[pa.Array, dict[int, int]]:
    """Return lists of one length, null where it differs, and row -> differing length."""
    if pa.types.is_fixed_size_list(column.type):
        if column.type.list_size == width:
            return column, {}
        column = column.cast(pa.list_(column.type.value_type))
    lengths = pc.list_value_length(column)
    is_wrong = pc.fill_null(lengths, width).to_numpy() != width
    if is_wrong.any():
        column = with_nulls(column, is_wrong)
    made = column.cast(pa.list_(column.type.value_type, width))
    return made, {row: lengths[row].as_py() for row in np.flatnonzero(is_wrong).tolist()}


_MAX_DIGITS = 76


def _column(
    entry: FeatureEntry, columns: Mapping[str, pa.Array], num_rows: int, path: str
) -> pa.Array:
    """Return a column of a shard or of the names of its folders."""
    name = column_of(entry)
    if name in columns:
        return as_array(columns[name])
    value = hive_values(path).get(name)
    if isinstance(entry, FeatureColumn) and (entry.is_category or entry.part):
        return pa.repeat(pa.scalar(value, pa.string()), num_rows)
    number = None if value is None else number_of(value)  # others fail before
    return pa.repeat(pa.scalar(number, _type_of(number)), num_rows)


def number_of(text: str) -> int | float | None:
    """Return the finite number that a text spells; None if it spells none."""
    try:
        number = float(text)
    except ValueError:
        return None
    if "_" in text or not np.isfinite(number):
        return None
    digits = text.lstrip("+-")
    is_whole = digits.isdecimal() and len(digits.lstrip("0")) <= _MAX_DIGITS
    return int(text) if is_whole else number


def _type_of(number: int | float | None) -> pa.DataType:
    if not isinstance(number, int):
        return pa.float64()
    return pa.int64() if -(2**63) <= number < 2**63 else pa.decimal256(_MAX_DIGITS, 0)


def _piece(entry: FeatureEntry, column: pa.Array, null_features: str) -> Piece:
    policy = getattr(entry, "null", None)
    policy = null_features if policy is None else policy
    means = {"zero": 0.0, "nan": np.nan}.get(policy) if isinstance(policy, str) else policy
    if isinstance(entry, FeatureColumn) and entry.is_category:
        return _category_piece(entry, column, means)
    if isinstance(entry, FeatureColumn) and entry.part:
        numbers, is_bad = read_times(column, entry)
        piece = _numbers(entry.column, numbers, means)
        if not is_bad.any():
            return piece
        nulls = None if piece.nulls is None else piece.nulls & ~is_bad[:, None]
        return Piece(entry.column, piece.values, numbers, nulls, means, is_bad)
    return _numbers(column_of(entry), column, means)


def _numbers(name: str, column: pa.Array, means: float | None) -> Piece:
    width, outer = 1, None
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
        if column.null_count:
            outer = np.repeat(column.is_null().to_numpy(zero_copy_only=False), width)
        column = column.values.slice(column.offset * width, len(column) * width)
    nulls = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    if outer is not None:
        nulls = outer if nulls is None else nulls | outer
    dtype, judged_column = column.type, column
    if pa.types.is_boolean(dtype):
        column = column.cast(pa.uint8())
    elif pa.types.is_decimal(dtype) or pa.types.is_null(dtype):
        column = column.cast(pa.float64(), safe=False)
    is_exact = column.type.bit_width <= 16 or pa.types.is_float32(column.type)
    if not is_whole_decimal(dtype):
        judged_column = column
    return Piece(
        name,
        _view(column).reshape(-1, width),
        None if is_exact else judged_column,
        None if nulls is None else nulls.reshape(-1, width),
        means,
    )


def _view(column: pa.Array) -> Values:
    """View a numeric column as an array, with anything at nulls."""
    dtype = np.dtype(column.type.to_pandas_dtype())
    data = column.buffers()[1]
    if data is None or not len(column):
        return np.zeros(len(column), dtype)
    return np.frombuffer(data, dtype, len(column), column.offset * dtype.itemsize)


def _category_piece(entry: FeatureColumn, column: pa.Array, means: float | None) -> Piece:
    categories = categories_of(entry)
    codes, is_null = find_categories(column, categories)
    is_unknown = codes < 0
    # Unknown values that cost their rows are no nulls.
    if entry.null == "unknown" and entry.unknown != "quarantine":
        is_null = None
    if is_null is not None:
        is_unknown &= ~is_null
    size = len(categories)
    if entry.unknown == "own":
        codes = np.where(is_unknown, np.int32(size), codes)
    width = 1 if entry.encoding == "index" else size + (entry.unknown == "own")
    values: Values = codes[:, None]
    if entry.encoding == "one_hot":
        values = np.zeros((len(codes), width), np.uint8)
        rows = np.flatnonzero(codes >= 0)
        values[rows, codes[rows]] = 1
    nulls = None if is_null is None else np.broadcast_to(is_null[:, None], values.shape)
    costs = entry.unknown == "quarantine" and is_unknown.any()
    return Piece(entry.column, values, None, nulls, means, is_unknown if costs else None)


def features_to_arrow(values: Values) -> pa.Array:
    """Turn vectors (N, F) into a fixed-size list column."""
    flat: Any = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
