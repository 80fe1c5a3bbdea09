"""Hashes of row ids: 8 bytes per row prove that none is lost, and say which ids may repeat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.commit.manifest import Part
from pipeline.commit.parts.part_reader import read_columns
from pipeline.core.schema import ERROR, LABEL, ROW_ID
from pipeline.core.slices import SliceKey
from pipeline.storage.store import Store

_HASH_MASK = (1 << 64) - 1


def hash_ids(ids: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.uint64]:
    """Hash N row ids to uint64 (N,), the same in every process and on every machine."""
    values: Any = np.asarray(ids.to_numpy(zero_copy_only=False), dtype=object)
    if len(values) == 0:
        return np.zeros(0, np.uint64)
    import pandas as pd  # a sixth of a second, which Ray Data spends anyway while Ray starts

    return np.asarray(pd.util.hash_array(values, categorize=False), np.uint64)


def sum_hashes(hashes: Sequence[int]) -> str:
    """Add hashes modulo 2**64 and show the sum as hex."""
    return f"{sum(hashes) & _HASH_MASK:016x}"


def sum_of_parts(parts: Iterable[Part]) -> str:
    """Add the hashes of all rows of parts that know theirs."""
    return sum_hashes([int(part.row_id_hash, 16) for part in parts])


def with_hash(store: Store, part: Part) -> Part:
    """Return a published part with the hash of its rows; one of an older version is read for it."""
    if part.row_id_hash:
        return part
    total = int(read_hashes(store, part.path).sum(dtype=np.uint64))
    return replace(part, row_id_hash=sum_hashes([total]))


def read_hashes(store: Store, path: str) -> npt.NDArray[np.uint64]:
    """Hash the row ids of one part, in its order, to uint64 (N,)."""
    return hash_ids(read_columns(store, path, [ROW_ID]).column(ROW_ID))


def find_duplicates(
    store: Store,
    slices: Sequence[tuple[SliceKey, str]],
    hashes: Sequence[npt.NDArray[np.uint64]],
) -> dict[SliceKey, tuple[tuple[int, str | None], ...]]:
    """Find the rows whose id an earlier row has; the first in input order keeps its prediction.

    Returns:
        For each slice that has some: the row (counted within the slice) and its label (empty
        if the task gives none); None if the row had failed already.

    Hashes (8 bytes per row) tell which slices to look into; only there the ids themselves count.
    """
    if not hashes:
        return {}
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    suspects = values[counts > 1]
    seen: set[str] = set()
    duplicates: dict[SliceKey, tuple[tuple[int, str | None], ...]] = {}
    for (key, path), own in zip(slices, hashes, strict=True):
        rows = np.flatnonzero(np.isin(own, suspects))
        if len(rows) == 0:
            continue
        table = read_columns(store, path).take(pa.array(rows))
        ids, errors = table[ROW_ID].to_pylist(), table[ERROR].to_pylist()
        labels = table[LABEL].to_pylist() if LABEL in table.column_names else [""] * len(ids)
        repeated = []
        for row, value, label, error in zip(rows.tolist(), ids, labels, errors, strict=True):
            if value in seen:
                repeated.append((row, label if error is None else None))
            seen.add(value)
        if repeated:
            duplicates[key] = tuple(repeated)
    return duplicates
