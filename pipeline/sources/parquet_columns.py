"""Which columns of a Parquet shard a job needs, of which types, and how they become rows.

Pure over Arrow: no storage. What does not fit is reported as a message for its row or shard.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.core.arrays import as_array
from pipeline.core.errors import JobError
from pipeline.core.hive_paths import hive_values
from pipeline.core.schema import RESERVED_COLUMNS
from pipeline.job.source import Source
from pipeline.sources.arrow_types import is_binary, is_text, parse_type
from pipeline.sources.columns.choice import columns_of


def needed_columns(source: Source, schema: pa.Schema) -> list[str]:
    """Return the columns of a shard to read, nested ones as `column.field`."""
    columns = columns_of(source)
    names = [columns.path(name, schema.field(name).type) for name in columns.names]
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
        if name not in source.pass_through:
            return (
                f"column {name!r} is in the names of the folders, which can only be passed "
                "through; write it into the shards"
            )
    id_kind = schema.field(source.id_column).type if source.id_column else pa.string()
    if pa.types.is_nested(id_kind) or is_binary(id_kind):
        return f"column {source.id_column!r} is {id_kind}, expected text or numbers"
    for name in columns.names:
        if trouble := columns.trouble(schema.field(name).type):
            return f"column {name!r} is {schema.field(name).type}, {trouble}"
    return ""


def text_ids(
    column: pa.ChunkedArray, fallback: Sequence[str]
) -> tuple[list[str], list[bool], dict[int, str]]:
    """Return ids as text, the fallback for a null.

    Args:
        column: (N,) text, binary or numbers.
        fallback: (N,).

    Returns:
        The ids, (N,); which are null, (N,); and row -> printable form of those that are not UTF-8.
    """
    given = as_array(column)
    if pa.types.is_dictionary(given.type):
        given = given.dictionary_decode()
    if is_text(given.type):
        values, broken = _decoded(given.cast(pa.large_binary()).to_pylist())
    else:
        values, broken = given.cast(pa.string()).to_pylist(), {}
    are_null = [value is None and row not in broken for row, value in enumerate(values)]
    ids = [other if value is None else value for value, other in zip(values, fallback, strict=True)]
    return ids, are_null, broken


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
