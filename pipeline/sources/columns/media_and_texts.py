"""Input columns of encoded images, clips of sound and texts: their types, sizes and encodings."""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import as_array, with_nulls
from pipeline.core.failures import Failure, Reason
from pipeline.core.figures import READ
from pipeline.core.schema import file_name_of, text_fields
from pipeline.sources.columns.arrow_types import is_binary, is_text, plain_type
from pipeline.sources.columns.input_reader import (
    Failures,
    InputReader,
    InputRows,
    Place,
    fail,
    null_where_failed,
)

_BYTES = "bytes"
_DATA_URI = re.compile(rb"data:([^,]{0,200}),", re.IGNORECASE)
_WHITESPACE = b" \t\r\n\f\v"
_ROOM = 1024
"""Bytes that the head of a `data:` URI may take."""


@dataclass(frozen=True)
class EncodedColumn(InputReader):
    """A binary column, or the field `bytes` of a struct; for base64 also a text column."""

    names: tuple[str, ...]
    is_base64: bool
    max_bytes: int
    """Limit of an encoded value; base64 is measured before it is decoded."""
    what: str
    """The name of the values in messages: images, or clips of sound."""
    target: pa.Schema
    """The column of the rows."""
    rows_at_once = 256

    def line_bytes(self, escaped: int) -> int | None:
        return self.max_bytes * 3 // 2 if self.is_base64 else None

    def path(self, name: str, dtype: pa.DataType) -> str:
        return f"{name}.{_BYTES}" if pa.types.is_struct(dtype) else name

    def trouble(self, name: str, dtype: pa.DataType) -> str:
        dtype = plain_type(dtype)
        if pa.types.is_struct(dtype):
            index = dtype.get_field_index(_BYTES)
            dtype = dtype.field(index).type if index >= 0 else dtype
        if is_binary(dtype) or (self.is_base64 and is_text(dtype)):
            return ""
        if self.is_base64:
            return f"expected {self.what} in base64 as text or binary"
        hint = (
            "; a column of texts is named by text_column, of URIs by uri_column, and "
            f"{self.what} in base64 by {file_name_of(self.target.names[0])}_encoding: base64"
        )
        return f"expected encoded {self.what} as binary{hint if is_text(dtype) else ''}"

    def fields(self, schema: pa.Schema | None) -> pa.Schema:
        return self.target

    def read(self, table: pa.Table, failures: Failures, place: Place) -> InputRows:
        [name] = self.names
        images = _plain(as_array(table.column(name)))
        nulls = (row for row, is_null in enumerate(images.is_null().to_pylist()) if is_null)
        fail(failures, nulls, Reason.NULL_INPUT, f"{name} is null")
        if self.is_base64:
            images = self._decoded(images, name, failures)
        return InputRows({self.target.names[0]: null_where_failed(images, failures)})

    def _decoded(self, images: pa.Array, name: str, failures: Failures) -> pa.Array:
        decoded_images: list[bytes | None] = [None] * len(images)
        for row, value in enumerate(images):
            if failures[row] is None:
                decoded = decode_base64(memoryview(value.as_buffer()), name, self.max_bytes)
                if isinstance(decoded, Failure):
                    failures[row] = decoded
                else:
                    decoded_images[row] = decoded
        return pa.array(decoded_images, pa.large_binary())


