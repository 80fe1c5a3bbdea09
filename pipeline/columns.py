"""Which columns of a Parquet shard a job needs, of which types, and how they become rows.

Pure over Arrow: no storage. What does not fit is a sentence for the row or shard that has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import JobError
from pipeline.job_source import Source
from pipeline.schema import RESERVED_COLUMNS, as_array

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_BYTES = "bytes"


def needed_columns(source: Source, schema: pa.Schema) -> list[str]:
    """List the columns to read of a shard, nested ones as `column.field`."""
    names = list(source.features) or [_input_path(source, schema)]
    names += [name for name in source.pass_through if schema.get_field_index(name) >= 0]
    names += [source.id_column] if source.id_column else []
    return list(dict.fromkeys(names))


def _input_path(source: Source, schema: pa.Schema) -> str:
    name = source.uri_column or source.image_column
    kind = schema.field(name).type
    return f"{name}.{_BYTES}" if pa.types.is_struct(kind) else name


def declare(source: Source, schema: pa.Schema, path: str) -> pa.Schema:
    """Return the declared types of the pass-through columns, as a fitting shard shows them.

    Raises:
        JobError: One has extension types inside it.
    """
    fields = []
    for name in source.pass_through:
        kind = pa.string()
        if schema.get_field_index(name) >= 0:
            kind = stored_type(schema.field(name).type)
            if _has_extension(kind):
                raise JobError(
                    f"source.pass_through: column {name!r} of {path} is {kind}: what is made of "
                    "extension types is not copied; leave it out"
                )
        if name in source.casts:
            kind = parse_type(name, source.casts[name])
        fields.append(pa.field(name, kind))
    return pa.schema(fields)


def stored_type(kind: pa.DataType) -> pa.DataType:
    """Return what an extension type is stored as: its name may make a reader run what it holds."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _has_extension(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return True
    return any(_has_extension(kind.field(i).type) for i in range(kind.num_fields))


def parse_type(column: str, alias: str) -> pa.DataType:
    """Read a type's name as Arrow spells it, for instance `int64` or `timestamp[us]`.

    Raises:
        JobError: Arrow has no such type.
    """
    try:
        return pa.type_for_alias(alias)
    except ValueError:
        raise JobError(
            f"source.casts.{column} = {alias!r}: no Arrow type; write int64, double, string, "
            "date32, timestamp[us], ..."
        ) from None


def check_names(source: Source) -> None:
    """Refuse names that the output makes itself, and casts of columns that are not passed through.

    Raises:
        JobError: Names the column.
    """
    clash = RESERVED_COLUMNS.intersection(source.pass_through)
    if clash:
        raise JobError(f"source.pass_through: {sorted(clash)[0]} is a column that the output makes")
    for name, alias in source.casts.items():
        if name not in source.pass_through:
            raise JobError(f"source.casts.{name}: no column of source.pass_through")
        parse_type(name, alias)


def schema_problem(source: Source, schema: pa.Schema, path: str) -> str:
    """Say what of the job's needs a shard does not fit, or ''."""
    hive = hive_values(path)
    inputs = source.features or (source.uri_column or source.image_column,)
    for name in (*inputs, source.id_column, *source.pass_through):
        if name is None or schema.get_field_index(name) >= 0:
            continue
        if name not in source.pass_through or name not in hive:
            return f"no column {name!r}; it has {', '.join(schema.names)}"
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
        return "" if _is_number(kind.value_type if is_list else kind) else "expected numbers"
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if source.uri_column:
        return "" if _is_text(kind) else "expected URIs as text"
    if pa.types.is_struct(kind):
        index = kind.get_field_index(_BYTES)
        kind = kind.field(index).type if index >= 0 else kind
    return "" if _is_binary(kind) else "expected encoded images as binary"


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def type_problem(source: Source, declared: pa.Schema, schema: pa.Schema) -> str:
    """Say which pass-through column has another type than was declared by the first shard."""
    for field in declared:
        index = schema.get_field_index(field.name)
        if index < 0 or field.name in source.casts:
            continue
        found = stored_type(schema.field(index).type)
        if found != field.type:
            return (
                f"column {field.name!r} is {found}, other shards have {field.type}; "
                f"declare one with source.casts"
            )
    return ""


