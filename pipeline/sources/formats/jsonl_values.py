"""Convert JSON values to the columns that a job needs of JSON lines.

A value that does not fit fails its row, never its neighbours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import binary_array
from pipeline.sources.columns.arrow_types import is_number, is_text
from pipeline.sources.columns.pass_through import Problems, cast_column
from pipeline.sources.lines.line_columns import INT64, Column, Role, described

Values = Sequence[Any]
"""The JSON values of a column, one per row; None if a value is null or missing."""


def plain_type(column: Column) -> pa.DataType:
    """Return the type of JSON values that fit a column unchanged."""
    if column.role == "number":
        return pa.list_(pa.float64()) if column.width else pa.float64()
    dtype = column.dtype
    if column.role == "category" and dtype is not None:
        return dtype
    if column.role == "pass" and dtype is not None:
        if pa.types.is_boolean(dtype):
            return pa.bool_()
        if pa.types.is_integer(dtype):
            return pa.int64()
        if pa.types.is_floating(dtype):
            return pa.float64()
    return pa.large_string()


def from_values(column: Column, values: Values) -> tuple[pa.Array, Problems]:
    """Return a column of any JSON values, null where one does not fit, and row -> message."""
    return _FROM_VALUES[column.role](values, column)


def _texts(values: Sequence[str | None]) -> pa.Array:
    """Return large_string (N,); lone surrogates stay, and readers find that they are no UTF-8."""
    data = [None if text is None else text.encode("utf-8", "surrogatepass") for text in values]
    return pa.Array.from_buffers(pa.large_string(), len(data), binary_array(data).buffers())


_BAD = object()


def _converted(
    values: Values, column: Column, convert: Callable[[Any], Any], expected: str
) -> tuple[list[Any], Problems]:
    """Convert the values that are not null; those that become `_BAD` are problems."""
    converted = [None if value is None else convert(value) for value in values]
    bad = [row for row, value in enumerate(converted) if value is _BAD]
    problems = {
        row: f"{column.name} is {described(values[row])}, expected {expected}" for row in bad
    }
    return [None if value is _BAD else value for value in converted], problems


def _as_text(values: Values, column: Column) -> tuple[pa.Array, Problems]:
    convert, expected = _TEXTS[column.role]
    texts, problems = _converted(values, column, convert, expected)
    return _texts(texts), problems


def _id(value: Any) -> Any:
    if isinstance(value, str):
        return value
    # JSON has -0, which is a float here.
    is_whole = isinstance(value, int) or (isinstance(value, float) and value == 0)
    return str(int(value)) if is_whole and not isinstance(value, bool) else _BAD


def _category(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | str) else _BAD


_TEXTS: Mapping[Role, tuple[Callable[[Any], Any], str]] = {
    "text": (lambda value: value if isinstance(value, str) else _BAD, "text"),
    "id": (_id, "text or a whole number"),
    "category": (_category, "text, a whole number, true or false"),
}


def _as_number(values: Values, column: Column) -> tuple[pa.Array, Problems]:
    convert, expected = (_floats, "a list of numbers") if column.width else (_float, _NUMBER)
    good, problems = _converted(values, column, convert, expected)
    return pa.array(good, plain_type(column)), problems


_NUMBER = "a number of 64 bits"


def _float(value: Any) -> Any:
    return float(value) if _is_number(value) else _BAD


def _floats(value: Any) -> Any:
    if not isinstance(value, list) or not all(v is None or _is_number(v) for v in value):
        return _BAD
    return [None if v is None else float(v) for v in value]


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and math.isfinite(value)


def _as_passed(values: Values, column: Column) -> tuple[pa.Array, Problems]:
    """Cast values to the declared type; in a column of text other values become JSON.

    A text becomes a value of another type only if the job declares it, since JSON has types.
    """
    dtype = column.dtype
    assert dtype is not None, "a pass-through column has a type"
    if is_text(dtype):
        return _texts([v if isinstance(v, str | None) else _json(v) for v in values]), {}
    problems: Problems = {}
    groups: dict[pa.DataType, list[Any]] = {}
    for row, value in enumerate(values):
        if value is None:
            continue
        group, plain = _grouped(value, dtype, is_declared=column.is_declared)
        if group is None:
            problems[row] = f"{column.name} is {described(value)}, expected {dtype}"
            if not column.is_declared:
                problems[row] += " as in the first lines; declare another type with source.casts"
        else:
            groups.setdefault(group, [None] * len(values))[row] = plain
    made = pa.nulls(len(values), dtype)
    for group, plain in groups.items():
        array = _texts(plain) if is_text(group) else pa.array(plain, group)
        cast, misfits = cast_column(array, pa.field(column.name, dtype))
        made = pc.coalesce(made, cast)
        # If Arrow has no cast between the types, it has none of the nulls in other rows either.
        problems |= {row: message for row, message in misfits.items() if plain[row] is not None}
    return made, problems


def _grouped(
    value: Any, dtype: pa.DataType, *, is_declared: bool
) -> tuple[pa.DataType | None, Any]:
    """Return the type from which a value is cast, and the value; None if it does not fit."""
    if isinstance(value, str):
        return (pa.large_string() if is_declared else None), value
    if isinstance(value, bool):
        return (pa.bool_() if pa.types.is_boolean(dtype) else None), value
    if isinstance(value, Number):
        return pa.large_string(), value.literal
    if not is_number(dtype) or pa.types.is_boolean(dtype):
        return None, value
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None, value
    if isinstance(value, float):
        return pa.float64(), value
    is_plain = value in INT64 and not pa.types.is_decimal(dtype)
    return (pa.int64(), value) if is_plain else (pa.large_string(), str(value))


class Number(NamedTuple):
    """A number as it is written."""

    literal: str


def needs_literals(column: Column) -> bool:
    """Tell whether a column needs numbers as they are written, also in lists and objects."""
    dtype = column.dtype
    is_exact = dtype is not None and (is_text(dtype) or pa.types.is_decimal(dtype))
    return column.role == "pass" and is_exact


def _json(value: Any) -> str:
    """Return a value as JSON without blanks."""
    if isinstance(value, Number):
        return value.literal
    if isinstance(value, list):
        return f"[{','.join(map(_json, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{_json(key)}:{_json(item)}' for key, item in value.items())}}}"
    return json.dumps(value, ensure_ascii=False)


_FROM_VALUES: Mapping[Role, Callable[[Values, Column], tuple[pa.Array, Problems]]] = {
    "text": _as_text,
    "id": _as_text,
    "number": _as_number,
    "category": _as_text,
    "pass": _as_passed,
}
