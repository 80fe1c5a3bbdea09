"""Slices: their keys and pieces, and a slice as ONE row of a block of Ray.

Ray cuts and merges blocks between rows, so a slice that is a row stays whole. Wrapping copies
nothing: the rows of the slice are the single value of a list<struct> column; so are those
that are set aside (core/rows_set_aside.py), where jobs set rows aside.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from pipeline.core.arrays import as_array


@dataclass(frozen=True)
class SliceKey:
    """The rows [start, end) of a unit."""

    unit: int
    start: int
    end: int
    is_last: bool

    @property
    def num_rows(self) -> int:
        """Number of rows of the slice."""
        return self.end - self.start

    def halves(self) -> tuple[SliceKey, SliceKey]:
        """Return the two pieces of a slice that is too large for memory.

        Pieces are halves, halves of halves, and so on. Two attempts may cut a slice differently,
        but of two pieces that overlap one contains the other.
        """
        middle = (self.start + self.end + 1) // 2
        first = SliceKey(self.unit, self.start, middle, is_last=False)
        return first, SliceKey(self.unit, middle, self.end, self.is_last)

    def pieces_from(self, row: int) -> list[SliceKey]:
        """Return all pieces of the slice that begin with a row, the largest first."""
        piece, pieces = self, list[SliceKey]()
        while True:
            if piece.start == row:
                pieces.append(piece)
            if piece.num_rows == 1:
                return pieces
            first, second = piece.halves()
            piece = first if row < second.start else second


class Packed(NamedTuple):
    """A slice in transit."""

    key: SliceKey
    counters: dict[str, dict[str, float]]
    rows: pa.Table
    aside: pa.Table | None = None
    """As `core.rows_set_aside` says; None where no rows are set aside."""


def pack(
    key: SliceKey,
    counters: dict[str, dict[str, float]],
    rows: pa.Table,
    aside: pa.Table | None = None,
) -> pa.Table:
    """Wrap a slice as one row: unit, start, end, is_last, counters (JSON), rows, perhaps aside."""
    block = pa.table(
        {
            "unit": pa.array([key.unit], pa.int64()),
            "start": pa.array([key.start], pa.int64()),
            "end": pa.array([key.end], pa.int64()),
            "is_last": pa.array([key.is_last], pa.bool_()),
            "counters": pa.array([json.dumps(counters)], pa.string()),
            "rows": _wrapped(rows),
        }
    )
    return block if aside is None else block.append_column("aside", _wrapped(aside))


def unpack(block: pa.Table) -> list[Packed]:
    """Undo `pack` for every row of a block; slices come back in order, rows without a copy."""
    slices = []
    for batch in block.to_batches():
        aside = batch.column("aside") if "aside" in batch.schema.names else None
        fields = ("unit", "start", "end", "is_last", "counters")
        for index, values in enumerate(batch.select(fields).to_pylist()):
            counters = json.loads(values.pop("counters"))
            rows = _unwrapped(batch.column("rows"), index)
            beside = None if aside is None else _unwrapped(aside, index)
            slices.append(Packed(SliceKey(**values), counters, rows, beside))
    return slices


def _wrapped(rows: pa.Table) -> pa.ListArray:
    columns = [as_array(column) for column in rows.columns]
    struct = pa.StructArray.from_arrays(columns, fields=[*rows.schema])
    return pa.ListArray.from_arrays(pa.array([0, len(struct)], pa.int32()), struct)


def _unwrapped(lists: pa.ListArray, index: int) -> pa.Table:
    start, end = lists.offsets[index].as_py(), lists.offsets[index + 1].as_py()
    struct = lists.values.slice(start, end - start)
    return pa.Table.from_batches([pa.RecordBatch.from_struct_array(struct)])
