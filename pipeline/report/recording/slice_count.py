"""How many rows and slices are done, and how many there are in all, as far as that is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from pipeline.core.printable import num_of
from pipeline.core.slices import SliceKey

Origin = Literal["computed", "resumed"]
"""Committed by this run, or by an earlier one."""


class SliceCount:
    """Rows and slices of a plan by origin; the totals are None until they are known."""

    def __init__(self) -> None:
        self.rows: Counter[Origin] = Counter()
        self.total_rows: int | None = None
        self._slices: Counter[Origin] = Counter()
        self._total_slices: int | None = None
        self.is_begun = False
        """What is staged already has been counted, so that the rest is what is left."""

    def planned(self, num_rows: int | None, slices: Iterable[SliceKey]) -> None:
        """Note the rows of a plan; None: they are counted by reading only."""
        self.total_rows = num_rows
        if num_rows is not None:
            self._total_slices = sum(1 for _ in slices)

    def tiled(self, slices: Iterable[SliceKey]) -> None:
        """Note the slices that a plan has come to."""
        keys = list(slices)
        self.is_begun = True
        self.total_rows = sum(key.num_rows for key in keys)
        self._total_slices = len(keys)

    def add(self, origin: Origin, num_rows: int) -> None:
        """Count a committed slice."""
        self.rows[origin] += num_rows
        self._slices[origin] += 1

    @property
    def num_done(self) -> int:
        """Rows of all committed slices, of this run and of earlier ones."""
        return self.rows["computed"] + self.rows["resumed"]

    def left_to_do(self) -> str:
        """Describe in a few words what is done and what is left."""
        if not self.is_begun:
            return "nothing was computed yet"
        done, slices = self.num_done, self._slices.total()
        total = self._most_slices()
        if self.total_rows is None or total is None:
            verb = "is" if done == 1 else "are"
            return (
                f"{num_of(done, 'row')} in {num_of(slices, 'slice')} {verb} done, the number of "
                "remaining rows is unknown"
            )
        if slices == total:
            return f"all {done} rows are computed, but not published"
        return (
            f"{done:,} of {self.total_rows:,} rows are done, "
            f"{num_of(self.total_rows - done, 'row')} in {num_of(total - slices, 'slice')} to go"
        )

    def _most_slices(self) -> int | None:
        """Return how many slices there are in all; more than planned if some came in pieces."""
        if self._total_slices is None:
            return None
        are_left = self.total_rows is not None and self.num_done < self.total_rows
        return max(self._total_slices, self._slices.total() + are_left)

    def rows_section(self, num_kept: int) -> dict[str, int]:
        """Return the fields of `report.Rows` that are known; kept rows count as resumed."""
        rows = {
            "computed": self.rows["computed"],
            "resumed": self.rows["resumed"] + num_kept,
        }
        if self.total_rows is not None:
            rows["total"] = self.total_rows + num_kept
            if self.is_begun and self._total_slices is not None:
                rows["left"] = self.total_rows - self.num_done
        return rows

    def slices_section(self) -> dict[str, int]:
        """Return the fields of `report.Slices` that are known."""
        computed, resumed = self._slices["computed"], self._slices["resumed"]
        slices = {"computed": computed, "resumed": resumed}
        if (total := self._most_slices()) is not None:
            slices["total"] = total
            if self.is_begun and self.total_rows is not None:
                slices["left"] = total - computed - resumed
        return slices
