"""Parse JSON lines: a block at once with Arrow if none of its lines is odd, otherwise line by line.

The result of a line depends on that line alone. Arrow is used only where its result equals that of
parsing line by line: lines are searched for odd values first, and Arrow raises on the others.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from pipeline.core.arrays import as_array
from pipeline.core.failures import Failure, Reason
from pipeline.core.figures import READ
from pipeline.sources.columns.column_path import value_at
from pipeline.sources.columns.input_reader import Failures, fail
from pipeline.sources.columns.pass_through import Problems, exact_max
from pipeline.sources.formats.jsonl_values import (
    Number,
    from_values,
    needs_literals,
    plain_type,
)
from pipeline.sources.lines.blocks import BLANK, Block
from pipeline.sources.lines.line_columns import Column, described

MAX_DEPTH = 200
"""Maximum depth of lists and objects; Python's own parser ends below 1,000."""
MAX_VALUES = 2**21
"""Maximum values of a line, counted by commas and brackets, those in texts included."""
_MAX_DIGITS = 300
_ODD = re.compile(rb"[:\[,][ \t\r]*(?:-?(?:NaN|Inf)|-0[ \t\r\n,\]}])")
"""Values that Arrow reads differently: JSON has no NaN, and -0 is no integer."""


class Parser:
    """Turns lines into tables; remembers how the last lines were parsed."""

    def __init__(self, columns: Mapping[str, Column], max_line_bytes: int) -> None:
        self._columns = columns
        self._max_line_bytes = max_line_bytes
        roles = {column.role for column in columns.values()}
        is_odd = [b"-0"] if roles & {"number", "pass", "category"} else []
        self._maybe_odd = (b"NaN", b"Inf", *is_odd)
        id_types = [pa.large_string(), pa.int64()] if "id" in roles else [pa.null()]
        self._schemas = [schema for dtype in id_types if (schema := _schema(columns, dtype))]

    def parse(self, block: Block) -> tuple[pa.Table, Failures]:
        """Return the columns of the lines, null where a line or value is bad, and the failures.

        Args:
            block: N lines.
        """
        failures: Failures = [None] * len(block)
        table = self._parse_at_once(block)
        if table is not None:
            columns = (as_array(table.column(c.name)) for c in self._columns.values())
            made = [(column, Problems()) for column in columns]
        else:
            objects = [self._parse_line(block, row, failures) for row in range(len(block))]
            exact = functools.cache(lambda row: parse_line(block.line(row), _EXACT_DECODER))
            made = [_from_objects(column, objects, exact) for column in self._columns.values()]
        for _, problems in made:
            for row, message in problems.items():
                fail(failures, [row], Reason.BAD_SCHEMA, message)
        return pa.table([array for array, _ in made], names=[*self._columns]), failures

    def _parse_at_once(self, block: Block) -> pa.Table | None:
        """Return the columns that Arrow parses; None if lines must be parsed one by one."""
        data = block.data[block.starts[0] : block.ends[-1]]
        if not self._schemas or not self._is_plain(block, data):
            return None
        for schema in self._schemas:
            try:
                table = pa.json.read_json(
                    pa.BufferReader(data),
                    pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
                    pa.json.ParseOptions(
                        explicit_schema=schema, unexpected_field_behavior="ignore"
                    ),
                )
            except pa.ArrowException:
                continue
            if schema is not self._schemas[0]:
                self._schemas.reverse()
            if table.num_rows != len(block):
                return None
            return None if self._may_be_rounded(table) else table
        return None

    def _may_be_rounded(self, table: pa.Table) -> bool:
        """Tell whether a number is infinite, or passed through and so large that float64 does not
        hold all integers; JSON has no infinite numbers."""
        for column in self._columns.values():
            values = table.column(column.name)
            values = pc.list_flatten(values) if pa.types.is_list(values.type) else values
            if not pa.types.is_floating(values.type):
                continue
            is_passed = column.role == "pass" and column.dtype is not None
            limit = exact_max(column.dtype) if is_passed else sys.float_info.max
            if pc.any(pc.greater_equal(pc.abs(values), limit)).as_py():
                return True
        return False

    def _is_plain(self, block: Block, data: bytes) -> bool:
        """Tell whether each line is one object, as far as that is seen without parsing.

        A line that begins with { and ends with } cannot go on in the next one: behind a closing
        bracket inside an object JSON has no opening one, and inside a text no line end.
        """
        view = np.frombuffer(block.data, np.uint8)
        starts, last = block.starts, block.ends - 1
        if block.sizes.max() > self._max_line_bytes or not _are_neighbours(block):
            return False
        last = last - (view[last] == 0x0A)
        last = last - ((view[last] == 0x0D) & (last > starts))
        if not (view[starts] == 0x7B).all() or not (view[last] == 0x7D).all():
            return False
        openings = data.count(b"{") + data.count(b"[")
        if openings - len(block) >= MAX_DEPTH and _most_openings(block) > MAX_DEPTH:
            return False
        if data.count(b",") + openings > MAX_VALUES:
            return False
        if any(odd in data for odd in self._maybe_odd) and _ODD.search(data):
            return False
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            return False
        return True

    def _parse_line(self, block: Block, row: int, failures: Failures) -> dict[str, Any]:
        """Return the object of a line; {} if there is none, which is a failure."""
        number, size_bytes = int(block.numbers[row]), int(block.sizes[row])
        if size_bytes > self._max_line_bytes:
            message = f"line {number} has {size_bytes} bytes, the limit is {self._max_line_bytes}"
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


