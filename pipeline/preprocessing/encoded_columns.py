"""Which columns of the first rows of a shard hold encoded input, by a first value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.preprocessing.input_facts import Columns
from pipeline.sources.columns.arrow_types import is_binary, is_text
from pipeline.sources.columns.images import decode_base64

_LIMIT_BYTES = 64 * 2**20
_NONE: Mapping[str, tuple[Any, str]] = MappingProxyType({})


def encoded_columns(
    rows: pa.Table,
    kind: str,
    is_one: Callable[[bytes], bool],
    suffixes: tuple[str, ...],
    of_uris: Mapping[str, tuple[Any, str]] = _NONE,
) -> tuple[Columns, ...]:
    """Return the columns of encoded values, of these in base64, and of their URIs.

    Args:
        rows: The first rows.
        kind: `image` or `audio`, as the names of the fields begin.
        is_one: Tells whether bytes begin as such a value.
        suffixes: With which URIs end.
        of_uris: What a job with URIs says besides.
    """
    encoded = [field.name for field in rows.schema if _is_encoded(rows, field, is_one)]
    texts = [field.name for field in rows.schema if is_text(field.type)]
    base64 = [name for name in texts if _is_base64(_first(rows, name), name, is_one)]
    uris = [name for name in texts if _is_uri(_first(rows, name), suffixes)]
    return (
        Columns(f"{kind}_column", encoded),
        Columns(f"{kind}_column", base64, {f"{kind}_encoding": ("base64", "as text")}),
        Columns("uri_column", uris, of_uris),
    )


def _first(rows: pa.Table, name: str) -> Any:
    """Return the first value of a column that is not null; None if there is none."""
    column = rows.column(name)
    if pa.types.is_struct(column.type):
        index = column.type.get_field_index("bytes")
        if index < 0:
            return None
        column = pc.struct_field(column, index)
    return next((value.as_py() for value in column if value.is_valid), None)


def _is_encoded(rows: pa.Table, field: pa.Field, is_one: Callable[[bytes], bool]) -> bool:
    if not (is_binary(field.type) or pa.types.is_struct(field.type)):
        return False
    value = _first(rows, field.name)
    return isinstance(value, bytes) and is_one(value)


def _is_base64(value: Any, name: str, is_one: Callable[[bytes], bool]) -> bool:
    if not isinstance(value, str) or not value.isascii():
        return False
    decoded = decode_base64(memoryview(value.encode()), name, _LIMIT_BYTES)
    return isinstance(decoded, bytes) and is_one(decoded)


def _is_uri(value: Any, suffixes: tuple[str, ...]) -> bool:
    is_line = isinstance(value, str) and len(value.split()) == 1
    return is_line and value.lower().partition("?")[0].endswith(suffixes)
