"""Hashes of row ids: 8 bytes per row prove that none is lost, and say which ids may repeat."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.commit.manifest import Part
from pipeline.commit.parts.part_reader import read_columns
from pipeline.core.arrays import Numbers
from pipeline.core.schema import ERROR, LABEL, ROW_ID
from pipeline.core.slices import SliceKey
from pipeline.storage.store import Store

LabelledDuplicates = Mapping[SliceKey, tuple[tuple[int, str | None], ...]]
"""Slice -> rows whose id an earlier row has, with their labels: see `find_repeated`."""
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


def read_hashes(store: Store, path: str) -> npt.NDArray[np.uint64]:
    """Hash the row ids of one part, in its order, to uint64 (N,)."""
    return hash_ids(read_columns(store, path, [ROW_ID]).column(ROW_ID))


@dataclass(frozen=True)
class OtherRows:
    """Predictions beside staged rows, whose ids count too: C of them."""

    hashes: npt.NDArray[np.uint64]
    """(C,): of their ids."""
    ranks: Numbers
    """(C,): how many rows of the input come before each; -1 before all staged rows."""
    read: Callable[[Numbers], Sequence[str]]
    """Reads the ids of some of them."""
    rank_of: Callable[[Numbers], Numbers]
    """Returns the ranks of staged rows, which are counted over all slices."""


def find_duplicates(
    store: Store, slices: Sequence[tuple[SliceKey, str]], hashes: Sequence[npt.NDArray[np.uint64]]
) -> LabelledDuplicates:
    """Find the staged rows whose id an earlier row has; see `find_repeated`."""
    none = np.zeros(0, np.int64)
    others = OtherRows(none.astype(np.uint64), none, lambda _: (), lambda rows: rows)
    return find_repeated(store, slices, hashes, others)[0]


def find_repeated(
    store: Store,
    slices: Sequence[tuple[SliceKey, str]],
    hashes: Sequence[npt.NDArray[np.uint64]],
    others: OtherRows,
) -> tuple[LabelledDuplicates, Numbers]:
    """Find the rows whose id an earlier row has; the first in input order keeps its prediction.

    Returns:
        For each slice that has some: the row (counted within the slice) and its label (empty
        if the task gives none); None if the row had failed already. And, ascending, which of the
        other rows have an id of an earlier row.

    Hashes (8 bytes per row) tell which slices to look into; only there the ids themselves count.
    """
    values, counts = np.unique(np.concatenate([others.hashes, *hashes]), return_counts=True)
    suspects = values[counts > 1]
    candidates = list[tuple[int, str, SliceKey | None, int, str | None]]()
    chosen = np.flatnonzero(np.isin(others.hashes, suspects))
    known = zip(others.ranks[chosen].tolist(), others.read(chosen), chosen.tolist(), strict=True)
    candidates += [(rank, value, None, row, "") for rank, value, row in known]
    first = 0
    for (key, path), slice_hashes in zip(slices, hashes, strict=True):
        rows = np.flatnonzero(np.isin(slice_hashes, suspects))
        ranks, first = others.rank_of(first + rows).tolist(), first + len(slice_hashes)
        if len(rows) == 0:
            continue
        table = read_columns(store, path, [ROW_ID, ERROR, LABEL]).take(pa.array(rows))
        ids, errors = table[ROW_ID].to_pylist(), table[ERROR].to_pylist()
        texts = table[LABEL].to_pylist() if LABEL in table.column_names else [""] * len(ids)
        labels = [
            (label or "") if e is None else None for label, e in zip(texts, errors, strict=True)
        ]
        candidates += zip(ranks, ids, [key] * len(ids), rows.tolist(), labels, strict=True)
    seen: set[str] = set()
    duplicates: defaultdict[SliceKey, list[tuple[int, str | None]]] = defaultdict(list)
    repeated: list[int] = []
    for _, value, slice_key, row, label in sorted(candidates, key=lambda candidate: candidate[0]):
        if value in seen:
            if slice_key is None:
                repeated.append(row)
            else:
                duplicates[slice_key].append((row, label))
        seen.add(value)
    rows_of = {key: tuple(rows) for key, rows in duplicates.items()}
    return rows_of, np.array(sorted(repeated), np.int64)
