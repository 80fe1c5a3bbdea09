"""Data files of lake tables: which of their rows live, and how their columns are those of a table.

A table renames, adds, drops and widens columns without writing its files anew, so a column is match
by its key: the name or the field id that it has in files. Values of partition columns are not in
the files at all; the table knows them for each file.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import as_array
from pipeline.core.ranges import Ranges
from pipeline.sources.columns.arrow_types import is_binary, is_list, is_text, plain_type
from pipeline.sources.columns.column_path import NoColumnError, find
from pipeline.storage.interface import StoredFile

PHYSICAL, FIELD_ID = b"physical", b"field_id"
"""Metadata of a table's column: its name in files, or the id that it has there."""
NAMES = b"names"
"""Metadata of a table's column beside its id: JSON names that it may have in files without ids."""
PARTITION_COLUMNS = b"partition_columns"
"""Metadata of a table's schema: JSON names of the columns whose values the table knows."""
FILES_FIRST = b"files_first"
"""Metadata of a table's schema: of such a column, a file that has it is read instead."""
VERSION = b"version"
"""Metadata of a table's schema: the number of the version."""
_ID_IN_FILE = b"PARQUET:field_id"


@dataclass(frozen=True, slots=True)
class TableFile(StoredFile):
    """A data file of a table, as one version of the table has it."""

    table: pa.Schema = field(kw_only=True)
    """The columns of the table, each with its key in the metadata, at any depth."""
    given: tuple[str | None, ...] = field(kw_only=True)
    """The values of the partition columns, as text."""
    rows: Ranges | None = field(kw_only=True)
    """The rows that are not deleted; None: all."""
    certain: Sequence[str] = field(kw_only=True, default=())
    """Partition columns whose values are those of all rows, whatever columns the file has."""


