"""Hash row ids: 8 bytes per row prove that no row is lost, and tell which ids may repeat."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.commit.manifest import Part
from pipeline.commit.parts.part_file import read_columns
from pipeline.core.schema import ERROR, LABEL, ROW_ID
from pipeline.core.slices import SliceKey
from pipeline.storage.store import Store, StoredFile

LabelledDuplicates = Mapping[SliceKey, tuple[tuple[int, str | None], ...]]
"""Slice -> rows with the id of an earlier row, and their labels: see `find_duplicates`."""
_HASH_MASK = (1 << 64) - 1


def hash_ids(ids: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.uint64]:
    """Hash N row ids to uint64 (N,), the same in every process and on every machine."""
    values: Any = np.asarray(ids.to_numpy(zero_copy_only=False), dtype=object)
    if len(values) == 0:
        return np.zeros(0, np.uint64)
    import pandas as pd  # takes a sixth of a second, so only where it is needed

    return np.asarray(pd.util.hash_array(values, categorize=False), np.uint64)


def sum_hashes(hashes: Sequence[int]) -> str:
    """Add hashes modulo 2**64 and show the sum as hex."""
    return f"{sum(hashes) & _HASH_MASK:016x}"


def sum_of_parts(parts: Iterable[Part]) -> str:
    """Add the hashes of all rows of parts."""
    return sum_hashes([int(part.row_id_hash or "0", 16) for part in parts])


def read_hashes(store: Store, path: str) -> npt.NDArray[np.uint64]:
    """Hash the row ids of one part, in its order, to uint64 (N,)."""
    return hash_ids(read_columns(store, path, [ROW_ID]).column(ROW_ID))


def hash_failed(
    store: Store,
    slices: Sequence[tuple[SliceKey, StoredFile]],
    duplicates: LabelledDuplicates,
    run_tasks: Callable[..., list[int]],
) -> str:
    """Add the hashes of the ids of staged rows that failed or repeat the id of an earlier row."""
    rows = [[row for row, _ in duplicates.get(key, ())] for key, _ in slices]
    calls = [(store, file.path, some) for (_, file), some in zip(slices, rows, strict=True)]
    return sum_hashes(run_tasks(_hash_failed, calls))


def _hash_failed(store: Store, path: str, duplicates: Sequence[int]) -> int:
    rows = read_columns(store, path, [ROW_ID, ERROR])
    has_failed = np.array(rows.column(ERROR).is_valid())
    has_failed[list(duplicates)] = True
    return sum(hash_ids(rows.column(ROW_ID).filter(pa.array(has_failed))).tolist())


def find_duplicates(
    store: Store, slices: Sequence[tuple[SliceKey, str]], hashes: Sequence[npt.NDArray[np.uint64]]
) -> LabelledDuplicates:
    """Find staged rows with the id of an earlier row; the first row in input order is predicted.

    Hashes tell which slices to read; only in these are the ids themselves compared.

    Args:
        store: The output.
        slices: Keys and paths of staged slices, in input order.
        hashes: Of each slice `read_hashes`.

    Returns:
        For each slice with such rows: the row (counted within the slice) and its label; the label
        is empty if the task gives none, and None if the row has failed.
    """
    values, counts = np.unique(
        np.concatenate([np.zeros(0, np.uint64), *hashes]), return_counts=True
    )
    suspects = values[counts > 1]
    seen: set[str] = set()
    duplicates: defaultdict[SliceKey, list[tuple[int, str | None]]] = defaultdict(list)
    for (key, path), slice_hashes in zip(slices, hashes, strict=True):
        rows = np.flatnonzero(np.isin(slice_hashes, suspects))
        if len(rows) == 0:
            continue
        table = read_columns(store, path, [ROW_ID, ERROR, LABEL]).take(pa.array(rows))
        ids, errors = table[ROW_ID].to_pylist(), table[ERROR].to_pylist()
        texts = table[LABEL].to_pylist() if LABEL in table.column_names else [""] * len(ids)
        for row, value, error, label in zip(rows.tolist(), ids, errors, texts, strict=True):
            if value in seen:
                duplicates[key].append((row, (label or "") if error is None else None))
            seen.add(value)
    return {key: tuple(rows) for key, rows in duplicates.items()}
