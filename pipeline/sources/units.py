"""What one read task reads: extents of shards, and where its slices begin and end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.core.slices import SliceKey
from pipeline.sources.extents import Cut, Extent


@dataclass(frozen=True)
class Unit:
    """What one read task reads: extents in order, cut into slices at `bounds`."""

    index: int
    extents: tuple[Extent, ...]
    bounds: tuple[int, ...]
    """0 = bounds[0] < ... < bounds[-1] = rows of the unit; slice i is [bounds[i], bounds[i+1])."""
    cut: Cut | None = None
    """Set where nobody knows the rows before they are read; there are no bounds then."""

    @property
    def num_rows(self) -> int | None:
        """Return the rows of the unit; None where they are known only when it has been read."""
        return self.bounds[-1] if self.cut is None else None

    def slices(self) -> list[SliceKey]:
        """Return the slices in order.

        Raises:
            ValueError: They are known only when the unit has been read.
        """
        if self.cut is not None:
            raise ValueError(f"unit {self.index}: its slices are known when it has been read")
        last = len(self.bounds) - 2
        return [
            SliceKey(self.index, self.bounds[i], self.bounds[i + 1], is_last=i == last)
            for i in range(last + 1)
        ]


def only_rows(unit: Unit, rows: Sequence[int]) -> Unit:
    """Return a unit of these rows of a unit alone, ascending, as one slice."""
    extents: list[Extent] = []
    first = 0
    for extent in unit.extents:
        numbers = extent.numbers()
        chosen = [numbers[row - first] for row in rows if first <= row < first + extent.num_rows]
        if chosen:
            extents.append(extent.choose(chosen))
        first += extent.num_rows
    return Unit(unit.index, tuple(extents), (0, len(rows)))
