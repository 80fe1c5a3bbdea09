"""Choose how many rows of a Parquet shard are read at once, so that their values fit into memory.

A footer holds the bytes of columns as they are stored. Rows may be larger by any factor: many rows
may refer to a value that a dictionary stores once, and the largest rows may be neighbours. Arrow
cuts batches by rows alone, so the number of rows is chosen before it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.sources.formats.parquet_footers import is_below

MAX_BATCH_BYTES = 128 << 20
_USUAL_RATIO = 100
"""Text compresses three to ten times; values that compress more repeat themselves."""
_PREFIXES = "DELTA_BYTE_ARRAY"
_FEW_PREFIXED = 16
"""Rows of such columns that are read at once: each may have all stored bytes."""
_NUMBER_BYTES = 8
_LISTS = (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)

OpenAsDictionaries = Callable[[Sequence[str]], pq.ParquetFile]
"""Opens the shard so that some leaves of bytes are read as dictionaries, not copied per row."""


@dataclass(frozen=True)
class _Leaf:
    index: int
    path: str
    is_bytes: bool
    varies: bool
    """Whether rows may have different sizes."""
    stays: bool
    """Whether Arrow leaves the values in their dictionary."""


@dataclass(frozen=True)
class _Group:
    """Facts in a footer about the columns of varying size of a row group."""

    index: int
    num_rows: int
    stored_bytes: float
    """Unpacked bytes. A row, and all rows together, hold more only by references to a dictionary,
    or by prefixes that values share with earlier ones."""
    packed_bytes: int
    prefixed_bytes: float
    """Maximum bytes of a row in columns that store such prefixes once."""
    row_bytes: float
    """Mean bytes of the lists of numbers of a row."""
    dictionaries: Sequence[tuple[_Leaf, pq.ColumnChunkMetaData]]
    """The leaves with a dictionary."""
    values_per_row: float
    """Mean values per row of these leaves; more than one for lists."""


def rows_within(
    parquet: pq.ParquetFile,
    open_as_dictionaries: OpenAsDictionaries,
    groups: Sequence[int],
    columns: Sequence[str],
    num_rows: int,
    few_rows: int,
) -> int:
    """Return how many rows of some row groups Arrow may read at once; at least one.

    Args:
        parquet: The open shard.
        open_as_dictionaries: Opens it again if the footer does not bound the size of rows.
        groups: Neighbouring row groups.
        columns: The columns or leaves to read.
        num_rows: Rows to read at once if memory allows.
        few_rows: Maximum rows where large rows may be neighbours.
    """
    leaves = [*_varying(parquet, columns)]
    if not leaves:
        return num_rows
    row_groups = [_group(parquet.metadata, index, leaves) for index in groups]
    rows = num_rows
    is_usual = all(g.stored_bytes <= _USUAL_RATIO * g.packed_bytes for g in row_groups)
    if _stored_at_once(row_groups, num_rows) > MAX_BATCH_BYTES:
        rows = min(num_rows, few_rows if is_usual else 1)
    most = min(num_rows, sum(group.num_rows for group in row_groups))
    prefixed = max(group.prefixed_bytes for group in row_groups)
    if most * prefixed > MAX_BATCH_BYTES:
        rows = min(rows, max(_FEW_PREFIXED if is_usual else 1, int(MAX_BATCH_BYTES / prefixed)))
    longest = max(_longest(open_as_dictionaries, group, most) for group in row_groups)
    row_bytes = longest + max(group.row_bytes for group in row_groups)
    if min(rows, most) * row_bytes > MAX_BATCH_BYTES:
        rows = max(1, int(MAX_BATCH_BYTES / row_bytes))
    return rows


def _varying(parquet: pq.ParquetFile, columns: Sequence[str]) -> Iterator[_Leaf]:
    """Yield the leaves of columns of bytes or lists; the rows of others have one size."""
    wanted = frozenset(columns)
    schema = parquet.schema
    for index in range(len(schema)):
        leaf = schema.column(index)
        is_bytes = leaf.physical_type == "BYTE_ARRAY"
        if not is_bytes and not leaf.max_repetition_level:
            continue
        if is_below(leaf.path, wanted):
            top = parquet.schema_arrow.get_field_index(leaf.path.split(".")[0])
            dtype = parquet.schema_arrow.field(top).type if top >= 0 else pa.null()
            yield _Leaf(
                index,
                leaf.path,
                is_bytes,
                is_bytes or not pa.types.is_fixed_size_list(dtype),
                pa.types.is_dictionary(dtype),
            )


def _group(metadata: pq.FileMetaData, index: int, leaves: Sequence[_Leaf]) -> _Group:
    group = metadata.row_group(index)
    num_rows = max(1, group.num_rows)
    stored, packed, prefixed, row_bytes, most_values = 0.0, 0, 0.0, 0.0, 1.0
    dictionaries: list[tuple[_Leaf, pq.ColumnChunkMetaData]] = []
    for leaf in leaves:
        chunk = group.column(leaf.index)
        values = max(1.0, chunk.num_values / num_rows)
        size = float(chunk.total_uncompressed_size)
        if not leaf.is_bytes:
            size = max(size, float(_NUMBER_BYTES * chunk.num_values))
            row_bytes += _NUMBER_BYTES * values
        if leaf.is_bytes and _PREFIXES in chunk.encodings:
            prefixed += values * size
        if leaf.varies:
            stored, packed = stored + size, packed + chunk.total_compressed_size
        is_encoded = any("DICTIONARY" in name for name in chunk.encodings)
        if leaf.is_bytes and not leaf.stays and (is_encoded or chunk.has_dictionary_page):
            dictionaries.append((leaf, chunk))
            most_values = max(most_values, values)
    return _Group(index, num_rows, stored, packed, prefixed, row_bytes, dictionaries, most_values)


def _stored_at_once(groups: Sequence[_Group], num_rows: int) -> float:
    """Return the maximum stored bytes of the row groups in which `num_rows` rows may lie."""
    ends = np.cumsum([group.num_rows for group in groups])
    stored = np.append(0.0, np.cumsum([group.stored_bytes for group in groups]))
    # From the last row of each group on.
    last = np.searchsorted(ends, ends + num_rows - 2, "right")
    return float((stored[np.minimum(last, len(groups) - 1) + 1] - stored[:-1]).max())


def _longest(open_as_dictionaries: OpenAsDictionaries, group: _Group, num_rows: int) -> float:
    """Return the maximum bytes of a row by references to dictionaries.

    The footer is asked first, then the dictionaries themselves. They come with the first row of
    their columns; reading any row takes as much memory.
    """
    total = sum(int(chunk.total_uncompressed_size) for _, chunk in group.dictionaries)
    if num_rows * group.values_per_row * total > MAX_BATCH_BYTES:
        paths = [leaf.path for leaf, _ in group.dictionaries]
        first = next(
            open_as_dictionaries(paths).iter_batches(
                batch_size=1, row_groups=[group.index], columns=paths, use_threads=False
            )
        )
        total = sum(_longest_value(column) for column in first.columns)
    return group.values_per_row * total


def _longest_value(column: pa.Array) -> int:
    if isinstance(column.type, pa.BaseExtensionType):
        return _longest_value(column.storage)
    if pa.types.is_dictionary(column.type):
        return int(pc.max(pc.binary_length(column.dictionary)).as_py() or 0)
    if pa.types.is_struct(column.type):
        return sum(_longest_value(field) for field in column.flatten())
    if pa.types.is_map(column.type):
        return _longest_value(column.keys) + _longest_value(column.items)
    return _longest_value(column.values) if isinstance(column, _LISTS) else 0
