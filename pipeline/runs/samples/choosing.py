"""Choose the rows of a version that a page shows: the least certain ones.

Only the scores of all rows are read; then the row groups of those that are chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest
from pipeline.commit.parts.carried.version import CarriedVersion, OldReader, OldRows
from pipeline.commit.published.dataset import PublishedParts
from pipeline.core.schema import (
    DETECTIONS,
    DURATION_S,
    ENTITIES,
    LABEL,
    LABELS,
    ROW_ID,
    SCORE,
    URI,
)
from pipeline.storage.store import Store

_LISTS = (DETECTIONS, LABELS, ENTITIES)
_BATCH_ROWS = 32_768
_MAX_ROWS = 20_000_000
_PLAIN_COLUMNS = 4

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True)
class Chosen:
    """Rows of a version, as they are published."""

    rows: tuple[Row, ...]
    """The least certain first; without scores the first rows."""
    has_scores: bool = False
    num_looked_at: int = 0
    """The first ones, if there are very many."""


class Least:
    """Numbers of the least certain rows so far."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self.rows: list[tuple[float, int]] = []
        """Score and number of each."""

    def add(self, first: int, batch: pa.RecordBatch, column: str) -> None:
        """Look at rows from number `first` on."""
        parents, scores = _scores(batch, column)
        certain = np.full(batch.num_rows, np.nan)
        # Of several entries of a row the last one stays: the best, of entities the worst.
        order = np.argsort(scores, kind="stable")
        upwards = order[::-1] if column == ENTITIES else order
        certain[parents[upwards]] = scores[upwards]
        known = np.flatnonzero(~np.isnan(certain))
        lowest = known[np.argsort(certain[known], kind="stable")[: self._wanted]]
        found = [(float(certain[row]), first + int(row)) for row in lowest]
        self.rows = sorted([*self.rows, *found])[: self._wanted]


def _scores(batch: pa.RecordBatch, column: str) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return row and score of each entry that has a score."""
    values = batch.column(column)
    if column == SCORE:
        scores, parents = values, np.arange(batch.num_rows)
    else:
        scores = values.flatten().field(SCORE)
        parents = np.asarray(pc.list_parent_indices(values))
    numbers = scores.cast(pa.float64()).to_numpy(zero_copy_only=False)
    is_there = ~np.isnan(numbers)
    return parents[is_there], numbers[is_there]


def choose(store: Store, layout: Layout, manifest: Manifest, number: int) -> Chosen:
    """Choose the least certain rows of a version.

    Args:
        store: The output.
        layout: The partition.
        manifest: The version.
        number: The most rows.

    Raises:
        NotReadable: A part is gone.
    """
    parts = PublishedParts.of(store, [(layout, manifest)], "predictions")
    names = parts.schema.names
    column = next((name for name in (SCORE, *_LISTS) if name in names), None)
    if column is None or not parts.num_rows:
        first = np.arange(min(number, parts.num_rows))
        return Chosen(tuple(_rows(store, layout, manifest, parts, first).values()))
    least, looked_at = Least(number), 0
    for batch in _batches(parts, [column]):
        least.add(looked_at, batch, column)
        looked_at += batch.num_rows
    numbers = [place for _, place in least.rows]
    rows = _rows(store, layout, manifest, parts, np.unique(np.array(numbers, np.int64)))
    return Chosen(tuple(rows[place] for place in numbers), True, looked_at)


def _batches(parts: PublishedParts, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield columns of all predictions in order, of very many only the first ones."""
    seen = 0
    for index in range(len(parts.parts)):  # one by one: so the order is that of the parts
        rows = parts.only([index]).dataset()
        for batch in rows.to_batches(columns=columns, batch_size=_BATCH_ROWS, batch_readahead=1):
            yield batch
            seen += batch.num_rows
        if seen >= _MAX_ROWS:
            return


def _rows(
    store: Store,
    layout: Layout,
    manifest: Manifest,
    parts: PublishedParts,
    numbers: npt.NDArray[np.int64],
) -> Mapping[int, Row]:
    """Read rows by their numbers, ascending: id, URI and what can be shown of a prediction."""
    folders = set(manifest.partition_columns)
    shown = [ROW_ID, URI, LABEL, SCORE, *_LISTS, DURATION_S]
    fields = [field for field in parts.schema if field.name not in folders]
    if not {*shown[2:-1]} & {field.name for field in fields}:
        plain = [field.name for field in fields if not pa.types.is_nested(field.type)]
        shown += [name for name in plain if name not in (ROW_ID, URI)][:_PLAIN_COLUMNS]
    schema = pa.schema([field for field in fields if field.name in shown])
    versions = OldRows.of([CarriedVersion(layout, manifest)])
    found = OldReader(store, versions, schema).at(numbers).to_pylist()
    filled = [part for part in parts.parts if part.file.part.num_rows]
    held = [filled[each].values for each in versions.part_of(numbers).tolist()]
    for row, values in zip(found, held, strict=True):
        row.update({name: value.as_py() for name, value in values.items() if name == LABEL})
    return dict(zip(numbers.tolist(), found, strict=True))