def _plain(column: pa.Array) -> pa.Array:
    """Return a column as large_binary (N,), whatever its type in the shard."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, _BYTES)  # keeps the struct's own nulls
    return column.cast(pa.large_binary())


def decode_base64(value: memoryview, name: str, max_bytes: int) -> bytes | Failure:
    """Decode base64, plain or in a `data:` URI; the size is checked first.

    Args:
        value: The text, in ASCII.
        name: The name of the column, for messages.
        max_bytes: Limit of the decoded value.
    """
    # Twice the limit: base64 adds a third, line ends and a head add a little.
    if len(value) > 2 * max_bytes + _ROOM:
        message = (
            f"{name} has {len(value)} bytes of base64, the limit of what it holds is {max_bytes}"
        )
        return Failure(Reason.TOO_LARGE, READ, message, num_bytes=len(value))
    if head := _DATA_URI.match(value):
        if not head[1].lower().endswith(b";base64"):
            return Failure(Reason.DECODE_ERROR, READ, f"{name} is a data: URI without ;base64")
        value = value[head.end() :]
    text = bytes(value).translate(None, _WHITESPACE)
    size_bytes = len(text) * 3 // 4 - (len(text) - len(text.rstrip(b"=")))
    if size_bytes > max_bytes:
        message = f"{size_bytes} bytes, the limit is {max_bytes}"
        return Failure(Reason.TOO_LARGE, READ, message, num_bytes=size_bytes)
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        return Failure(Reason.DECODE_ERROR, READ, f"{name} is not base64: {error}")


@dataclass(frozen=True)
class TextColumns(InputReader):
    """Columns of texts."""

    names: tuple[str, ...]
    """One column, two for pairs, or one and those that a prompt names."""
    max_bytes: int
    """Limit of a text in UTF-8."""
    has_pair: bool = False
    rows_at_once = 1024

    def line_bytes(self, escaped: int) -> int:
        return escaped * self.max_bytes * len(self.names)

    def trouble(self, name: str, dtype: pa.DataType) -> str:
        dtype = plain_type(dtype)
        return "" if is_text(dtype) or is_binary(dtype) else "expected text"

    def fields(self, schema: pa.Schema | None) -> pa.Schema:
        return text_fields(has_pair=self.has_pair, named=self.names[1 + self.has_pair :])

    def read(self, table: pa.Table, failures: Failures, place: Place) -> InputRows:
        targets = self.fields(None).names
        columns = {}
        for target, name in zip(targets, self.names, strict=True):
            column = as_array(table.column(name))
            columns[target], text_failures = checked_texts(column, name, self.max_bytes)
            for row, failure in text_failures.items():
                failures[row] = failures[row] or failure
        return InputRows(
            {name: null_where_failed(column, failures) for name, column in columns.items()}
        )


def checked_texts(
    column: pa.Array, name: str, max_bytes: int
) -> tuple[pa.Array, Mapping[int, Failure]]:
    """Check a column of texts; lengths first, so that a huge text is not decoded.

    Args:
        column: (N,) text or bytes, or a dictionary of them.
        name: The name of the column, for messages.
        max_bytes: Limit of a text in UTF-8.

    Returns:
        The texts, large_string (N,), null where a row fails, and row -> failure.
    """
    if pa.types.is_dictionary(column.type):
        return _checked_dictionary(column, name, max_bytes)
    failures = {row: Failure(Reason.NULL_INPUT, READ, f"{name} is null") for row in _nulls(column)}
    data = column.cast(pa.large_binary())
    lengths = pc.fill_null(pc.binary_length(data), 0).to_numpy()
    for row in np.flatnonzero(lengths > max_bytes).tolist():
        length = int(lengths[row])
        message = f"{name} has {length} bytes, the limit is {max_bytes}"
        failures[row] = Failure(Reason.TOO_LARGE, READ, message, num_bytes=length)
    data = _without(data, failures)
    try:
        return data.cast(pa.large_string()), failures
    except pa.ArrowInvalid:  # its message names only one of the values that are not UTF-8
        failures |= _not_utf8(data, name)
    return _without(data, failures).cast(pa.large_string()), failures


def _checked_dictionary(
    column: pa.Array, name: str, max_bytes: int
) -> tuple[pa.Array, Mapping[int, Failure]]:
    values, of_values = checked_texts(column.dictionary, name, max_bytes)
    texts = values.take(column.indices)
    indices = column.indices.to_pylist() if texts.null_count else []
    is_null = Failure(Reason.NULL_INPUT, READ, f"{name} is null")
    return texts, {
        row: is_null if index is None else of_values[index]
        for row, index in enumerate(indices)
        if index is None or index in of_values
    }


def _nulls(column: pa.Array) -> list[int]:
    if not column.null_count:
        return []
    rows: list[int] = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist()
    return rows


def _without(data: pa.Array, failures: Mapping[int, Failure]) -> pa.Array:
    """Return a column with nulls at the failed rows."""
    if not failures:
        return data
    has_failed = np.zeros(len(data), np.bool_)
    has_failed[list(failures)] = True
    return with_nulls(data, has_failed)


def _not_utf8(data: pa.Array, name: str) -> dict[int, Failure]:
    failed = {}
    for row, value in enumerate(data):
        try:
            str(memoryview(value.as_buffer() or b""), "utf-8")
        except UnicodeDecodeError as error:
            message = f"{name} is not UTF-8, at byte {error.start}"
            failed[row] = Failure(Reason.DECODE_ERROR, READ, message, num_bytes=len(error.object))
    return failed
