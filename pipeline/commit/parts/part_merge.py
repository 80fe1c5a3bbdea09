"""Merge rows into published parts by their keys, old and new interleaved, in bounded memory.

The parts of one value of partition columns, and the quarantine, are each read and written as a
stream, by one task. Values that no row comes into have their parts copied as they are. Predictions
in input order need no keys: see `carried/parts.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Part
from pipeline.commit.parts.compaction import (
    Compactor,
    Group,
    RunTasks,
    SizedSlice,
    SliceRows,
    cut_groups,
)
from pipeline.commit.parts.part_reader import open_part, read_batches
from pipeline.commit.parts.partition_columns import (
    SORT_BYTES,
    Keyed,
    Regrouper,
    RowGroupRef,
    read_piece,
)
from pipeline.commit.parts.row_positions import Positions, read_keys
from pipeline.core.arrays import Numbers
from pipeline.core.hive_paths import values_of, without
from pipeline.core.schema import QUARANTINE_SCHEMA

_BATCH_ROWS = 4096
_COPIES_PER_TASK = 16
NOT_HERE = -1
"""Key of a row of a slice that is not merged here."""


@dataclass(frozen=True)
class Insert:
    """A staged slice whose rows are merged."""

    sized: SizedSlice
    duplicates: tuple[int, ...]
    """Rows whose id another row has."""
    keys: Numbers
    """int64 (N,): each row goes before the old row of the same or a higher key, or NOT_HERE."""


@dataclass(frozen=True)
class Merger:
    """Merges rows into a value or the quarantine; plain enough for Ray."""

    compactor: Compactor
    columns: tuple[str, ...] = ()
    """Partition columns."""

    def into_folder(
        self, index: int, folder: str, parts: tuple[Part, ...], pieces: tuple[RowGroupRef, ...]
    ) -> tuple[Part, ...]:
        """Merge sorted rows into the parts of one value."""
        schema = without(self.compactor.schema, self.columns)
        stream = self.compactor.stream(f"predictions/{folder}", index, schema)
        old = (keyed for part in parts for keyed in self._placed(part, schema))
        where = self.compactor.store, self.compactor.folder
        new = (read_piece(*where, piece, schema) for piece in pieces)
        for rows, keys in interleave(old, new):
            stream.write(rows, numbers=keys.reshape(-1, 1))
        return stream.close()

    def into_quarantine(
        self,
        parts: tuple[Part, ...],
        gone: Numbers,
        inserts: tuple[Insert, ...],
        positions: Positions,
    ) -> tuple[Part, ...]:
        """Take rows out of the quarantine and merge those that failed into it.

        Args:
            parts: Of the quarantine.
            gone: int64 (G,): keys of the rows to leave out.
            inserts: Slices; of each row that did not fail the key is NOT_HERE.
            positions: Of all rows that will be there.
        """
        stream = self.compactor.stream("quarantine", 0, QUARANTINE_SCHEMA)
        num_rows = 0

        def kept() -> Keyed:
            for part in parts:
                for rows, keys in self._placed(part, QUARANTINE_SCHEMA):
                    is_gone = np.isin(keys, gone)
                    yield rows.filter(pa.array(~is_gone)), keys[~is_gone]

        for rows, keys in interleave(kept(), self._failed(inserts)):
            own = positions.take(slice(num_rows, num_rows + rows.num_rows))
            assert np.array_equal(own.keys, keys), "rows are not where they were expected"
            stream.write(rows, numbers=own.to_matrix())
            num_rows += rows.num_rows
        return stream.close()

    def sort(self, index: int, inserts: tuple[Insert, ...]) -> tuple[RowGroupRef, ...]:
        """Sort new rows by value, for `into_folder`."""
        regrouper = Regrouper(self.compactor, self.columns)
        return regrouper.write_sorted(self._good(inserts), index)

    def copy(self, copies: tuple[tuple[Part, str], ...]) -> list[Part]:
        """Copy parts as they are; return the copies."""
        store = self.compactor.store
        for part, target in copies:
            store.copy(part.path, f"{self.compactor.folder}/{target}")
        return [replace(part, path=target) for part, target in copies]

    def _placed(self, part: Part, schema: pa.Schema) -> Keyed:
        with open_part(self.compactor.store, part.path) as opened:
            metadata = opened.metadata.metadata
        keys = read_keys(metadata, part.num_rows, part.path) if part.num_rows else None
        for rows in self._batches(part, schema):
            assert keys is not None, "there are rows"
            yield rows, keys[: rows.num_rows]
            keys = keys[rows.num_rows :]

    def _batches(self, part: Part, schema: pa.Schema) -> Iterator[pa.Table]:
        store = self.compactor.store
        for batch in read_batches(store, part.path, schema.names, _BATCH_ROWS):
            yield pa.Table.from_batches([batch]).select(schema.names)

    def _good(self, inserts: Sequence[Insert]) -> Keyed:
        for insert, rows in zip(inserts, self._slices(inserts), strict=True):
            keys = insert.keys[rows.is_good]
            yield rows.good.filter(pa.array(keys != NOT_HERE)), keys[keys != NOT_HERE]

    def _failed(self, inserts: Sequence[Insert]) -> Keyed:
        for insert, rows in zip(inserts, self._slices(inserts), strict=True):
            keys = insert.keys[~rows.is_good]
            yield rows.quarantined.filter(pa.array(keys != NOT_HERE)), keys[keys != NOT_HERE]

    def _slices(self, inserts: Sequence[Insert]) -> Iterator[SliceRows]:
        duplicates = {i.sized[0]: i.duplicates for i in inserts if i.duplicates}
        return self.compactor.read(Group(0, tuple(i.sized for i in inserts), duplicates))


def interleave(old: Keyed, new: Keyed) -> Keyed:
    """Merge two streams by key; of equal keys the new row comes first."""
    left, right = Rest(old), Rest(new)
    while left.fill() and right.fill():
        last = min(left.keys[-1], right.keys[-1])
        is_new_last = right.keys[-1] <= left.keys[-1]
        ours = left.cut(int(np.searchsorted(left.keys, last, "left" if is_new_last else "right")))
        theirs = right.cut(int(np.searchsorted(right.keys, last, "right")))
        keys = np.concatenate([theirs[1], ours[1]])
        order = np.argsort(keys, kind="stable")
        yield pa.concat_tables([theirs[0], ours[0]]).take(pa.array(order)), keys[order]
    for rest in (left, right):
        while rest.fill():
            yield rest.cut(len(rest.keys))


class Rest:
    """What is left of a stream."""

    def __init__(self, stream: Keyed) -> None:
        self._stream = stream
        self._rows: pa.Table | None = None
        self.keys: Numbers = np.zeros(0, np.int64)

    def fill(self) -> bool:
        """Have rows at hand; tell whether there are any."""
        while not len(self.keys):
            found = next(self._stream, None)
            if found is None:
                return False
            self._rows, self.keys = found
        return True

    def cut(self, num_rows: int) -> tuple[pa.Table, Numbers]:
        """Take rows from the beginning."""
        assert self._rows is not None, "filled before"
        taken = self._rows.slice(0, num_rows), self.keys[:num_rows]
        self._rows, self.keys = self._rows.slice(num_rows), self.keys[num_rows:]
        return taken


def merge_folders(
    merger: Merger,
    parts: Sequence[Part],
    inserts: Sequence[Insert],
    layout: Layout,
    types: Mapping[str, str],
    run_tasks: RunTasks,
) -> list[Part]:
    """Merge rows into the parts of an output with partition columns, by keys of the input."""
    groups = cut_groups([insert.sized for insert in inserts], SORT_BYTES, {})
    by_key = {insert.sized[0]: insert for insert in inserts}
    found = run_tasks(
        merger.sort, [(g.index, tuple(by_key[key] for key, _, _ in g.slices)) for g in groups]
    )
    pieces: dict[str, list[RowGroupRef]] = defaultdict(list)
    for piece in (piece for some in found for piece in some):
        pieces[piece.folder].append(piece)
    old: dict[str, list[Part]] = defaultdict(list)
    for part in parts:
        if values_of(part.path, types):
            old[layout.inside(part.path).split("/", 1)[1].rpartition("/")[0]].append(part)
    folders = sorted({*old, *pieces})
    touched = [(index, folder) for index, folder in enumerate(folders) if folder in pieces]
    made = run_tasks(
        merger.into_folder, [(index, f, tuple(old[f]), tuple(pieces[f])) for index, f in touched]
    )
    new = dict(zip((folder for _, folder in touched), made, strict=True))
    homes = [part for folder in folders if folder not in new for part in old[folder]]
    copied = _copied(merger, homes, layout, run_tasks)
    whole: list[Part] = []
    for folder in folders:
        whole += new[folder] if folder in new else [next(copied) for _ in old[folder]]
    return whole


def _copied(
    merger: Merger, parts: Sequence[Part], layout: Layout, run_tasks: RunTasks
) -> Iterator[Part]:
    """Copy parts; yield the copies."""
    copies = [
        (part, merger.compactor.part_path(layout.inside(part.path).rpartition("/")[0], index))
        for index, part in enumerate(parts)
    ]
    starts = range(0, len(copies), _COPIES_PER_TASK)
    calls = [(tuple(copies[start : start + _COPIES_PER_TASK]),) for start in starts]
    for some in run_tasks(merger.copy, calls):
        yield from some
