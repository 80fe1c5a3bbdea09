"""The atom of planning: a run of rows of one shard; and how rows are cut that nobody counted."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.schema import Reason, SliceKey


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
