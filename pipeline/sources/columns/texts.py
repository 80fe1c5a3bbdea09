"""Columns of texts, or of pairs of texts: checked to be UTF-8 and not too long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import as_array, with_nulls
from pipeline.core.failures import Failure, Reason
from pipeline.core.figures.counters import READ
from pipeline.core.schema import text_fields
from pipeline.sources.columns.arrow_types import is_binary, is_text, plain_type
from pipeline.sources.columns.base import (
    Failures,
    InputReader,
    InputRows,
    Place,
    null_where_failed,
)


@dataclass(frozen=True)
class TextColumns(InputReader):
    """Columns of texts."""

    names: tuple[str, ...]
    """One, or two for pairs."""
    max_bytes: int
    """Limit of a text."""
    rows_at_once = 1024

    def line_bytes(self, escaped: int) -> int:
        return escaped * self.max_bytes * len(self.names)

    def trouble(self, name: str, dtype: pa.DataType) -> str:
        dtype = plain_type(dtype)
        return "" if is_text(dtype) or is_binary(dtype) else "expected text"

    def fields(self, schema: pa.Schema | None) -> pa.Schema:
        return text_fields(has_pair=len(self.names) == 2)

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
    """Check a column of texts; lengths first, so that a huge text is not looked at.

    Args:
        column: (N,) text or bytes, perhaps as a dictionary.
        name: Of the column, for messages.
        max_bytes: Limit of a text in UTF-8.

    Returns:
        The texts, large_string (N,), null where there is none, and row -> why.
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
    except pa.ArrowInvalid:  # which says of one value only that it is not UTF-8
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
    """Return a column with nulls at the rows that failed."""
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
