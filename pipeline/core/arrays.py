"""Convert images, feature vectors and row numbers between numpy and Arrow without copies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Numbers = npt.NDArray[np.int64]
"""Row numbers, keys, positions."""


def empty_column(column_type: pa.DataType, num_rows: int) -> pa.Array:
    """Return a column for rows without an input: zeros for fixed-size lists, otherwise nulls."""
    if not pa.types.is_fixed_size_list(column_type):
        return pa.nulls(num_rows, column_type)
    zeros = pa.array(
        np.zeros(num_rows * column_type.list_size, column_type.value_type.to_pandas_dtype())
    )
    return pa.FixedSizeListArray.from_arrays(zeros, column_type.list_size)


def images_to_arrow(images: npt.NDArray[np.uint8]) -> pa.Array:
    """Wrap uint8 (N, H, W, C) as a fixed-size binary array without copying."""
    num_rows = images.shape[0]
    row_bytes = int(np.prod(images.shape[1:]))
    data = pa.py_buffer(np.ascontiguousarray(images))
    return pa.Array.from_buffers(pa.binary(row_bytes), num_rows, [None, data])


def as_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column as one array; Arrow's own combine_chunks copies even a single chunk."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def with_nulls(column: pa.Array, is_null: npt.NDArray[np.bool_]) -> pa.Array:
    """Return a column with more nulls; `if_else` would keep the memory of the removed values.

    Args:
        column: (N,).
        is_null: (N,).
    """
    return column.take(pa.array(np.arange(len(column)), mask=is_null))


def binary_array(values: Sequence[bytes | None]) -> pa.Array:
    """Make a large_binary array (N,); copies each value once, unlike Arrow's growing builder."""
    lengths = np.fromiter((len(value or b"") for value in values), np.int64, len(values))
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    is_there = np.fromiter((value is not None for value in values), np.bool_, len(values))
    validity = None if is_there.all() else np.packbits(is_there, bitorder="little")
    data = b"".join(value for value in values if value is not None)
    buffers = [
        None if validity is None else pa.py_buffer(validity),
        *map(pa.py_buffer, (offsets, data)),
    ]
    return pa.Array.from_buffers(pa.large_binary(), len(values), buffers)


def images_from_arrow(
    column: pa.ChunkedArray | pa.Array, shape: tuple[int, int, int]
) -> npt.NDArray[np.uint8]:
    """View a fixed-size binary column as uint8 (N, H, W, C); read-only, no copy for one chunk.

    Args:
        column: The images.
        shape: (H, W, C) of each image.
    """
    array = as_array(column)
    row_bytes = math.prod(shape)
    flat = np.frombuffer(array.buffers()[1] or b"", dtype=np.uint8)
    flat.flags.writeable = False
    start = array.offset * row_bytes
    stop = start + len(array) * row_bytes
    return flat[start:stop].reshape(len(array), *shape)


def sized_to_arrow(
    images: Sequence[npt.NDArray[np.uint8] | None],
) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Copy images of different sizes, (H, W, C) each, into large binary; return heights and widths.

    Rows without an image are null in all three.
    """
    lengths = [0 if image is None else image.nbytes for image in images]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    data = np.empty(int(offsets[-1]), np.uint8)
    for image, start, length in zip(images, offsets, lengths, strict=False):
        if image is not None:
            data[start : start + length] = image.reshape(-1)
    has_none = np.array([image is None for image in images], bool)
    binary = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(),
        len(images),
        [pa.array(~has_none).buffers()[1], pa.py_buffer(offsets), pa.py_buffer(data)],
    )
    sides = [(0, 0) if image is None else image.shape[:2] for image in images]
    sizes = np.array(sides, np.int32).reshape(-1, 2)
    heights, widths = (pa.array(sizes[:, axis], mask=has_none) for axis in (0, 1))
    return binary, heights, widths


def sized_from_arrow(
    column: pa.ChunkedArray, heights: pa.ChunkedArray, widths: pa.ChunkedArray, num_channels: int
) -> npt.NDArray[np.object_]:
    """View large binary as (N,) read-only arrays, uint8 (H, W, C); (0, 0, C) for nulls."""
    array = as_array(column)
    offsets = np.frombuffer(array.buffers()[1] or b"", np.int64)[array.offset :]
    flat = np.frombuffer(array.buffers()[2] or b"", np.uint8)
    flat.flags.writeable = False
    images = np.empty(len(array), object)
    sides = zip(*(column.fill_null(0).to_pylist() for column in (heights, widths)), strict=True)
    for row, (height, width) in enumerate(sides):
        start = int(offsets[row])
        shape = (height, width, num_channels)
        images[row] = flat[start : start + height * width * num_channels].reshape(shape)
    return images


def features_from_arrow(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[Any]:
    """View a fixed-size list column of numbers as (N, F); read-only."""
    array = as_array(column)
    width = array.type.list_size
    flat = array.values.slice(array.offset * width, len(array) * width)
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(array), width)


def alike_in_shape(
    values: npt.NDArray[Any], rows: npt.NDArray[np.intp], max_rows: int, max_size: int
) -> list[npt.NDArray[np.intp]]:
    """Divide rows of different shapes into batches of one shape each, the largest shape first.

    Args:
        values: (N,) of arrays.
        rows: (K,) row numbers.
        max_rows: Most rows of a batch.
        max_size: Limit of a batch of several rows: the sum over rows of the product of the first
            two axes; 0: no limit.
    """
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for row in rows.tolist():
        by_shape.setdefault(values[row].shape[:2], []).append(row)
    batches = []
    for shape in sorted(by_shape, key=math.prod, reverse=True):
        most = max_size // max(1, math.prod(shape)) if max_size else max_rows
        size, alike = min(max_rows, max(1, most)), np.array(by_shape[shape], np.intp)
        batches += [alike[start : start + size] for start in range(0, len(alike), size)]
    return batches
