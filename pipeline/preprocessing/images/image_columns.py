"""Which columns of the first rows of a shard hold images, or stand for some: by a first value."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.preprocessing.images.image_formats import identify
from pipeline.preprocessing.input_facts import Columns
from pipeline.sources.columns.arrow_types import is_binary, is_text
from pipeline.sources.columns.images import decode_base64
from pipeline.sources.image_files import ImageFiles

_LIMIT_BYTES = 64 * 2**20


def image_columns(rows: pa.Table) -> tuple[Columns, ...]:
    """Return the columns of encoded images, of images in base64, and of URIs of images."""
    encoded = [field.name for field in rows.schema if _is_image(rows, field)]
    texts = [field.name for field in rows.schema if is_text(field.type)]
    base64 = [name for name in texts if _is_base64(_first(rows, name), name)]
    uris = [name for name in texts if _is_uri(_first(rows, name))]
    return (
        Columns("image_column", encoded),
        Columns("image_column", base64, {"image_encoding": ("base64", "as text")}),
        Columns("uri_column", uris),
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


def _is_image(rows: pa.Table, field: pa.Field) -> bool:
    if not (is_binary(field.type) or pa.types.is_struct(field.type)):
        return False
    value = _first(rows, field.name)
    return isinstance(value, bytes) and identify(value) is not None


def _is_base64(value: Any, name: str) -> bool:
    if not isinstance(value, str) or not value.isascii():
        return False
    decoded = decode_base64(memoryview(value.encode()), name, _LIMIT_BYTES)
    return isinstance(decoded, bytes) and identify(decoded) is not None


def _is_uri(value: Any) -> bool:
    is_line = isinstance(value, str) and len(value.split()) == 1
    return is_line and value.lower().partition("?")[0].endswith(ImageFiles.suffixes)
