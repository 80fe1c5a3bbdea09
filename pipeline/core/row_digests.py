"""Digests of rows: SHA-256 over the columns that hold a row's input, as its source yields them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.core.arrays import as_array
from pipeline.core.schema import ERROR

HASH_BYTES = 16
_LENGTH_BYTES = 8
_Buffer = Any
"""A value that hashlib takes: bytes, a pa.Buffer, a contiguous array."""


def row_digests(rows: pa.Table, names: list[str]) -> Iterator[bytes | None]:
    """Yield the digest of each row, 32 bytes; None for a row whose columns are all null.

    The digest of a single column is that of its bytes, as `sha256sum` computes it for a file. Of
    several columns, each contributes its name, whether it is null, its length and its bytes, so
    that equal values in different columns give different digests.

    Args:
        rows: N rows with these columns.
        names: The columns that hold the input, at least one.
    """
    columns = [_buffers(rows.column(name)) for name in names]
    if len(names) == 1:
        for value in columns[0]:
            yield None if value is None else hashlib.sha256(value).digest()
        return
    texts = [name.encode() for name in names]
    heads = [len(text).to_bytes(_LENGTH_BYTES, "little") + text for text in texts]
    for values in zip(*columns, strict=True):
        yield None if all(value is None for value in values) else _joined(heads, values)


def input_hashes(rows: pa.Table, names: list[str]) -> pa.Array:
    """Return the first HASH_BYTES of each row's digest, (N,) of fixed-size binary.

    Null for a row that has failed or has no input.

    Args:
        rows: N rows with these columns and `error`.
        names: As for `row_digests`.
    """
    failed = rows.column(ERROR).is_valid().to_pylist()
    digests = zip(row_digests(rows, names), failed, strict=True)
    hashes = (None if digest is None or bad else digest[:HASH_BYTES] for digest, bad in digests)
    return pa.array(hashes, pa.binary(HASH_BYTES))


def num_bytes(rows: pa.Table, names: list[str]) -> int:
    """Return the number of bytes that `row_digests` reads, without names and lengths."""
    return sum(
        memoryview(value).nbytes
        for name in names
        for value in _buffers(rows.column(name))
        if value is not None
    )


def _joined(heads: list[bytes], values: tuple[_Buffer | None, ...]) -> bytes:
    digest = hashlib.sha256()
    for head, value in zip(heads, values, strict=True):
        digest.update(head)
        if value is None:
            digest.update(b"-")
            continue
        digest.update(b"+" + memoryview(value).nbytes.to_bytes(_LENGTH_BYTES, "little"))
        digest.update(value)
    return digest.digest()


def _buffers(column: pa.ChunkedArray) -> Iterator[_Buffer | None]:
    """Yield the bytes of each value, None for a null; texts and images are not copied."""
    if any(is_type(column.type) for is_type in _BINARY):
        for value in column:
            yield value.as_buffer() if value.is_valid else None
    elif _is_vector(column.type) and column.null_count == 0:
        yield from _vectors(as_array(column))
    else:
        for value in column:
            yield repr(value.as_py()).encode() if value.is_valid else None


def _vectors(column: pa.Array) -> Iterator[_Buffer]:
    width = column.type.list_size
    flat = column.values.slice(column.offset * width, len(column) * width)
    data = memoryview(pa.py_buffer(np.ascontiguousarray(flat.to_numpy(zero_copy_only=False))))
    row_bytes = len(data) // max(1, len(column))
    for start in range(0, len(data), row_bytes or 1):
        yield data[start : start + row_bytes]


_BINARY: tuple[Callable[[pa.DataType], bool], ...] = (
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary),
    *(pa.types.is_string, pa.types.is_large_string),
)


def _is_vector(column_type: pa.DataType) -> bool:
    is_list = pa.types.is_fixed_size_list(column_type) and column_type.list_size > 0
    return bool(is_list and pa.types.is_floating(column_type.value_type))
