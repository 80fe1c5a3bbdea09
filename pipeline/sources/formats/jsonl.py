"""JSON lines: a line is a row, with columns by name; only reading a shard counts its rows.

The result of a line depends on that line alone. msgspec parses it; lines that it refuses, and odd
ones, are parsed again as Python's own parser does it, which accepts more. A value that does not fit
its column fails its row, never its neighbours.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import NoneType
from typing import Any, BinaryIO, NamedTuple, NoReturn

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import binary_array
from pipeline.core.failures import Failure, Reason
from pipeline.core.figures import READ
from pipeline.core.semantics import SEMANTICS
from pipeline.job.source import Source
from pipeline.sources.columns.arrow_types import is_number, is_text
from pipeline.sources.columns.column_path import value_at
from pipeline.sources.columns.input_reader import Failures, fail
from pipeline.sources.columns.pass_through import Problems, cast_column
from pipeline.sources.lines.blocks import Block, read_blocks
from pipeline.sources.lines.line_columns import (
    INT64,
    Column,
    Role,
    Sample,
    described,
    first_objects,
)
from pipeline.sources.lines.line_format import LineFormat, Shard, max_line_bytes
from pipeline.sources.rows import Reader
from pipeline.sources.units import Extent
from pipeline.storage.store import Store, StoredFile

_WHAT = "JSON lines"
_ESCAPED = 6
"""JSON may write a byte of a text as six: \\u0041."""
MAX_DEPTH = 200
"""Maximum depth of lists and objects; Python's own parser ends below 1,000."""
MAX_VALUES = 2**21
"""Maximum values of a line, counted by commas and brackets, those in texts included."""
_MAX_DIGITS = 300
_FEW_CHARS = 2**24
"""Arrow's growing builder may take fewer characters of texts than this."""
_NEGATIVE_ZERO = re.compile(rb"[:\[,][ \t\r]*-0[ \t\r\n,\]}]")
"""Python's parser makes it a float here, the other one the integer 0."""
Values = Sequence[Any]
"""The JSON values of a column, one per row; None if a value is null or missing."""


def from_values(column: Column, values: Values) -> tuple[pa.Array, Problems]:
    """Return a column of any JSON values, null where one does not fit, and row -> message."""
    return _FROM_VALUES[column.role](values, column)


def _texts(values: Sequence[str | None]) -> pa.Array:
    """Return large_string (N,); lone surrogates stay, and readers find that they are no UTF-8."""
    if sum(len(text) for text in values if text) < _FEW_CHARS:
        with contextlib.suppress(UnicodeEncodeError):
            return pa.array(values, pa.large_string())
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
    types = {*map(type, values)}
    if types <= {str, NoneType}:
        return _texts(values), {}
    if types <= {int, NoneType} and column.role != "text":
        return _texts([None if value is None else str(value) for value in values]), {}
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
    is_plain = not column.width and {*map(type, values)} <= {float, int, NoneType}
    if is_plain and (made := _numbers(values, pa.float64())) is not None:
        return made, {}
    convert, expected = (_floats, "a list of numbers") if column.width else (_float, _NUMBER)
    good, problems = _converted(values, column, convert, expected)
    return pa.array(good, pa.list_(pa.float64()) if column.width else pa.float64()), problems


def _numbers(values: Values, dtype: pa.DataType) -> pa.Array | None:
    """Return numbers and nulls as an array; None if one is infinite or does not fit the type."""
    try:
        made = pa.array(values, dtype)
    except (pa.ArrowException, OverflowError):
        return None
    is_finite = not pa.types.is_floating(dtype) or pc.all(pc.is_finite(made)).as_py() is not False
    return made if is_finite else None


_NUMBER = "a number of 64 bits"


def _float(value: Any) -> Any:
    return float(value) if _is_number(value) else _BAD


def _floats(value: Any) -> Any:
    if not isinstance(value, list) or not all(v is None or _is_number(v) for v in value):
        return _BAD
    return [None if v is None else float(v) for v in value]


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, (bool, int, float)) and math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