def count_features(source: Source, schema: pa.Schema) -> int:
    """Return the length of the feature vector."""
    kinds = [schema.field(name).type for name in source.features]
    return sum(kind.list_size if pa.types.is_fixed_size_list(kind) else 1 for kind in kinds)


def hive_values(path: str) -> dict[str, str | None]:
    """Read `key=value` folders out of a path; Hive's name for null is None."""
    values: dict[str, str | None] = {}
    for segment in path.split("/")[:-1]:
        key, separator, value = segment.partition("=")
        if separator and key:
            values[key] = None if value == _HIVE_NULL else unquote(value)
    return values


def pass_through_column(field: pa.Field, table: pa.Table, path: str) -> pa.Array:
    """Take a pass-through column out of a shard's rows, or out of its path.

    Raises:
        pa.ArrowInvalid: A value cannot be cast to the declared type without loss.
    """
    if field.name in table.column_names:
        return as_array(table.column(field.name)).cast(field.type)
    value = hive_values(path).get(field.name)
    text = pa.array([value], pa.string()).cast(field.type)
    return (
        pa.repeat(text[0], table.num_rows)
        if value is not None
        else pa.nulls(table.num_rows, field.type)
    )


def image_column(source: Source, table: pa.Table) -> pa.Array:
    """Return the encoded images as large_binary, whatever way the shard stores them."""
    column = as_array(table.column(source.image_column))
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, _BYTES)  # keeps the struct's own nulls
    return column.cast(pa.large_binary())


def uri_values(column: pa.ChunkedArray) -> list[str | None]:
    """Return the URIs of the images; what is no UTF-8 has replacement characters."""
    given = as_array(column)
    if pa.types.is_dictionary(given.type):
        given = given.dictionary_decode()
    values: list[bytes | None] = given.cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "replace") for value in values]


def feature_rows(
    source: Source, table: pa.Table
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Join the feature columns to float32 (N, F), and tell which rows have a null among them."""
    pieces = [_feature_values(as_array(table.column(name))) for name in source.features]
    joined = np.concatenate([values for values, _ in pieces], axis=1)
    nulls = np.concatenate([where for _, where in pieces], axis=1)
    if source.null_features == "zero":
        joined[nulls] = 0.0
    return joined, np.asarray(nulls.any(axis=1))


def _feature_values(
    column: pa.Array,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return a column as float32 (N, width), NaN at nulls, and where the nulls are."""
    width = 1
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
        outer = np.repeat(column.is_null().to_numpy(zero_copy_only=False), width)
        column = column.values.slice(column.offset * width, len(column) * width)
    else:
        outer = np.zeros(len(column), bool)
    nulls = outer | column.is_null().to_numpy(zero_copy_only=False)
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    values = np.where(nulls, np.nan, values).astype(np.float32)
    return values.reshape(-1, width), nulls.reshape(-1, width)


def zero_features(num_rows: int, width: int) -> pa.Array:
    """Return feature vectors of zeros, for rows that failed."""
    return features_to_arrow(np.zeros((num_rows, width), np.float32))


def features_to_arrow(values: npt.NDArray[np.float32]) -> pa.Array:
    """Turn float32 (N, F) into a fixed-size list column."""
    flat: Any = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def text_ids(column: pa.ChunkedArray, fallback: Sequence[str]) -> tuple[list[str], list[bool]]:
    """Return ids as text, a fallback where the id is null, and which ones are null."""
    given = as_array(column)
    if pa.types.is_dictionary(given.type):
        given = given.dictionary_decode()
    values = given.cast(pa.string()).to_pylist()
    ids = [other if value is None else value for value, other in zip(values, fallback, strict=True)]
    return ids, [value is None for value in values]