class View:
    """The columns of a shard of no table: those that it has."""

    problem = ""
    """Why the shard does not fit its table; '' if it does."""
    given: Sequence[str] = ()
    """Partition columns that the shard itself does not have."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        """The columns, whether or not the shard itself has them."""

    def stored(self, names: Iterable[str]) -> list[str]:
        """Return the columns of the shard that hold some columns; `column.field` for fields."""
        return [*names]

    def shown(
        self, batch: pa.RecordBatch, names: Iterable[str], given: Sequence[str | None]
    ) -> pa.RecordBatch:
        """Return the columns as the table has them.

        Args:
            batch: What was read for `stored(names)`.
            given: The values of the partition columns.
        """
        return batch


@dataclass(frozen=True)
class _Column:
    """A column or field of a table in a shard."""

    field: pa.Field
    """As the table has it."""
    at: str | None
    """Its name in the shard; None if the shard does not have it."""
    children: tuple[_Column, ...]
    """The fields of a struct, the values of a list, or the keys and values of a map."""
    is_same: bool
    """Whether the values in the shard need no change."""


class TableView(View):
    """The columns of a table in one of its files."""

    def __init__(self, table: pa.Schema, shard: pa.Schema) -> None:
        plain = [_without_keys(column) for column in table]
        super().__init__(pa.schema(plain))
        self._partition_columns = partition_columns(table)
        self._columns: dict[str, _Column] = {}
        self._types = {column.name: column.type for column in shard}
        self._has_keys = not len(shard) or _has_ids(shard) or not _needs_ids(table)
        is_files_first = FILES_FIRST in (table.metadata or {})
        for keyed, column in zip(table, plain, strict=True):
            is_given = keyed.name in self._partition_columns
            if is_given and not is_files_first:
                continue
            resolved = _resolved(keyed, column, [*shard])
            if not is_given or resolved.at is not None:
                self._columns[keyed.name] = resolved
        self.given = [name for name in self._partition_columns if name not in self._columns]

    @cached_property
    def problem(self) -> str:  # type: ignore[override]
        if not self._has_keys:
            return "it has no field ids, and the table no name mapping for such files"
        for name, column in self._columns.items():
            if column.at is not None and (trouble := _trouble(column, self._types[column.at])):
                return f"column {name!r} {trouble}"
        return ""

    def stored(self, names: Iterable[str]) -> list[str]:
        stored: dict[str, None] = {}
        for name in names:
            try:
                path = find(name, self.schema)
            except NoColumnError:
                continue
            column = self._columns.get(path.column)
            if column is not None and column.at is not None:
                stored[_stored_path(column, path.fields)] = None
        return [*stored]

    def shown(
        self, batch: pa.RecordBatch, names: Iterable[str], given: Sequence[str | None]
    ) -> pa.RecordBatch:
        heads = dict.fromkeys(find(name, self.schema).column for name in names)
        values = dict(zip(self._partition_columns, given, strict=True))
        arrays = [self._array(batch, name, values) for name in heads]
        schema = pa.schema([self.schema.field(name) for name in heads])
        if not arrays:
            return batch.select([])
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _array(
        self, batch: pa.RecordBatch, name: str, values: Mapping[str, str | None]
    ) -> pa.Array:
        dtype = self.schema.field(name).type
        if name not in self._columns:
            value = pa.scalar(values[name], pa.string()).cast(dtype)
            return pa.repeat(value, batch.num_rows)
        column = self._columns[name]
        if column.at is None:
            return pa.nulls(batch.num_rows, dtype)
        return _taken(as_array(batch.column(column.at)), column)


def view_of(shard: StoredFile, schema: pa.Schema) -> View:
    """Return the view of a listed shard, given the columns that are in it."""
    return TableView(shard.table, schema) if isinstance(shard, TableFile) else View(schema)


def narrowed(table: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """Return only the columns of a table that some names begin at."""
    heads = set[str]()
    for name in names:
        with contextlib.suppress(NoColumnError):
            heads.add(find(name, table).column)
    return pa.schema([column for column in table if column.name in heads], metadata=table.metadata)


def without_version(table: pa.Schema) -> pa.Schema:
    """Return the columns of a table, equal for all versions that have the same."""
    metadata = {key: value for key, value in (table.metadata or {}).items() if key != VERSION}
    return table.with_metadata(metadata)


def partition_columns(table: pa.Schema) -> list[str]:
    """Return the columns of a table whose values are not in its files."""
    names: list[str] = json.loads((table.metadata or {}).get(PARTITION_COLUMNS, b"[]"))
    return names


def _has_ids(fields: Iterable[pa.Field]) -> bool:
    return any(_ID_IN_FILE in (column.metadata or {}) for column in fields)


def _needs_ids(table: pa.Schema) -> bool:
    """Tell whether columns are only known by their ids in files."""
    return any(FIELD_ID in (f.metadata or {}) and NAMES not in f.metadata for f in table)


def _without_keys(column: pa.Field) -> pa.Field:
    """Return a field without metadata at any depth, so that equal columns have equal fields."""
    return pa.field(column.name, _plain(column.type), column.nullable)


def _plain(dtype: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(dtype):
        return pa.struct([_without_keys(dtype.field(i)) for i in range(dtype.num_fields)])
    if pa.types.is_map(dtype):
        return pa.map_(_plain(dtype.key_type), _plain(dtype.item_type))
    if is_list(dtype):
        return pa.list_(_without_keys(dtype.value_field))
    return dtype


def _children(dtype: pa.DataType) -> list[pa.Field]:
    if pa.types.is_struct(dtype):
        return [dtype.field(i) for i in range(dtype.num_fields)]
    if pa.types.is_map(dtype):
        return [dtype.key_field, dtype.item_field]
    return [dtype.value_field] if is_list(dtype) else []


def _resolved(keyed: pa.Field, column: pa.Field, candidates: Sequence[pa.Field]) -> _Column:
    """Find a column among the fields of a shard at the same depth, and below it its children."""
    metadata = keyed.metadata or {}
    if FIELD_ID in metadata and (_has_ids(candidates) or NAMES not in metadata):
        number = metadata[FIELD_ID]
        match = next((f for f in candidates if (f.metadata or {}).get(_ID_IN_FILE) == number), None)
    elif FIELD_ID in metadata:
        names = json.loads(metadata[NAMES])
        match = next((f for f in candidates if f.name in names), None)
    else:
        name = metadata.get(PHYSICAL, keyed.name.encode()).decode()
        match = next((f for f in candidates if f.name == name), None)
    return _with_children(keyed, column, match)


def _with_children(keyed: pa.Field, column: pa.Field, match: pa.Field | None) -> _Column:
    inner = [] if match is None else _children(match.type)
    pairs = [*zip(_children(keyed.type), _children(column.type), strict=True)]
    if pa.types.is_struct(column.type):
        children = [_resolved(*pair, inner) for pair in pairs]
    elif len(inner) == len(pairs):  # the entries of lists and maps have no names of their own
        children = [_with_children(*pair, child) for pair, child in zip(pairs, inner, strict=True)]
    else:
        children = []
    is_same = match is not None and match.type == column.type
    return _Column(column, match and match.name, tuple(children), is_same)


def _stored_path(column: _Column, fields: Sequence[str]) -> str:
    """Return the path of a field in the shard, or its column if a field on the way is missing."""
    at = [column.at or ""]
    here = column
    for name in fields:
        here = next(child for child in here.children if child.field.name == name)
        if here.at is None:
            return at[0]
        at.append(here.at)
    return ".".join(at)


_WIDER = (
    (pa.types.is_signed_integer, pa.types.is_signed_integer),
    (pa.types.is_unsigned_integer, pa.types.is_integer),
    (pa.types.is_floating, pa.types.is_floating),
    (pa.types.is_integer, pa.types.is_floating),
    (pa.types.is_integer, pa.types.is_decimal),
    (pa.types.is_decimal, pa.types.is_decimal),
    (pa.types.is_date, pa.types.is_timestamp),
    (pa.types.is_date, pa.types.is_date),
    (pa.types.is_timestamp, pa.types.is_timestamp),
    (is_text, is_text),
    (is_binary, is_binary),
    (pa.types.is_null, lambda dtype: True),
)
"""Types in a file that a table may have widened to others; a value that does not fit is damage."""


def _trouble(column: _Column, stored: pa.DataType) -> str:
    """Return why values in a shard cannot be those of the table, or ''."""
    wanted, stored = column.field.type, plain_type(stored)
    if column.is_same:
        return ""
    if column.children and len(_children(stored)):
        inner = {child.name: child.type for child in _children(stored)}
        troubles = (_trouble(c, inner[c.at]) for c in column.children if c.at is not None)
        return next(filter(None, troubles), "")
    if pa.types.is_nested(wanted) or not any(a(stored) and b(wanted) for a, b in _WIDER):
        return f"is {stored} in this file, the table has {wanted}"
    return ""


def _taken(array: pa.Array, column: _Column) -> pa.Array:
    """Return the values of a shard as the table has them, (N,) -> (N,)."""
    dtype = column.field.type
    if array.type == dtype:
        return array
    if pa.types.is_struct(dtype):
        children = [_child(array, child) for child in column.children]
        return pa.StructArray.from_arrays(
            children, fields=[dtype.field(i) for i in range(dtype.num_fields)], mask=array.is_null()
        )
    if pa.types.is_map(dtype) or is_list(dtype):
        return _taken_entries(array, column)
    return array.cast(dtype)


def _child(array: pa.StructArray, child: _Column) -> pa.Array:
    index = -1 if child.at is None else array.type.get_field_index(child.at)
    if index < 0:  # the shard does not have it, or the job does not need it
        return pa.nulls(len(array), child.field.type)
    return _taken(pc.struct_field(array, [index]), child)


def _taken_entries(array: pa.Array, column: _Column) -> pa.Array:
    """Return lists or maps with entries as the table has them."""
    array = array.take(pa.array(np.arange(len(array))))  # a slice has the entries of other rows
    dtype, offsets, mask = column.field.type, array.offsets.cast(pa.int32()), array.is_null()
    if not pa.types.is_map(dtype):
        values = _taken(array.values, column.children[0])
        return pa.ListArray.from_arrays(offsets, values, type=dtype, mask=mask)
    keys = _taken(array.keys, column.children[0])
    items = _taken(array.items, column.children[1])
    return pa.MapArray.from_arrays(offsets, keys, items, type=dtype, mask=mask)
