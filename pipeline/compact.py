"""Turn staged slices into final parts: predictions and quarantine apart, in input order.

Pure over a store; the caller decides where the groups run (Ray tasks in a run).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.layout import part_name
from pipeline.manifest import Part
from pipeline.schema import (
    ERROR,
    ERROR_STAGE,
    LABEL,
    MESSAGE,
    NUM_BYTES,
    QUARANTINE_SCHEMA,
    ROW_ID,
    SHA256,
    URI,
    Reason,
    SliceKey,
)
from pipeline.sink import StagedSlice, staged_of
from pipeline.storage import Store

_HASH_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Group:
    """The slices of one final part."""

    index: int
    slices: tuple[tuple[SliceKey, str], ...]
    duplicates: Mapping[SliceKey, tuple[int, ...]] = field(default_factory=dict)
    """Rows (counted within their slice) whose id an earlier row has."""


@dataclass(frozen=True)
class Compactor:
    """Everything needed to compact any group of one run; plain enough for Ray."""

    store: Store
    folder: str
    """Where the parts go: `<folder>/predictions/` and `<folder>/quarantine/`."""
    version: str
    schema: pa.Schema
    """Of the predictions."""
    compression: str
    metadata: Mapping[str, str]

    def compact(self, group: Group) -> CompactedGroup:
        """Write the final parts of one group, each in one put.

        Returns:
            The parts (paths relative to `folder`) and the sum of the row id hashes.
        """
        schema = self.schema
        predictions = _PartWriter(schema, self.compression, self.metadata)
        quarantine = _PartWriter(QUARANTINE_SCHEMA, self.compression, self.metadata)
        row_id_hash = 0
        for key, path in group.slices:
            with self.store.open(path) as handle:
                part = pq.ParquetFile(handle)
                staged, rows = staged_of(part, path), part.read()
            row_id_hash += int(hash_ids(rows.column(ROW_ID)).sum(dtype=np.uint64))
            rows = _mark_duplicates(rows, group.duplicates.get(key, ()))
            good = pc.is_null(rows.column(ERROR))
            predictions.write(rows.filter(good).select(schema.names))
            quarantine.write(_to_quarantine(rows.filter(pc.invert(good)), staged))
        name = part_name(group.index, self.version)
        is_only = group.index == 0  # an empty partition still has one part with the schema
        return CompactedGroup(
            index=group.index,
            predictions=self._put(f"predictions/{name}", predictions, is_wanted=is_only),
            quarantine=self._put(f"quarantine/{name}", quarantine, is_wanted=False),
            row_id_hash=row_id_hash & _HASH_MASK,
        )

    def _put(self, path: str, writer: _PartWriter, *, is_wanted: bool) -> Part | None:
        data = writer.close()
        if writer.num_rows == 0 and not is_wanted:
            return None
        self.store.put(f"{self.folder}/{path}", data)
        return Part(path, writer.num_rows, len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class CompactedGroup:
    """What became of a group."""

    index: int
    predictions: Part | None
    quarantine: Part | None
    row_id_hash: int


class _PartWriter:
    """One Parquet file in memory."""

    def __init__(self, schema: pa.Schema, compression: str, metadata: Mapping[str, str]) -> None:
        self._buffer = io.BytesIO()
        self._schema = schema.with_metadata(dict(metadata))
        self._writer = pq.ParquetWriter(self._buffer, self._schema, compression=compression)
        self.num_rows = 0

    def write(self, rows: pa.Table) -> None:
        if rows.num_rows:
            self._writer.write_table(rows.cast(self._schema))
            self.num_rows += rows.num_rows

    def close(self) -> bytes:
        self._writer.close()
        return self._buffer.getvalue()


def cut_groups(
    slices: Sequence[tuple[SliceKey, str, int]],
    target_bytes: float,
    duplicates: Mapping[SliceKey, tuple[int, ...]],
) -> Iterator[Group]:
    """Cut the slices (key, path, staged bytes; in input order) into parts near target_bytes."""
    pending: list[tuple[SliceKey, str]] = []
    size = index = 0
    for key, path, size_bytes in slices:
        if pending and size + size_bytes / 2 > target_bytes:
            yield _group(index, pending, duplicates)
            pending, size, index = [], 0, index + 1
        pending.append((key, path))
        size += size_bytes
    if pending or index == 0:
        yield _group(index, pending, duplicates)


def _group(
    index: int,
    slices: list[tuple[SliceKey, str]],
    duplicates: Mapping[SliceKey, tuple[int, ...]],
) -> Group:
    own = {key: duplicates[key] for key, _ in slices if key in duplicates}
    return Group(index, tuple(slices), own)


def _mark_duplicates(rows: pa.Table, duplicates: Sequence[int]) -> pa.Table:
    if not duplicates:
        return rows
    is_duplicate = np.zeros(rows.num_rows, bool)
    is_duplicate[list(duplicates)] = True
    # A row that failed for another reason keeps it.
    mask = pc.and_(pa.array(is_duplicate), pc.is_null(rows.column(ERROR)).combine_chunks())
    values = {
        ERROR: Reason.DUPLICATE_ID.value,
        ERROR_STAGE: "publish",
        MESSAGE: "an earlier row has the same id",
    }
    for name, value in values.items():
        index = rows.column_names.index(name)
        changed = pc.if_else(mask, pa.scalar(value), rows.column(name).combine_chunks())
        rows = rows.set_column(index, name, changed)
    return rows


def _to_quarantine(rows: pa.Table, staged: StagedSlice) -> pa.Table:
    return pa.table(
        {
            ROW_ID: rows.column(ROW_ID),
            URI: rows.column(URI),
            "stage": rows.column(ERROR_STAGE),
            "reason": rows.column(ERROR),
            MESSAGE: rows.column(MESSAGE),
            SHA256: rows.column(SHA256),
            NUM_BYTES: rows.column(NUM_BYTES),
            "run_id": pa.array([staged.run_id] * rows.num_rows, pa.string()),
        },
        schema=QUARANTINE_SCHEMA,
    )


def hash_ids(ids: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.uint64]:
    """Hash row ids to 64 bits, the same in every process and on every machine."""
    values: Any = np.asarray(ids.to_pylist(), dtype=object)
    if len(values) == 0:
        return np.zeros(0, np.uint64)
    return np.asarray(pd.util.hash_array(values, categorize=False), np.uint64)


def sum_hashes(hashes: Sequence[int]) -> str:
    """Add hashes modulo 2**64 and show the sum as hex."""
    return f"{sum(hashes) & _HASH_MASK:016x}"


def read_hashes(store: Store, path: str) -> npt.NDArray[np.uint64]:
    """Hash the row ids of one staged part."""
    return hash_ids(_read(store, path, [ROW_ID]).column(ROW_ID))


def _read(store: Store, path: str, columns: list[str] | None) -> pa.Table:
    with store.open(path) as handle:
        return pq.ParquetFile(handle).read(columns=columns)


def find_duplicates(
    store: Store,
    slices: Sequence[tuple[SliceKey, str]],
    hashes: Sequence[npt.NDArray[np.uint64]],
) -> dict[SliceKey, tuple[tuple[int, str | None], ...]]:
    """Find the rows whose id an earlier row has; the first in input order keeps its prediction.

    Returns:
        For each slice that has some: the row (counted within the slice) and its label (empty
        where the task gives none), None where the row had failed already.

    Hashes (8 bytes a row) tell which slices to look into; only there the ids themselves count.
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
        table = _read(store, path, None).take(pa.array(rows))
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
