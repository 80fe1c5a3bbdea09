"""Which columns of a Parquet shard a job needs, of which types, and how they become rows.

Pure over Arrow: no storage. What does not fit is reported as a message for its row or shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import as_array
from pipeline.core.errors import JobError
from pipeline.core.hive_paths import hive_values
from pipeline.core.schema import PART, RESERVED_COLUMNS, TEXT_FEATURE
from pipeline.job.source import Source
from pipeline.sources.columns.arrow_types import is_binary, is_text, parse_type
from pipeline.sources.columns.base import InShards
from pipeline.sources.columns.column_path import (
    ColumnPath,
    NoColumnError,
    find,
    leaf_paths,
    paths_of,
    with_paths,
)
from pipeline.sources.input_columns import columns_of


@dataclass(frozen=True)
class Needed:
    """What a job needs of a shard."""

    read: dict[str, str]
    """What to read, nested columns as `column.field`, or by their leaves -> the column that it is
    of."""
    paths: dict[str, ColumnPath]
    """The columns of the job that are inside others."""


def named_columns(source: Source) -> list[str]:
    """Return the columns that a job names."""
    names = [*columns_of(source).names, *([source.id_column] if source.id_column else [])]
    return list(dict.fromkeys([*names, *source.pass_through]))


def needed_columns(source: Source, schema: pa.Schema, leaves: Sequence[str]) -> Needed:
    """Return the columns of a shard to read.

    Args:
        source: The job's section; the shard fits it.
        schema: Of the shard.
        leaves: The paths of the shard's leaf columns, in its order.
    """
    known = with_paths(schema, named_columns(source))
    columns = columns_of(source)
    names = [
        columns.path(name, known.field(name).type)
        for name in columns.names
        if known.get_field_index(name) >= 0  # others are in the names of the folders
    ]
    names += [name for name in named_columns(source) if name not in columns.names]
    read: dict[str, str] = {}
    for name in names:
        try:
            path = find(name, schema)
        except NoColumnError:  # in the names of the folders
            continue
        has_items = any(isinstance(step, int) for step in path.steps)
        found = leaf_paths(path, schema, leaves) if has_items else [name]
        read |= dict.fromkeys(found, path.column)
    return Needed(read, paths_of(named_columns(source), schema))


def check_names(source: Source) -> None:
    """Check the names of pass-through columns and casts.

    Raises:
        JobError: The output itself has a column of that name, or a cast is of another column.
    """
    clash = RESERVED_COLUMNS.intersection(source.pass_through)
    clash |= {name for name in source.pass_through if source.inputs and name.startswith(PART)}
    clash |= {name for name in source.pass_through if name.startswith(TEXT_FEATURE)}
    if clash:
        raise JobError(f"source.pass_through: {sorted(clash)[0]} is a column that the output makes")
    for name, alias in source.casts.items():
        if name not in source.pass_through:
            raise JobError(f"source.casts.{name}: no column of source.pass_through")
        parse_type(name, alias)


def schema_problem(source: Source, schema: pa.Schema, path: str) -> str:
    """Return why a shard does not fit the job, or ''."""
    hive = hive_values(path)
    columns = columns_of(source)
    for name in named_columns(source):
        try:
            find(name, schema)
            continue
        except NoColumnError as error:
            problem = str(error)
        if name not in hive:
            return problem
        if name == source.id_column:
            return f"column {name!r} {InShards().folder_trouble(name, hive[name])}"
        if name in columns.names and (trouble := columns.folder_trouble(name, hive[name])):
            return f"column {name!r} {trouble}"
    schema = with_paths(schema, named_columns(source))
    id_kind = schema.field(source.id_column).type if source.id_column else pa.string()
    if pa.types.is_nested(id_kind) or is_binary(id_kind):
        return f"column {source.id_column!r} is {id_kind}, expected text or numbers"
    for name in columns.names:
        if schema.get_field_index(name) < 0:
            continue
        if trouble := columns.trouble(name, schema.field(name).type):
            return f"column {name!r} is {schema.field(name).type}, {trouble}"
    return ""


def text_ids(
    column: pa.ChunkedArray, fallback: pa.Array
) -> tuple[pa.Array, list[int], dict[int, str]]:
    """Return ids as text, the fallback for a null.

    Args:
        column: (N,) text, binary or numbers.
        fallback: (N,) text.

    Returns:
        The ids, text (N,); the rows in which they are null; and row -> printable form of those that
        are not UTF-8.
    """
    given = as_array(column)
    if pa.types.is_dictionary(given.type):
        given = given.dictionary_decode()
    values, broken = _texts(given) if is_text(given.type) else (given.cast(pa.string()), {})
    if not values.null_count:
        return values, [], {}
    are_null = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False)).tolist()
    nulls = [row for row in are_null if row not in broken]
    return pc.coalesce(values, fallback), nulls, broken


def _texts(column: pa.Array) -> tuple[pa.Array, dict[int, str]]:
    data = column.cast(pa.large_binary())
    try:
        return data.cast(pa.string()), {}
    except pa.ArrowInvalid:  # which says of one value only that it is not UTF-8
        decoded, broken = _decoded(data.to_pylist())
    return pa.array(decoded, pa.string()), broken


def _decoded(values: Sequence[bytes | None]) -> tuple[list[str | None], dict[int, str]]:
    texts: list[str | None] = []
    broken: dict[int, str] = {}
    for row, value in enumerate(values):
        try:
            texts.append(None if value is None else value.decode("utf-8"))
        except UnicodeDecodeError:
            assert value is not None, "null decodes to null"
            texts.append(None)
            broken[row] = value.decode("utf-8", "backslashreplace")
    return texts, broken
