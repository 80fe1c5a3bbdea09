"""The atom of planning: a run of rows of one shard; and how rows are cut that nobody counted."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.core.failures import Reason
from pipeline.core.slices import SliceKey


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of rows [first_row, first_row + num_rows) of one shard, the atom of planning."""

    path: str
    size_bytes: int
    version: str
    first_row: int
    num_rows: int
    """0 in a tar, whose rows are known only when it has been read: see `Cut`."""
    row_bytes: float
    """Mean encoded bytes of a row, for bounding the memory of a slice."""
    reason: Reason | None = None
    """Set when the rows cannot be read; `message` says why."""
    message: str = ""
    only: tuple[int, ...] | None = None
    """Of these rows of the shard alone, ascending; `first_row` is the first of them then."""

    def numbers(self, skip: int = 0) -> Sequence[int]:
        """Return the numbers in the shard of the rows from `skip` on."""
        if self.only is not None:
            return self.only[skip:]
        return range(self.first_row + skip, self.first_row + self.num_rows)

    def piece(self, skip: int, num_rows: int) -> Extent:
        """Return the extent of some of the rows."""
        if self.only is None:
            return replace(self, first_row=self.first_row + skip, num_rows=num_rows)
        return replace(self, num_rows=num_rows).choose(self.only[skip : skip + num_rows])

    def choose(self, only: Sequence[int]) -> Extent:
        """Return the extent of these rows of the shard, ascending."""
        return replace(self, first_row=only[0], num_rows=len(only), only=tuple(only))

    @property
    def is_whole_shard(self) -> bool:
        """Tell whether this one row stands for a shard whose row count is unknown."""
        return self.reason in (Reason.UNREADABLE_SHARD, Reason.MISSING)


@dataclass(frozen=True)
class Cut:
    """How to cut the rows of a unit into slices while it is read, as nobody knows them before.

    The same rows are always cut at the same places: a slice depends only on the rows from its
    first one on, whatever was passed over before.
    """

    slice_rows: int
    slice_bytes: int
    """A slice ends before the row that would take it beyond so many bytes."""
    max_rows: int | None = None
    """Rows of the unit after so many are left out."""
    done: tuple[SliceKey, ...] = ()
    """Staged slices, in order, for a reader to pass over; those of a plan are never listed here."""
    only: tuple[int, ...] | None = None
    """Of these rows alone, ascending, and of those from `beyond` on: they are counted then as if
    there were no others."""
    beyond: int | None = None

    def number(self, row: int) -> int | None:
        """Return how many rows before this one belong to the unit; None if it does not itself."""
        if self.only is None:
            return row
        if self.beyond is not None and row >= self.beyond:
            return len(self.only) + row - self.beyond
        index = bisect_left(self.only, row)
        return index if self.only[index : index + 1] == (row,) else None

    def is_past(self, row: int) -> bool:
        """Tell whether neither this row nor one that follows belongs to the unit."""
        if self.only is None or self.beyond is not None:
            return False
        return not self.only or row > self.only[-1]

    def read_until(self) -> int | None:
        """Return the row from which on all is done; None where nobody knows the end yet."""
        if not self.done or not self.done[-1].is_last:
            return None
        until = self.done[-1].end
        for key in reversed(self.done):
            if key.end != until:
                break
            until = key.start
        return until
