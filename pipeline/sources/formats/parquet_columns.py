"""Which columns of a Parquet shard a job needs, of which types, and how they become rows.

Pure over Arrow: no storage. What does not fit is reported as a message for its row or shard.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa

from pipeline.core.hive_paths import above_root, hive_values
from pipeline.job.source import Source
from pipeline.sources.columns.arrow_types import is_binary
from pipeline.sources.columns.base import NOT_IN_FOLDERS
from pipeline.sources.columns.column_path import (
    ColumnPath,
    NoColumnError,
    find,
    paths_of,
    with_paths,
)
from pipeline.sources.input_columns import columns_of, folder_columns


@dataclass(frozen=True)
class Needed:
    """What a job needs of a shard."""

    read: list[str]
    """What to read, fields of structs as `column.field`; of an item the list that it is in."""
    paths: dict[str, ColumnPath]
    """The columns of the job that are inside others."""


def named_columns(source: Source) -> list[str]:
    """Return the columns that a job names."""
    names = [*columns_of(source).names, *([source.id_column] if source.id_column else [])]
    return list(dict.fromkeys([*names, *source.passed.values()]))


def schema_of(source: Source, schema: pa.Schema, path: str) -> pa.Schema:
    """Return the columns of a shard without those that the names of its folders say."""
    folders = folder_columns(source, path)
    if not folders.keys() & {*schema.names}:
        return schema
    return pa.schema(field for field in schema if field.name not in folders)


def needed_columns(source: Source, schema: pa.Schema, shard_path: str) -> Needed:
    """Return the columns of a shard to read, for a job that it fits."""
    schema = schema_of(source, schema, shard_path)
    known = with_paths(schema, named_columns(source))
    columns = columns_of(source)
    names = [
        columns.path(name, known.field(name).type)
        for name in columns.names
        if known.get_field_index(name) >= 0  # others are in the names of the folders
    ]
    names += [name for name in named_columns(source) if name not in columns.names]
    read: dict[str, None] = {}
    for name in names:
        try:
            path = find(name, schema)
        except NoColumnError:  # in the names of the folders
            continue
        read[path.column if path.has_items else name] = None
    return Needed([*read], paths_of(named_columns(source), schema))


def is_below(leaf: str, columns: Collection[str]) -> bool:
    """Tell whether a leaf of a Parquet file is one of some columns, or in one."""
    names = leaf.split(".")
    return any(".".join(names[:end]) in columns for end in range(1, len(names) + 1))


def schema_problem(source: Source, schema: pa.Schema, path: str) -> str:
    """Return why a shard does not fit the job, or ''."""
    hive, schema = hive_values(path), schema_of(source, schema, path)
    columns = columns_of(source)
    for name in named_columns(source):
        try:
            find(name, schema)
            continue
        except NoColumnError as error:
            problem = str(error)
        if name not in hive:
            return problem + above_root(source.uri, name)
        if name == source.id_column:
            return f"column {name!r} {NOT_IN_FOLDERS}"
        if name in columns.names and (trouble := columns.folder_trouble(name, hive[name])):
            return f"column {name!r} {trouble}"
    schema = with_paths(schema, named_columns(source))
    id_type = schema.field(source.id_column).type if source.id_column else pa.string()
    if pa.types.is_nested(id_type) or is_binary(id_type):
        return f"column {source.id_column!r} is {id_type}, expected text or numbers"
    for name in columns.names:
        if schema.get_field_index(name) < 0:
            continue
        dtype = schema.field(name).type
        if not pa.types.is_null(dtype) and (trouble := columns.trouble(name, dtype)):
            return f"column {name!r} is {dtype}, {trouble}"
    return ""
