"""Columns inside structs and lists, addressed by path: `photo.bytes`, `pages[0].text`.

Pure over Arrow, and over the values of JSON. A column whose own name has dots or brackets comes
before a path; inside a struct, too, the longest name that a field has counts.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import as_array
from pipeline.core.printable import listed
from pipeline.sources.columns.arrow_types import is_list, published_type

Step = str | int
"""A field of a struct, or an item of a list, counted from 0."""
_ITEM = re.compile(r"\[(\d{1,9})\]")
_SHOWN_MAX_CHARS = 120


class NoColumnError(ValueError):
    """A schema has no such column; the message says which part of its path is not there."""


@dataclass(frozen=True)
class ColumnPath:
    """Where the values of a column are."""

    column: str
    """The column of the schema."""
    steps: tuple[Step, ...]
    """From there; empty for a column by its own name."""
    dtype: pa.DataType
    """Of the values."""

    @property
    def has_items(self) -> bool:
        """Tell whether it leads through a list."""
        return any(isinstance(step, int) for step in self.steps)


@functools.lru_cache(4096)
def heads(name: str) -> tuple[tuple[str, str], ...]:
    """Return the ways to divide a name before a dot or bracket, or not at all: longest first."""
    ends = [len(name), *(at for at in range(len(name) - 1, 0, -1) if name[at] in ".[")]
    return tuple((name[:end], name[end:]) for end in ends)


def find(name: str, schema: pa.Schema) -> ColumnPath:
    """Find a column by its own name or by its path.

    Raises:
        NoColumnError: There is none.
    """
    for head, rest in heads(name):
        if (index := schema.get_field_index(head)) >= 0:
            return _descended(name, head, rest, schema.field(index).type)
    raise NoColumnError(f"no column {name!r}; it has {listed(schema.names)}")


def _descended(name: str, head: str, rest: str, dtype: pa.DataType) -> ColumnPath:
    done, steps = head, list[Step]()
    while rest:
        item = _ITEM.match(rest)
        where = f"no column {name!r}: {done} is {_shown(dtype)}"
        if item is not None and _is_list(dtype):
            number = int(item[1])
            if pa.types.is_fixed_size_list(dtype) and number >= dtype.list_size:
                raise NoColumnError(f"{where}, whose last item is {dtype.list_size - 1}")
            steps.append(number)
            done, rest, dtype = done + item[0], rest[item.end() :], dtype.value_type
        elif rest[0] == "." and pa.types.is_struct(dtype):
            known = [split for split in heads(rest[1:]) if dtype.get_field_index(split[0]) >= 0]
            if not known:
                names = ", ".join(dtype.field(index).name for index in range(dtype.num_fields))
                raise NoColumnError(f"no column {name!r}: {done} has no such field; it has {names}")
            steps.append(known[0][0])
            done, rest = f"{done}.{known[0][0]}", known[0][1]
            dtype = dtype.field(dtype.get_field_index(steps[-1])).type
        elif _is_list(dtype):
            raise NoColumnError(f"{where}, of which an item is chosen as in {done}[0]")
        elif rest[0] == "." or item is not None:
            what = "fields" if rest[0] == "." else "items"
            raise NoColumnError(f"{where}, which has no {what}")
        else:
            raise NoColumnError(f"{where}, and {rest!r} behind it is neither a field nor an item")
    return ColumnPath(head, tuple(steps), dtype)


def _shown(dtype: pa.DataType) -> str:
    text = str(dtype)
    return text if len(text) <= _SHOWN_MAX_CHARS else f"{text[:_SHOWN_MAX_CHARS]}..."


def _is_list(dtype: pa.DataType) -> bool:
    is_view = pa.types.is_list_view(dtype) or pa.types.is_large_list_view(dtype)
    return bool(is_view or is_list(dtype))


def paths_of(names: Iterable[str], schema: pa.Schema) -> dict[str, ColumnPath]:
    """Return those names that are paths in a schema, not columns of their own, and where to."""
    paths = {}
    for name in dict.fromkeys(names):
        try:
            path = find(name, schema)
        except NoColumnError:
            continue
        if path.steps:
            paths[name] = path
    return paths


def with_paths(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """Return a schema that has those names that are paths as columns, too, behind its own."""
    paths = paths_of(names, schema)
    if not paths:
        return schema
    fields = (pa.field(name, path.dtype) for name, path in paths.items())
    return pa.schema([*schema, *fields], metadata=schema.metadata)


def take_paths(table: pa.Table, paths: Mapping[str, ColumnPath]) -> pa.Table:
    """Return a table that has the columns of paths as well, under the names of the paths.

    Args:
        table: N rows with the columns that the paths begin at, perhaps without the fields that no
            path leads to.
        paths: Name -> where.
    """
    for name, path in paths.items():
        column = extract(as_array(table.column(path.column)), path.steps)
        table = table.append_column(name, column)
    return table


def extract(column: pa.Array, steps: Sequence[Step]) -> pa.Array:
    """Follow the steps of a path, (N,) -> (N,); null where a struct is null or a list too short."""
    for step in steps:
        column = _item(column, step) if isinstance(step, int) else _field(column, step)
    return column


def _field(column: pa.Array, name: str) -> pa.Array:
    # Unlike StructArray.field, it keeps the nulls of the struct itself.
    return pc.struct_field(column, [column.type.get_field_index(name)])


def _item(column: pa.Array, number: int) -> pa.Array:
    dtype = column.type
    if pa.types.is_fixed_size_list(dtype):
        starts = (np.arange(len(column)) + column.offset) * dtype.list_size
        lengths = np.full(len(column), dtype.list_size)
    elif pa.types.is_list_view(dtype) or pa.types.is_large_list_view(dtype):
        starts, lengths = column.offsets.to_numpy(), column.sizes.to_numpy()
    else:
        offsets = column.offsets.to_numpy()
        starts, lengths = offsets[:-1], np.diff(offsets)
    is_there = column.is_valid().to_numpy(zero_copy_only=False) & (lengths > number)
    places = pa.array(starts.astype(np.int64) + number, mask=~is_there)
    values = column.values
    if published_type(values.type) != values.type:  # Arrow cannot choose rows of views
        values = values.cast(published_type(values.type))
    return values.take(places)


def value_at(row: Mapping[str, Any], name: str) -> tuple[Any, str]:
    """Return the value of a JSON object at a name or path, and why there cannot be one.

    Args:
        row: An object as `json` parses it.
        name: Of a key, or a path.

    Returns:
        The value, None if it is null or not there; and '', or what is in its way.
    """
    for head, rest in heads(name):
        if head in row:
            return _value_below(row[head], head, rest)
    return None, ""


def _value_below(value: Any, done: str, rest: str) -> tuple[Any, str]:
    while rest and value is not None:
        item = _ITEM.match(rest)
        if item is not None:
            if not isinstance(value, list):
                return None, f"{done} is no list"
            number = int(item[1])
            value = value[number] if number < len(value) else None
            done, rest = done + item[0], rest[item.end() :]
            continue
        if rest[0] != ".":
            return None, f"{rest!r} behind {done} is neither a field nor an item"
        if not isinstance(value, dict):
            return None, f"{done} is no object"
        known = [split for split in heads(rest[1:]) if split[0] in value]
        if not known:
            return None, ""
        value, done, rest = value[known[0][0]], f"{done}.{known[0][0]}", known[0][1]
    return value, ""
