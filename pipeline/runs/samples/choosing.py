"""Choose rows of a version: the least certain, the most certain ones of classes, the quarantine.

Only scores and labels of all rows are read; then the row groups of those that are chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
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
    MESSAGE,
    ROW_ID,
    SCORE,
    URI,
)
from pipeline.storage.store import Store

REASON = "reason"
_LISTS = (DETECTIONS, LABELS, ENTITIES)
_BATCH_ROWS = 32_768
_MAX_ROWS = 20_000_000
_MAX_QUARANTINE_ROWS = 100_000
_PLAIN_COLUMNS = 4

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True)
class Chosen:
    """Rows of a version, as they are published."""

    least: tuple[Row, ...] = ()
    """The least certain first; without scores the first rows."""
    most: tuple[tuple[str, Row], ...] = ()
    """Class and its most certain row, the most frequent class first."""
    quarantine: tuple[Row, ...] = ()
    has_scores: bool = False
    num_looked_at: int = 0
    """Of the predictions: the first ones, if there are very many."""


@dataclass
class _Best:
    """Numbers of the best rows so far."""

    wanted: int
    labels: frozenset[str]
    least: list[tuple[float, int]] = field(default_factory=list)
    most: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, first: int, batch: pa.RecordBatch, column: str) -> None:
        """Look at rows from number `first` on."""
        parents, scores, labels = _entries(batch, column)
        certain = np.full(batch.num_rows, np.nan)
        # Of several entries of a row the last one stays: the best, of entities the worst.
        order = np.argsort(scores, kind="stable")
        upwards = order[::-1] if column == ENTITIES else order
        certain[parents[upwards]] = scores[upwards]
        known = np.flatnonzero(~np.isnan(certain))
        lowest = known[np.argsort(certain[known], kind="stable")[: self.wanted]]
        found = [(float(certain[row]), first + int(row)) for row in lowest]
        self.least = sorted([*self.least, *found])[: self.wanted]
        if labels is not None:
            codes, names = labels
            best, places = np.unique(codes[order[::-1]], return_index=True)
            for code, place in zip(best.tolist(), places.tolist(), strict=True):
                entry = order[::-1][place]
                name, score = names[code], float(scores[entry])
                if name in self.labels and score > self.most.get(name, (-np.inf, 0))[0]:
                    self.most[name] = score, first + int(parents[entry])


def _entries(
    batch: pa.RecordBatch, column: str
) -> tuple[npt.NDArray[np.int64], Floats, tuple[npt.NDArray[np.int64], list[str]] | None]:
    """Return row, score and label (codes and their names) of each entry that has a score."""
    values = batch.column(column)
    if column == SCORE:
        scores, labels = values, batch.column(LABEL) if LABEL in batch.schema.names else None
        parents = np.arange(batch.num_rows)
    else:
        entries = values.flatten()
        scores, labels = entries.field(SCORE), entries.field(LABEL)
        parents = np.asarray(pc.list_parent_indices(values))
    numbers = scores.cast(pa.float64()).to_numpy(zero_copy_only=False)
    is_there = ~np.isnan(numbers)
    if labels is None:
        return parents[is_there], numbers[is_there], None
    coded = labels if pa.types.is_dictionary(labels.type) else labels.dictionary_encode()
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    is_there &= codes >= 0
    names = coded.dictionary.to_pylist()
    return parents[is_there], numbers[is_there], (codes[is_there].astype(np.int64), names)


def choose(store: Store, layout: Layout, manifest: Manifest, number: int) -> Chosen:
    """Choose rows of a version.

    Args:
        store: The output.
        layout: The partition.
        manifest: The version.
        number: The most rows of each kind.

    Raises:
        NotReadable: A part is gone.
    """
    failed = _failed(PublishedParts.of(store, [(layout, manifest)], "quarantine"), number)
    parts = PublishedParts.of(store, [(layout, manifest)], "predictions")
    if not parts.num_rows:
        return Chosen(quarantine=failed)
    names = parts.schema.names
    column = next((name for name in (SCORE, *_LISTS) if name in names), None)
    counted = sorted(manifest.distribution.get("labels", {}).items(), key=lambda pair: -pair[1])
    classes = [label for label, rows in counted[:number] if rows]
    if column is None:
        first = np.arange(min(number, parts.num_rows))
        return Chosen(tuple(_rows(store, layout, manifest, parts, first).values()), (), failed)
    best, looked_at = _Best(number, frozenset(classes)), 0
    columns = [column, LABEL] if column == SCORE and LABEL in names else [column]
    for batch in _batches(parts, columns):
        best.add(looked_at, batch, column)
        looked_at += batch.num_rows
    numbers = [place for _, place in (*best.least, *best.most.values())]
    rows = _rows(store, layout, manifest, parts, np.unique(np.array(numbers, np.int64)))
    return Chosen(
        least=tuple(rows[place] for _, place in best.least),
        most=tuple((name, rows[best.most[name][1]]) for name in classes if name in best.most),
        quarantine=failed,
        has_scores=True,
        num_looked_at=looked_at,
    )


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


def _failed(parts: PublishedParts, number: int) -> tuple[Row, ...]:
    """Return rows of the quarantine, of all reasons in turn."""
    by_reason: dict[str, list[Row]] = {}
    seen = 0
    columns = [ROW_ID, URI, REASON, MESSAGE]
    for batch in parts.dataset().to_batches(columns=columns, batch_readahead=1):
        for row in batch.to_pylist():
            kept = by_reason.setdefault(row[REASON], [])
            if len(kept) < number:
                kept.append(row)
        seen += batch.num_rows
        if seen >= _MAX_QUARANTINE_ROWS:
            break
    turns = chain.from_iterable(zip_longest(*by_reason.values()))
    return tuple(islice((row for row in turns if row is not None), number))
