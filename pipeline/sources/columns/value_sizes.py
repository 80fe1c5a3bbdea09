"""The bytes of single values, and the limits for values that are passed through.

A dictionary stores a value once, and any number of rows refer to it; the size of a row is that of
the value that it refers to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import Numbers, as_array, with_nulls
from pipeline.core.failures import Reason
from pipeline.sources.columns.arrow_types import is_binary, is_text
from pipeline.sources.columns.input_reader import Failures, fail

MAX_VALUE_BYTES = 16 << 20
"""Size limit of an id and of a value that is passed through; a larger one fails its row."""
_SMALL_DICTIONARY_BYTES = 1 << 20


def value_bytes(column: pa.Array) -> Numbers:
    """Return the bytes of each value of a column, int64 (N,); 0 for nulls."""
    dtype = column.type
    if isinstance(dtype, pa.BaseExtensionType):
        return value_bytes(column.storage)
    sizes: Numbers
    if pa.types.is_dictionary(dtype):
        indices = pc.fill_null(column.indices.cast(pa.int64()), -1).to_numpy()
        sizes = np.append(value_bytes(column.dictionary), 0)[indices]
    elif pa.types.is_struct(dtype):
        fields = [value_bytes(field) for field in column.flatten()]
        sizes = np.sum([np.zeros(len(column), np.int64), *fields], axis=0)
    elif pa.types.is_fixed_size_list(dtype):
        items = column.values.slice(column.offset * dtype.list_size, len(column) * dtype.list_size)
        sizes = value_bytes(items).reshape(len(column), dtype.list_size).sum(axis=1)
    elif isinstance(column, pa.ListArray | pa.LargeListArray | pa.MapArray):
        ends = np.asarray(column.offsets).astype(np.int64)
        before = np.append(0, np.cumsum(value_bytes(_items(column, ends))))
        sizes = before[ends[1:] - ends[0]] - before[ends[:-1] - ends[0]]
    elif is_text(dtype) or is_binary(dtype):
        lengths = pc.binary_length(_plain(column))
        sizes = pc.fill_null(lengths, 0).cast(pa.int64()).to_numpy()
    else:  # list views are rare: each value gets the same share
        sizes = np.full(len(column), -(-column.nbytes // max(1, len(column))), np.int64)
    return sizes


def _items(column: pa.Array, ends: Numbers) -> pa.Array:
    if not pa.types.is_map(column.type):
        return column.values.slice(ends[0], ends[-1] - ends[0])
    keys, items = (a.slice(ends[0], ends[-1] - ends[0]) for a in (column.keys, column.items))
    return pa.StructArray.from_arrays([keys, items], ["key", "value"])


def _plain(column: pa.Array) -> pa.Array:
    """Return text or bytes as a type whose lengths Arrow computes; for views it does not."""
    if pa.types.is_string_view(column.type):
        return column.cast(pa.large_string())
    if pa.types.is_binary_view(column.type) or pa.types.is_fixed_size_binary(column.type):
        return column.cast(pa.large_binary())
    return column


def without_large(table: pa.Table, names: Mapping[str, str], failures: Failures) -> pa.Table:
    """Fail rows with a value that is too large to be passed through; such values become null.

    Args:
        table: N rows of a shard.
        names: The columns to check, which may be missing -> names for messages.
        failures: (N,), extended.
    """
    for key, name in names.items():
        index = table.schema.get_field_index(key)
        if index < 0 or table.column(index).nbytes <= MAX_VALUE_BYTES:
            continue
        column = as_array(table.column(index))
        sizes = value_bytes(column)
        too_large = sizes > MAX_VALUE_BYTES
        for row in np.flatnonzero(too_large).tolist():
            message = f"{name} has {sizes[row]} bytes, the limit is {MAX_VALUE_BYTES}"
            fail(failures, [row], Reason.TOO_LARGE, message, num_bytes=int(sizes[row]))
        if too_large.any():
            kept = _without(column, too_large)
            table = table.set_column(index, table.schema.field(index).with_nullable(True), kept)
    return table


def _without(column: pa.Array, rows: npt.NDArray[np.bool_]) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        indices = pc.if_else(pa.array(rows), None, column.indices)
        return _compact(pa.DictionaryArray.from_arrays(
            indices, column.dictionary, ordered=column.type.ordered
        ))  # fmt: skip
    return with_nulls(_plain(column), rows)


def with_compact_dictionaries(table: pa.Table) -> pa.Table:
    """Drop values of large dictionaries that no row refers to, as each slice carries a copy."""
    for index, field in enumerate(table.schema):
        if not pa.types.is_dictionary(field.type):
            continue
        column = as_array(table.column(index))
        if column.dictionary.nbytes > _SMALL_DICTIONARY_BYTES:
            table = table.set_column(index, field, _compact(column))
    return table


def bounded(batch: pa.RecordBatch, max_bytes: int) -> Iterator[pa.RecordBatch]:
    """Cut a batch where its values, taken out of their dictionaries, exceed a number of bytes."""
    sizes = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        is_encoded = pa.types.is_dictionary(column.type)
        if is_encoded and column.dictionary.nbytes * batch.num_rows > max_bytes:
            sizes += value_bytes(column)
    before = np.append(0, np.cumsum(sizes))
    start = 0
    while start < batch.num_rows:
        fit = int(np.searchsorted(before, before[start] + max_bytes, "right")) - 1
        end = max(start + 1, fit)
        yield batch.slice(start, end - start)
        start = end


def _compact(column: pa.DictionaryArray) -> pa.Array:
    used = np.unique(column.indices.drop_null().to_numpy())
    if len(used) == len(column.dictionary):
        return column
    places = np.zeros(len(column.dictionary), np.int64)
    places[used] = np.arange(len(used))
    indices = pa.array(places).take(column.indices).cast(column.type.index_type)
    dictionary = column.dictionary.take(pa.array(used))
    return pa.DictionaryArray.from_arrays(indices, dictionary, ordered=column.type.ordered)
