"""Units: the extents that one call of a reader reads, and the bounds of its slices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.core.slices import SliceKey
from pipeline.sources.extents import Extent, UncountedPlan


@dataclass(frozen=True)
class Unit:
    """Extents that one call of a reader reads, in order, cut into slices at `bounds`."""

    index: int
    extents: tuple[Extent, ...]
    bounds: tuple[int, ...]
    """0 = bounds[0] < ... < bounds[-1] = rows of the unit; slice i is [bounds[i], bounds[i+1])."""
    cut: UncountedPlan | None = None
    """Set if only reading counts the rows; `bounds` is empty then."""

    @property
    def num_rows(self) -> int | None:
        """Return the rows of the unit; None if only reading counts them."""
        return self.bounds[-1] if self.cut is None else None

    def place_of(self, row: int) -> tuple[str | None, int | None]:
        """Return the path of the shard of a row, and its number there; None where unknown.

        A row that stands for a whole shard has no number.
        """
        if self.cut is not None:
            one = len(self.extents) == 1
            return (self.extents[0].path, row) if one else (None, None)
        for extent in self.extents:
            if row < extent.num_rows:
                number = None if extent.is_whole_shard else extent.numbers()[row]
                return extent.path, number
            row -= extent.num_rows
        return None, None

    def slices(self) -> list[SliceKey]:
        """Return the slices in order.

        Raises:
            ValueError: Only reading counts the rows of this unit.
        """
        if self.cut is not None:
            raise ValueError(f"unit {self.index}: its slices are known when it has been read")
        last = len(self.bounds) - 2
        return [
            SliceKey(self.index, self.bounds[i], self.bounds[i + 1], is_last=i == last)
            for i in range(last + 1)
        ]


def with_ctimes(units: Iterable[Unit], ctimes_ns: Mapping[str, int]) -> tuple[Unit, ...]:
    """Note when local shards were changed, by path; all other units stay as they are."""
    if not any(ctimes_ns.values()):
        return tuple(units)
    return tuple(
        replace(
            unit,
            extents=tuple(
                replace(extent, ctime_ns=ctimes_ns.get(extent.path, 0)) for extent in unit.extents
            ),
        )
        for unit in units
    )


def only_rows(unit: Unit, rows: Sequence[int]) -> Unit:
    """Return a unit that has only some rows of a counted unit, as one slice.

    Args:
        unit: The unit; keeps its index.
        rows: Row numbers in the unit, ascending.
    """
    extents: list[Extent] = []
    first = 0
    for extent in unit.extents:
        numbers = extent.numbers()
        chosen = [numbers[row - first] for row in rows if first <= row < first + extent.num_rows]
        if chosen:
            extents.append(extent.choose(chosen))
        first += extent.num_rows
    return Unit(unit.index, tuple(extents), (0, len(rows)))
