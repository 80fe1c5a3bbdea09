"""Folders that hold the value of a column, `<column>=<value>/`, as Hive, Spark and DuckDB have.

The column is then not inside the files: engines take it from the path, and an engine that finds it
in both places with two types (text and dictionary, say) refuses to read.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.errors import JobError
from pipeline.core.schema import LABEL, ROW_ID, URI

MAX_VALUES = 1000
"""Most folders of one run; more would give many tiny files."""
UNTYPED = "null"
NULL_VALUE = "__HIVE_DEFAULT_PARTITION__"
_SEGMENT_MAX_BYTES = 240  # a name on a local disk has at most 255
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


def partition_types(
    columns: Sequence[str], schema: pa.Schema, passed: Container[str] = ()
) -> dict[str, str]:
    """Return the types of the partition columns, by name.

    Args:
        passed: Columns of the shards. If the schema lacks one because no shard declares its type,
            its type is `null`: there is no row, so there is no folder.

    Raises:
        JobError: There is no such column, or its values cannot be folder names.
    """
    types = {}
    for name in columns:
        where = f"sink.partition_columns: {name}"
        if name in passed and name not in schema.names:
            types[name] = UNTYPED
            continue
        if name not in schema.names or name in (ROW_ID, URI):
            known = [field.name for field in schema if _is_allowed(field.type)]
            choice = ", ".join(known[2:]) or "none of them"
            raise JobError(f"{where}: is no column to partition by; allowed are {choice}")
        if not _is_allowed(schema.field(name).type):
            raise JobError(
                f"{where}: is {schema.field(name).type}; folders can be named by text, whole "
                "numbers, true or false, and dates"
            )
        types[name] = str(schema.field(name).type)
    if columns and {*schema.names} <= {ROW_ID, URI, *types}:
        raise JobError("sink.partition_columns: leave at least one column inside the files")
    return types


def require_folders(columns: Iterable[str], labels: Sequence[str]) -> None:
    """Refuse labels that cannot be folder names, if the output has folders by label.

    Raises:
        JobError: A label cannot be a folder name.
    """
    for label in labels if LABEL in columns else ():
        if trouble := folder_trouble(LABEL, label):
            raise JobError(f"sink.partition_columns: {LABEL}: {label[:40]!r} {trouble}")


def _is_allowed(column_type: pa.DataType) -> bool:
    checks = (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean,
        pa.types.is_date32,
    )  # fmt: skip
    return any(check(column_type) for check in checks)


def hive_values(path: str) -> dict[str, str | None]:
    """Read the `key=value` folders in the path of a shard; Hive's name for null becomes None."""
    return {key: _decode(value) for key, value in _folders(path)}


def above_root(uri: str, column: str) -> str:
    """Return a hint for a missing column whose folder is above the source, or ''."""
    if column not in hive_values(f"{uri}/"):
        return ""
    return f"; the folder {column}=... is above source.uri, which must name a folder above it"


def folder_trouble(column: str, value: str | None) -> str:
    """Say why a value cannot be a folder name; return '' if it can.

    For DuckDB, pyarrow and Polars `<column>=/` is the empty string, for Delta it is null, and
    Spark reads nothing below it: no name means the empty string to all of them.
    """
    if value == "":
        return "is empty text, for which readers of folders have no common name"
    if value is not None and len(_segment(column, value).encode()) > _SEGMENT_MAX_BYTES:
        return f"has {len(value)} characters, too long for a folder name"
    return ""


def without_folder(name: str, column: pa.Array) -> dict[int, str]:
    """Return row number -> why the value of the row cannot be a folder name."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return {}
    troubles = {value: folder_trouble(name, value) for value in pc.unique(column).to_pylist()}
    if not any(troubles.values()):
        return {}
    return {
        row: f"{name} {troubles[value]} (sink.partition_columns)"
        for row, value in enumerate(column.to_pylist())
        if troubles[value]
    }


def to_text(column: pa.ChunkedArray) -> pa.Array:
    """Return the values as text, as folder names have them before encoding."""
    return pc.cast(column, pa.string()).combine_chunks()


def to_segment(column: str, value: str | None) -> str:
    """Return the name of a folder: `camera=front`, `kind=a%2Fb`, `kind=__HIVE_DEFAULT...`.

    ASCII characters other than letters, digits and `-_.` are percent-encoded, and so are all
    characters that cannot be printed. Others are kept: Spark decodes byte by byte.

    Raises:
        JobError: The value cannot be a folder name.
    """
    if value is None:
        return f"{column}={NULL_VALUE}"
    if trouble := folder_trouble(column, value):
        raise JobError(
            f"sink.partition_columns: {column}: a value {trouble}; partition by another column"
        )
    return _segment(column, value)


def _segment(column: str, value: str) -> str:
    text = "".join(_encode(character) for character in value)
    return f"{column}={'%5F' + text[1:] if value == NULL_VALUE else text}"


def _encode(character: str) -> str:
    if character in _PLAIN or (not character.isascii() and character.isprintable()):
        return character
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def values_of(path: str, columns: Mapping[str, str]) -> dict[str, str | None]:
    """Read the values of the partition columns, as text, from the path of a part."""
    return {
        name: _decode(value, "surrogatepass") for name, value in _folders(path) if name in columns
    }


def _folders(path: str) -> Iterator[tuple[str, str]]:
    """Yield key and encoded value of each `key=value` folder."""
    for segment in path.split("/")[:-1]:
        key, separator, value = segment.partition("=")
        if separator and key:
            yield key, value


def _decode(value: str, errors: str = "replace") -> str | None:
    """Undo `to_segment`; `surrogatepass` restores text that is not valid UTF-8."""
    return None if value == NULL_VALUE else unquote(value, errors=errors)


def restore(rows: pa.Table, path: str, columns: Mapping[str, str]) -> pa.Table:
    """Append the partition columns in the path of a part, with their original types."""
    for name, text in values_of(path, columns).items():
        column_type = pa.type_for_alias(columns[name])
        value = pc.cast(pa.scalar(text, pa.string()), column_type)
        rows = rows.append_column(pa.field(name, column_type), pa.repeat(value, rows.num_rows))
    return rows


def without(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    """Return the schema of files whose path has these columns."""
    return pa.schema([field for field in schema if field.name not in columns])
