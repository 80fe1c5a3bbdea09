"""Which columns of a Parquet shard a job needs, of which types, and how they become rows.

Pure over Arrow: no storage. What does not fit is reported as a message for its row or shard.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import as_array
from pipeline.core.errors import JobError
from pipeline.core.hive_paths import hive_values
from pipeline.core.schema import RESERVED_COLUMNS
from pipeline.job.source import Source
from pipeline.sources.arrow_types import is_binary, is_text, parse_type
from pipeline.sources.columns.base import InShards
from pipeline.sources.columns.choice import columns_of


def needed_columns(source: Source, schema: pa.Schema) -> list[str]:
    """Return the columns of a shard to read, nested ones as `column.field`."""
    columns = columns_of(source)
    names = [
        columns.path(name, schema.field(name).type)
        for name in columns.names
        if schema.get_field_index(name) >= 0  # others are in the names of the folders
    ]
    names += [name for name in source.pass_through if schema.get_field_index(name) >= 0]
    names += [source.id_column] if source.id_column else []
    return list(dict.fromkeys(names))


def check_names(source: Source) -> None:
    """Check the names of pass-through columns and casts.

    Raises:
        JobError: The output itself has a column of that name, or a cast is of another column.
    """
    clash = RESERVED_COLUMNS.intersection(source.pass_through)
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
    for name in (*columns.names, source.id_column, *source.pass_through):
        if name is None or schema.get_field_index(name) >= 0:
            continue
        if name not in hive:
            return f"no column {name!r}; it has {', '.join(schema.names)}"
        if name == source.id_column:
            return f"column {name!r} {InShards().folder_trouble(name, hive[name])}"
        if name in columns.names and (trouble := columns.folder_trouble(name, hive[name])):
            return f"column {name!r} {trouble}"
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