def _schema(columns: Mapping[str, Column], id_type: pa.DataType) -> pa.Schema | None:
    """Return the types of the values by name; None if Arrow cannot read them at once."""
    types: dict[str, pa.DataType] = {}
    for column in columns.values():
        dtype = id_type if column.role == "id" else plain_type(column)
        if types.setdefault(column.name, dtype) != dtype or "." in column.name:
            return None
    return pa.schema([*types.items()])


def _from_objects(
    column: Column, objects: Sequence[dict[str, Any]], exact: Callable[[int], Any]
) -> tuple[pa.Array, Problems]:
    """Return a column of objects, null where a value does not fit, and row -> message.

    Args:
        exact: Returns the object of a row, with numbers as they are written.
    """
    lookups = [value_at(row, column.name) for row in objects]
    values = [value for value, _ in lookups]
    if needs_literals(column):
        for row, value in enumerate(values):
            if isinstance(value, (float, list, dict)):
                values[row] = value_at(exact(row), column.name)[0]
    made, problems = from_values(column, values)
    blocked = {
        row: f"{column.name}: {trouble}" for row, (_, trouble) in enumerate(lookups) if trouble
    }
    return made, {**problems, **blocked}


def _are_neighbours(block: Block) -> bool:
    """Tell whether only blank lines lie between the lines, some of which may be left out."""
    gaps = np.flatnonzero(block.starts[1:] != block.ends[:-1]).tolist()
    return not any(block.data[block.ends[row] : block.starts[row + 1]].strip(BLANK) for row in gaps)


def _most_openings(block: Block) -> int:
    view = np.frombuffer(block.data, np.uint8)[: block.ends[-1]]
    at = np.flatnonzero((view == 0x7B) | (view == 0x5B))
    # Those before each line and before the end; blank lines have none.
    before = np.searchsorted(at, np.append(block.starts, block.ends[-1]))
    return int(np.diff(before).max())


def parse_line(line: bytes, decoder: json.JSONDecoder | None = None) -> Any:
    """Parse one line.

    Args:
        line: The line, with or without its line end.
        decoder: Decodes numbers; None: to numbers of Python.

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
        value = (decoder or _DECODER).decode(text)
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


_DECODER = json.JSONDecoder(parse_int=_whole, parse_constant=_no_constant)
_EXACT_DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=_no_constant)