def _as_passed(values: Values, column: Column) -> tuple[pa.Array, Problems]:
    """Cast values to the declared type; in a column of text other values become JSON.

    A text becomes a value of another type only if the job declares it, since JSON has types.
    """
    dtype = column.dtype
    assert dtype is not None, "a pass-through column has a type"
    if is_text(dtype):
        return _texts([v if isinstance(v, str | None) else _json(v) for v in values]), {}
    problems: Problems = {}
    plain = _PLAIN.get(frozenset(map(type, values)) - {NoneType})
    if plain is not None and _numbers_become(plain, dtype):
        numbers = _numbers(values, plain)
        if numbers is not None:
            return cast_column(numbers, pa.field(column.name, dtype))
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


_PLAIN = {
    frozenset([int]): pa.int64(),
    frozenset([float]): pa.float64(),
    frozenset([bool]): pa.bool_(),
}
"""Types of all values of a column that are cast at once -> the type as which they are cast."""


def _numbers_become(plain: pa.DataType, dtype: pa.DataType) -> bool:
    """Tell whether numbers, or booleans, are cast to a type as `_grouped` casts them."""
    if pa.types.is_boolean(plain) or pa.types.is_boolean(dtype):
        return bool(plain == dtype)
    return bool(pa.types.is_integer(dtype) or pa.types.is_floating(dtype))


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
    "presence": lambda values, _: (pa.array([None if v is None else True for v in values]), {}),
}


def parse_block(
    block: Block, columns: Mapping[str, Column], max_line_bytes: int
) -> tuple[pa.Table, Failures]:
    """Return the columns of lines, null where a line or value is bad, and the failures.

    Args:
        block: N lines.
        columns: Name in the table -> column.
        max_line_bytes: Limit of a line.
    """
    failures: Failures = [None] * len(block)
    objects = _parse_rows(block, max_line_bytes, failures)
    exact = functools.cache(lambda row: _parse_slowly(block.line(row), _EXACT_DECODER))
    made = [_from_objects(column, objects, exact) for column in columns.values()]
    for _, problems in made:
        for row, message in problems.items():
            fail(failures, [row], Reason.BAD_SCHEMA, message)
    return pa.table([array for array, _ in made], names=[*columns]), failures


def _parse_rows(block: Block, max_line_bytes: int, failures: Failures) -> list[dict[str, Any]]:
    """Return the objects of lines; {} for a line without one, which fails."""
    starts, ends, sizes = block.starts.tolist(), block.ends.tolist(), block.sizes.tolist()
    data, objects, decode = block.data, list[dict[str, Any]](), _FAST_DECODER.decode
    is_odd = _has_negative_zero(data, starts[0], ends[-1])
    for row, (start, end, size_bytes) in enumerate(zip(starts, ends, sizes, strict=True)):
        value: Any = None
        line = data[start:end]
        if not is_odd and size_bytes <= max_line_bytes and not _is_large(line):
            try:
                value = decode(line)
            except (msgspec.DecodeError, RecursionError):
                value = None  # parsed again below, where Python's parser says what is wrong
        is_object = type(value) is dict
        objects.append(value if is_object else _parse_row(block, row, max_line_bytes, failures))
    return objects


def _is_large(line: bytes) -> bool:
    """Tell whether a line may be nested too deep, or have too many values."""
    if len(line) <= MAX_DEPTH:
        return False
    openings = line.count(b"[") + line.count(b"{")
    if openings > MAX_DEPTH:
        return True
    return len(line) > MAX_VALUES and openings + line.count(b",") > MAX_VALUES


def _has_negative_zero(data: bytes, start: int, end: int) -> bool:
    has_digits = data.find(b"-0", start, end) >= 0
    return has_digits and _NEGATIVE_ZERO.search(data, start, end) is not None


def _parse_row(block: Block, row: int, max_line_bytes: int, failures: Failures) -> dict[str, Any]:
    """Return the object of a line; {} if there is none, which is a failure."""
    number, size_bytes = int(block.numbers[row]), int(block.sizes[row])
    if size_bytes > max_line_bytes:
        message = f"line {number} has {size_bytes} bytes, the limit is {max_line_bytes}"
        failures[row] = Failure(Reason.TOO_LARGE, READ, message, num_bytes=size_bytes)
        return {}
    try:
        value = parse_line(block.line(row))
    except ValueError as error:
        message = f"line {number} {error}"
    else:
        if isinstance(value, dict):
            return value
        message = f"line {number} is {described(value)}, expected an object"
    failures[row] = Failure(Reason.DECODE_ERROR, READ, message, num_bytes=size_bytes)
    return {}


