"""Extents and units: which rows are read, and the bounds of the slices that they are cut into.

The plan knows the rows of most shards and cuts them into slices itself. Only reading counts the
rows of a tar or of lines, so the plan of such a unit holds an `UncountedPlan`, which the reader
follows. A shard must be read as it was planned: with the same size and version.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import Numbers
from pipeline.core.errors import AccessDenied, InfraError
from pipeline.core.failures import Reason
from pipeline.core.ranges import Ranges
from pipeline.core.slices import SliceKey
from pipeline.storage.store import Store

MAX_SLICE_BYTES = 256 * 1024 * 1024
"""Usual bytes of a slice: one that turns out to have more is cut while it is read."""


@dataclass(frozen=True, slots=True)
class Extent:
    """The rows [first_row, first_row + num_rows) of one shard."""

    path: str
    size_bytes: int
    version: str
    first_row: int
    num_rows: int
    """0 for a tar, whose rows only reading counts (`UncountedPlan`)."""
    row_bytes: float
    """Mean encoded bytes per row; bounds the memory of a slice."""
    reason: Reason | None = None
    """Why the rows cannot be read, explained by `message`; None if they can."""
    message: str = ""
    only: Ranges | None = None
    """If set, the only rows of the extent; `first_row` is the first of them."""
    given: tuple[str | None, ...] = ()
    """Values of the shard's columns that its table knows, as text: see `TableFile`. Of lines, a
    digest of the rows that `source.where` cannot judge; none if it can judge all."""
    ctime_ns: int = field(default=0, compare=False)
    """The ctime of a local shard when this run listed it; 0: unknown. It is not compared. It enters
    the name of a stored plan, and is not read back."""

    def numbers(self, skip: int = 0) -> Sequence[int]:
        """Return the row numbers in the shard, ascending, without the first `skip` of them."""
        if self.only is not None:
            return self.only[skip:]
        return range(self.first_row + skip, self.first_row + self.num_rows)

    def piece(self, skip: int, num_rows: int) -> Extent:
        """Return the extent of `num_rows` of these rows, from the `skip`-th on."""
        if self.only is None:
            return replace(self, first_row=self.first_row + skip, num_rows=num_rows)
        return self.choose(self.only[skip : skip + num_rows])

    def choose(self, only: Sequence[int]) -> Extent:
        """Return the extent of some rows of the shard.

        Args:
            only: Their numbers in the shard, ascending; at least one.
        """
        return replace(self, first_row=only[0], num_rows=len(only), only=Ranges.of(only))

    def positions(self, numbers: Numbers) -> tuple[npt.NDArray[np.bool_], Numbers]:
        """Find rows of the shard, given by number, (N,), among these rows.

        Returns:
            Which are among them, bool (N,), and for these their positions, int64.
        """
        bounds = (self.first_row, self.end_row) if self.only is None else self.only.bounds
        runs, starts = np.searchsorted(bounds, numbers, "right"), np.array(bounds[::2])
        is_here = runs % 2 == 1
        run = runs[is_here] // 2
        before = np.cumsum([0, *(np.array(bounds[1::2]) - starts)])
        return is_here, before[run] + numbers[is_here] - starts[run]

    @property
    def end_row(self) -> int:
        """The number in the shard after the last of these rows."""
        return self.first_row + self.num_rows if self.only is None else self.only[-1] + 1

    @property
    def exact_version(self) -> str:
        """The version and, if known, the ctime, as `Store.read_many` takes them."""
        return f"{self.version}/{self.ctime_ns}" if self.ctime_ns else self.version

    @property
    def is_whole_shard(self) -> bool:
        """Tell whether this is one row in place of a shard whose rows cannot be counted."""
        return self.reason in (Reason.UNREADABLE_SHARD, Reason.MISSING)


@dataclass(frozen=True)
class RowFilter:
    """The rows of an uncounted unit that are read; all of them by default.

    Chosen rows are counted as if the unit had no others.
    """

    only: tuple[int, ...] | None = None
    """The rows, ascending; None: all."""

    def number(self, row: int) -> int | None:
        """Return the number of chosen rows before this one; None if it is not chosen itself."""
        if self.only is None:
            return row
        index = bisect_left(self.only, row)
        return index if self.only[index : index + 1] == (row,) else None

    def is_past(self, row: int) -> bool:
        """Tell whether neither this row nor a later one is chosen."""
        return self.only is not None and (not self.only or row > self.only[-1])


ALL_ROWS = RowFilter()


@dataclass(frozen=True)
class UncountedPlan:
    """The rules by which the reader cuts an uncounted unit into slices.

    The same rows are always cut at the same places: the end of a slice depends only on its own
    rows, not on what was skipped before it.
    """

    slice_rows: int
    """Maximum rows of a slice."""
    slice_bytes: int
    """A slice ends before the row that would exceed this many bytes."""
    max_rows: int | None = None
    """The unit ends after this many rows (`run.limit_rows`)."""
    done: tuple[SliceKey, ...] = ()
    """Staged slices, in order, which the reader skips; empty in a plan."""
    rows: RowFilter = ALL_ROWS
    """The rows that are cut."""

    def needs(self, row: int) -> bool:
        """Tell whether a row of the unit is chosen and lies in no staged slice."""
        number = self.rows.number(row)
        if number is None:
            return False
        index = bisect_right(self.done, number, key=lambda key: key.start) - 1
        return index < 0 or number >= self.done[index].end

    def read_until(self) -> int | None:
        """Return the row from which on every slice is staged; None if the end is not staged."""
        if not self.done or not self.done[-1].is_last:
            return None
        until = self.done[-1].end
        for key in reversed(self.done):
            if key.end != until:
                break
            until = key.start
        return until


@dataclass(frozen=True)
class Unit:
    """Extents that one call of a reader reads, in order, cut into slices at `bounds`."""

    index: int
    extents: tuple[Extent, ...]
    bounds: tuple[int, ...]
    """0 = bounds[0] < ... < bounds[-1] = rows of the unit; slice i is [bounds[i], bounds[i+1])."""
    cut: UncountedPlan | None = None
    """Set if only reading counts the rows, in which case `bounds` is empty."""

    @property
    def num_rows(self) -> int | None:
        """Return the rows of the unit; None if only reading counts them."""
        return self.bounds[-1] if self.cut is None else None

    def place_of(self, row: int) -> tuple[str | None, int | None]:
        """Return the path of a row's shard and the row's number there; None where unknown.

        A row in place of a whole shard has no number.
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
    """Set the ctimes of local shards, by path; other units stay as they are."""
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
    """Return a unit with some rows of a counted unit, as one slice.

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


def require_unchanged(store: Store, extent: Extent) -> None:
    """Check that a shard has the planned size and version.

    Raises:
        FileNotFoundError: The shard no longer exists.
        InfraError: Its size or version differs, or the ctime of a local file, which reveals new
            content even if size and mtime were put back. After a chmod a new run goes on.
    """
    file = store.stat(extent.path)
    if file is None:
        raise FileNotFoundError(extent.path)
    if (file.size_bytes, file.version) != (extent.size_bytes, extent.version):
        raise changed(store, extent)
    if extent.ctime_ns not in (0, file.ctime_ns):
        raise changed(store, extent)


def require_as_planned(store: Store, extent: Extent) -> None:
    """Check that a shard is there as it was planned; one to which access is denied may be.

    Raises:
        InfraError: It is not.
    """
    try:
        require_unchanged(store, extent)
    except FileNotFoundError:
        raise changed(store, extent) from None
    except AccessDenied:
        pass  # its rows get that reason when they are read


def changed(store: Store, extent: Extent) -> InfraError:
    """Return the error of a shard that changed since it was planned."""
    return InfraError(
        f"{store.url(extent.path)}: changed since it was planned; run again to plan it anew"
    )
