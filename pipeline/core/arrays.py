"""Images, feature vectors and row numbers between numpy and Arrow, without copies."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Numbers = npt.NDArray[np.int64]
"""Row numbers, keys, positions."""


def empty_column(kind: pa.DataType, num_rows: int) -> pa.Array:
    """Return the values of rows without an input: zeros of fixed-size lists, otherwise nulls."""
    if not pa.types.is_fixed_size_list(kind):
        return pa.nulls(num_rows, kind)
    zeros = pa.array(np.zeros(num_rows * kind.list_size, kind.value_type.to_pandas_dtype()))
    return pa.FixedSizeListArray.from_arrays(zeros, kind.list_size)


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


def images_from_arrow(
    column: pa.ChunkedArray | pa.Array, shape: tuple[int, int, int]
) -> npt.NDArray[np.uint8]:
    """View a fixed-size binary column as uint8 (N, H, W, C); read-only, no copy for one chunk.

    Args:
        column: The images.
        shape: (H, W, C) of each.
    """
    array = as_array(column)
    row_bytes = math.prod(shape)
    flat = np.frombuffer(array.buffers()[1] or b"", dtype=np.uint8)
    flat.flags.writeable = False
    start = array.offset * row_bytes
    stop = start + len(array) * row_bytes
    return flat[start:stop].reshape(len(array), *shape)


def features_from_arrow(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.float32]:
    """View a fixed-size list column as float32 (N, F); read-only."""
    array = as_array(column)
    width = array.type.list_size
    flat = array.values.slice(array.offset * width, len(array) * width)
    return np.asarray(flat.to_numpy(zero_copy_only=False), np.float32).reshape(len(array), width)