def _from_objects(
    column: Column, objects: Sequence[dict[str, Any]], exact: Callable[[int], Any]
) -> tuple[pa.Array, Problems]:
    """Return a column of objects, null where a value does not fit, and row -> message.

    Args:
        exact: Returns the object of a row, with numbers as they are written.
    """
    name, troubles = column.name, dict[int, str]()
    if "." in name:
        lookups = [value_at(row, name) for row in objects]
        values = [value for value, _ in lookups]
        troubles = {row: f"{name}: {why}" for row, (_, why) in enumerate(lookups) if why}
    else:
        values = [row.get(name) for row in objects]
    if needs_literals(column):
        for row, value in enumerate(values):
            if isinstance(value, (float, list, dict)):
                values[row] = value_at(exact(row), name)[0]
    made, problems = from_values(column, values)
    return made, {**problems, **troubles}


def parse_line(line: bytes) -> Any:
    """Parse one line, with or without its line end.

    Raises:
        ValueError: It is not JSON, or too much of it; the message continues `line 7 `.
    """
    if not _is_large(line) and not _has_negative_zero(line, 0, len(line)):
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            return _FAST_DECODER.decode(line)
    return _parse_slowly(line, _DECODER)


def _parse_slowly(line: bytes, decoder: json.JSONDecoder) -> Any:
    """Parse one line as Python does, which accepts more and says what is wrong.

    Args:
        line: The line, with or without its line end.
        decoder: Decodes numbers.

    Raises:
        ValueError: It is not JSON, or too much of it; the message continues `line 7 `.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8, at byte {error.start}") from None
    openings = text.count("[") + text.count("{")
    if openings + text.count(",") > MAX_VALUES:
        raise ValueError(f"has more than {MAX_VALUES} values")
    try:
        value = decoder.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if openings > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise ValueError(_TOO_DEEP)
    return value


_TOO_DEEP = f"is nested more than {MAX_DEPTH} deep"


def _depth(value: Any) -> int:
    """Return the depth of lists and objects inside each other."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        level = [
            inner for item in level for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def _whole(digits: str) -> int | float:
    """Parse an integer; -0 and numbers beyond float64 become floats."""
    return float(digits) if digits == "-0" or len(digits) > _MAX_DIGITS else int(digits)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"is not JSON: {name} is no value")


_FAST_DECODER = msgspec.json.Decoder[Any]()
_DECODER = json.JSONDecoder(parse_int=_whole, parse_constant=_no_constant)
_EXACT_DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=_no_constant)


def _object(line: bytes) -> Mapping[str, Any] | None:
    try:
        value = parse_line(line)
    except ValueError:  # the line fails its row when it is read
        return None
    return value if isinstance(value, dict) else None


class Jsonl(LineFormat):
    """JSON lines, plain or compressed as a whole by gzip or zstd."""

    name = "jsonl"
    suffixes = (*(".jsonl", ".jsonl.gz", ".jsonl.zst"), *(".ndjson", ".ndjson.gz", ".ndjson.zst"))
    semantics = SEMANTICS["jsonl"]
    file_types = frozenset(["gzip", "zstd"])

    def sample(self, store: Store, shards: Sequence[StoredFile], source: Source) -> Sample:
        """Return the first lines of the first shard in which a line is an object."""
        max_bytes = max_line_bytes(source, _ESCAPED)

        def read(handle: BinaryIO, path: str) -> Iterator[tuple[Mapping[str, Any] | str, int]]:
            for block in read_blocks(handle, max_bytes, _WHAT):
                for row in range(len(block)):
                    if block.broken:
                        yield block.broken, 0
                    elif block.sizes[row] <= max_bytes:
                        line = block.line(row)
                        value = _object(line)
                        bad = f"line {block.numbers[row]} is no JSON object"
                        yield bad if value is None else value, len(line)

        return Sample(source, *first_objects(store, shards, read))

    def shard(self, reader: Reader, extent: Extent, columns: Mapping[str, Column]) -> Shard[Block]:
        max_bytes = max_line_bytes(reader.source, _ESCAPED)
        parse = partial(parse_block, columns=columns, max_line_bytes=max_bytes)
        read = partial(read_blocks, max_line_bytes=max_bytes, what=_WHAT)
        return Shard(reader, extent, max_bytes, read, parse)


FORMAT = Jsonl()
