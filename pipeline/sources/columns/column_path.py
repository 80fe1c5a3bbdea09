"""Columns inside structs, addressed by path: `photo.bytes`, `meta.size.w`.

A column or field whose own name has dots comes before a path: the longest name counts. The same
paths lead through the objects of JSON.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import as_array
from pipeline.core.printable import listed

_SHOWN_MAX_CHARS = 120


class NoColumnError(ValueError):
    """A schema has no such column; the message says which part of its path is missing."""


@dataclass(frozen=True)
class ColumnPath:
    """Where the values of a column are."""

    column: str
    """The column of the schema."""
    fields: tuple[str, ...]
    """The fields from there on; empty for a column by its own name."""
    dtype: pa.DataType
    """The type of the values."""


@functools.lru_cache(4096)
def heads(name: str) -> tuple[tuple[str, str], ...]:
    """Return the ways to divide a name before a dot, or not at all; longest first."""
    ends = [len(name), *(at for at in range(len(name) - 1, 0, -1) if name[at] == ".")]
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
    done, fields = head, list[str]()
    while rest:
        if not pa.types.is_struct(dtype):
            shown = str(dtype)[:_SHOWN_MAX_CHARS]
            raise NoColumnError(f"no column {name!r}: {done} is {shown}, which has no fields")
        known = [split for split in heads(rest[1:]) if dtype.get_field_index(split[0]) >= 0]
        if not known:
            names = ", ".join(dtype.field(index).name for index in range(dtype.num_fields))
            raise NoColumnError(f"no column {name!r}: {done} has no such field; it has {names}")
        field, rest = known[0]
        fields.append(field)
        done, dtype = f"{done}.{field}", dtype.field(dtype.get_field_index(field)).type
    return ColumnPath(head, tuple(fields), dtype)


def paths_of(names: Iterable[str], schema: pa.Schema) -> dict[str, ColumnPath]:
    """Return the names that are paths in a schema, not columns of their own, with their targets."""
    paths = {}
    for name in dict.fromkeys(names):
        try:
            path = find(name, schema)
        except NoColumnError:
            continue
        if path.fields:
            paths[name] = path
    return paths


def with_paths(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """Return a schema that also has, behind its own columns, those names that are paths."""
    paths = paths_of(names, schema)
    if not paths:
        return schema
    fields = (pa.field(name, path.dtype) for name, path in paths.items())
    return pa.schema([*schema, *fields], metadata=schema.metadata)


def take_paths(table: pa.Table, paths: Mapping[str, ColumnPath]) -> pa.Table:
    """Return a table that also has the columns of paths, under the names of the paths.

    Args:
        table: N rows with the columns that the paths begin at; fields that no path leads to may
            be missing.
        paths: Name -> where.
    """
    for name, path in paths.items():
        column = extract(as_array(table.column(path.column)), path.fields)
        table = table.append_column(name, column)
    return table


def extract(column: pa.Array, fields: Sequence[str]) -> pa.Array:
    """Follow the fields of a path, (N,) -> (N,); null where a struct is null."""
    for field in fields:
        # Unlike StructArray.field, it keeps the nulls of the struct itself.
        column = pc.struct_field(column, [column.type.get_field_index(field)])
    return column


def value_at(row: Mapping[str, Any], name: str) -> tuple[Any, str]:
    """Return the value of a JSON object at a name or path, and why there cannot be one.

    Args:
        row: An object as `json` parses it.
        name: A key, or a path.

    Returns:
        The value, None if it is null or missing; and '', or what prevents it.
    """
    for head, rest in heads(name):
        if head in row:
            return _value_below(row[head], head, rest)
    return None, ""


def _value_below(value: Any, done: str, rest: str) -> tuple[Any, str]:
    while rest and value is not None:
        if not isinstance(value, dict):
            return None, f"{done} is no object"
        known = [split for split in heads(rest[1:]) if split[0] in value]
        if not known:
            return None, ""
        value, done, rest = value[known[0][0]], f"{done}.{known[0][0]}", known[0][1]
    return value, ""
