"""Rows that were found by their content: their predictions are those of an earlier version.

They are staged with the columns of the new input, and where their prediction is; its columns are
null. A row that was found and computed all the same, to be compared, has its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.commit.parts.carried.version import CarriedVersion, NotReadable, OldReader, OldRows
from pipeline.commit.parts.compaction import SliceRows
from pipeline.core.arrays import Numbers
from pipeline.core.schema import CARRIED_ROW, CARRIED_SOURCE

UNKNOWN = -1
"""Instead of the number of a prediction: the row has its own."""
_USUAL_BYTES = 1024.0
"""Of a prediction in memory; files hold small ones in far less, large ones in about the same."""
_HELD_BYTES = 64 * 2**20
"""Of predictions that are read together, each row group of theirs once."""


@dataclass(frozen=True)
class LookedUp:
    """Fills in the predictions of such rows; plain enough for Ray."""

    firsts: Numbers
    """int64 (S,): how many predictions come before each source, as `OldRows` counts them."""
    sizes: Numbers
    """int64 (S,): how many each has."""
    schema: pa.Schema
    """Of the predictions."""
    own: tuple[str, ...]
    """The columns of the new input."""
    row_bytes: float
    """What a prediction takes in memory, about."""

    @classmethod
    def of(
        cls, versions: Sequence[CarriedVersion], schema: pa.Schema, own: Sequence[str]
    ) -> LookedUp:
        """Return what fills in predictions of some versions."""
        sizes = np.array([version.num_rows for version in versions], np.int64)
        row_bytes = OldRows.of(versions).row_bytes.max(initial=_USUAL_BYTES)
        return cls(np.cumsum(sizes) - sizes, sizes, schema, tuple(own), float(row_bytes))

    @property
    def taken(self) -> pa.Schema:
        """The columns that are taken from earlier versions."""
        return pa.schema([field for field in self.schema if field.name not in self.own])

    def numbers_of(self, good: pa.Table, known: pa.Table | None) -> Numbers:
        """Return the number of the prediction that each row takes over, or UNKNOWN.

        Args:
            good: (N,) rows without an error; other columns than those of predictions do not matter.
            known: (N,): as `SliceRows.known`.

        Raises:
            NotReadable: A version has not so many predictions.
        """
        numbers = np.full(good.num_rows, UNKNOWN, np.int64)
        if known is None:
            return numbers
        is_found = np.asarray(known.column(CARRIED_ROW).is_valid())
        for name in self.taken.names:
            is_found &= np.asarray(good.column(name).is_null())
        source = np.asarray(known.column(CARRIED_SOURCE).filter(pa.array(is_found)), np.int64)
        row = np.asarray(known.column(CARRIED_ROW).filter(pa.array(is_found)), np.int64)
        if (source >= len(self.sizes)).any() or (row >= self.sizes[source]).any():
            raise NotReadable("rows are staged with predictions that no earlier version has")
        numbers[is_found] = self.firsts[source] + row
        return numbers

    def fill(self, slices: Iterator[SliceRows], reader: OldReader) -> Iterator[SliceRows]:
        """Yield slices with the predictions of all rows; `reader` reads the columns `taken`.

        Raises:
            NotReadable: A part is gone, or damaged.
        """
        held: list[tuple[SliceRows, Numbers]] = []
        held_bytes = 0.0
        for rows in slices:
            numbers = self.numbers_of(rows.good, rows.known)
            num_found = int((numbers != UNKNOWN).sum())
            held.append((rows, numbers))
            held_bytes += rows.good.nbytes + num_found * self.row_bytes
            if held_bytes >= _HELD_BYTES or (not num_found and len(held) == 1):
                yield from self._filled(held, reader)
                held, held_bytes = [], 0.0
        yield from self._filled(held, reader)

    def _filled(
        self, held: Sequence[tuple[SliceRows, Numbers]], reader: OldReader
    ) -> Iterator[SliceRows]:
        every = np.concatenate([np.zeros(0, np.int64), *(numbers for _, numbers in held)])
        wanted = np.unique(every[every != UNKNOWN])
        found = reader.at(wanted)
        for rows, numbers in held:
            is_found = numbers != UNKNOWN
            if not is_found.any():
                yield rows
                continue
            places = np.searchsorted(wanted, numbers[is_found])
            first = int(places.min())
            near = found.slice(first, int(places.max()) - first + 1)
            index = np.arange(len(numbers))
            index[is_found] = places - first + len(numbers)
            computed = rows.good.select(self.taken.names).cast(self.taken)
            taken = pa.concat_tables([computed, near]).take(pa.array(index))
            columns = [
                (rows.good if name in self.own else taken).column(name)
                for name in self.schema.names
            ]
            yield replace(rows, good=pa.table(columns, schema=self.schema))
