"""Which columns of a Parquet shard a job needs, of which types, and how they become rows.

Pure over Arrow: no storage. What does not fit is reported as a message for its row or shard.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import as_array
from pipeline.core.errors import JobError
from pipeline.core.hive_paths import hive_values
from pipeline.core.schema import RESERVED_COLUMNS
from pipeline.job.source import Source
from pipeline.sources.arrow_types import parse_type

_BYTES = "bytes"
_NUMBERS = (
    "expected numbers: text and categories become features when they are written as numbers, "
    "several of them as a fixed-size list (token ids, or 0 and 1 for each category)"
)


def needed_columns(source: Source, schema: pa.Schema) -> list[str]:
    """Return the columns of a shard to read, nested ones as `column.field`."""
    names = list(source.features) or [_input_path(source, schema)]
    names += [name for name in source.pass_through if schema.get_field_index(name) >= 0]
    names += [source.id_column] if source.id_column else []
    return list(dict.fromkeys(names))


def _input_path(source: Source, schema: pa.Schema) -> str:
    name = source.uri_column or source.image_column
    kind = schema.field(name).type
    return f"{name}.{_BYTES}" if pa.types.is_struct(kind) else name


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
    inputs = source.features or (source.uri_column or source.image_column,)
    for name in (*inputs, source.id_column, *source.pass_through):
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
    if pa.types.is_nested(id_kind) or _is_binary(id_kind):
        return f"column {source.id_column!r} is {id_kind}, expected text or numbers"
    for name in inputs:
        problem = _input_problem(source, schema.field(name).type)
        if problem:
            return f"column {name!r} is {schema.field(name).type}, {problem}"
    return ""


def _input_problem(source: Source, kind: pa.DataType) -> str:
    if source.features:
        is_list = pa.types.is_fixed_size_list(kind)
        return "" if _is_number(kind.value_type if is_list else kind) else _NUMBERS
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if source.uri_column:
        return "" if _is_text(kind) else "expected URIs as text"
    if pa.types.is_struct(kind):
        index = kind.get_field_index(_BYTES)
        kind = kind.field(index).type if index >= 0 else kind
    if _is_binary(kind):
        return ""
    text = "; text is not read; a column of URIs is named by uri_column" if _is_text(kind) else ""
    return f"expected encoded images as binary{text}"


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def image_column(source: Source, table: pa.Table) -> pa.Array:
    """Return the encoded images as large_binary (N,), however the shard stores them."""
    column = as_array(table.column(source.image_column))
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, _BYTES)  # keeps the struct's own nulls
    return column.cast(pa.large_binary())


def uri_values(column: pa.ChunkedArray) -> list[str | None]:
    """Return the URIs of the images; bytes that are not UTF-8 become replacement characters."""
    given = as_array(column)
    if pa.types.is_dictionary(given.type):
        given = given.dictionary_decode()
    values: list[bytes | None] = given.cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "replace") for value in values]


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
    if _is_text(given.type):
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
