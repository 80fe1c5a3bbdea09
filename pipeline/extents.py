"""The atom of planning: a run of rows of one shard."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.schema import Reason


@dataclass(frozen=True)
class Extent:
    """A run of rows [first_row, first_row + num_rows) of one shard, the atom of planning."""

    path: str
    size_bytes: int
    version: str
    first_row: int
    num_rows: int
    row_bytes: float
    """Mean encoded bytes of a row, for bounding the memory of a slice."""
    reason: Reason | None = None
    """Set when the rows cannot be read; `message` says why."""
    message: str = ""

    @property
    def is_whole_shard(self) -> bool:
        """Tell whether this one row stands for a shard whose row count is unknown."""
        return self.reason in (Reason.UNREADABLE_SHARD, Reason.MISSING)
