"""Where computed rows and carried predictions lie among all rows of the input.

Work rows are those that are computed, counted over the slices of the work plan. The rank of a row,
computed or carried, says how many rows of the whole input come before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.commit.parts.carried.version import NotReadable, OldRows
from pipeline.commit.parts.compaction import SizedSlice
from pipeline.core.arrays import Numbers
from pipeline.core.errors import InfraError
from pipeline.planning.carried import Carried


@dataclass(frozen=True)
class Ranges:
    """R ranges of consecutive predictions, in the order of the output; each array int64 (R,)."""

    ranks: Numbers
    """Of the first row of each."""
    firsts: Numbers
    """Its number among the predictions of all versions, as `OldRows` counts them."""
    counts: Numbers

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def ends(self) -> Numbers:
        """(R,): rank of the first row after each."""
        return self.ranks + self.counts

    def go_on(self) -> npt.NDArray[np.bool_]:
        """(R - 1,): tell which ranges but the first go on where the one before ends."""
        follows = (self.ranks[1:] == self.ends[:-1]) & (
            self.firsts[1:] == (self.firsts + self.counts)[:-1]
        )
        return np.asarray(follows)

    def take(self, chosen: Numbers | npt.NDArray[np.bool_] | slice) -> Ranges:
        """Return some of them: their indices, or a mask."""
        return Ranges(self.ranks[chosen], self.firsts[chosen], self.counts[chosen])

    def between(self, start: int, end: int) -> Ranges:
        """Return those that begin at ranks of [start, end)."""
        low, high = np.searchsorted(self.ranks, [start, end]).tolist()
        return self.take(slice(low, high))

    def cover(self, ranks: Numbers) -> npt.NDArray[np.bool_]:
        """Tell which ranks, (N,), are in one of them."""
        place = np.searchsorted(self.ranks, ranks, "right")
        return np.asarray(np.append(0, self.ends)[place] > ranks)

    def cut(self, places: Numbers, bounds: Numbers) -> Ranges:
        """Cut ranges in pieces, so that none has a bound inside.

        Args:
            places: (R,): where each begins, in the numbers that the bounds are given in.
            bounds: (B,): in any order.
        """
        bounds = np.unique(bounds)
        lowest = np.searchsorted(bounds, places, "right")
        pieces = np.searchsorted(bounds, places + self.counts, "left") - lowest + 1
        which = np.repeat(np.arange(len(self)), pieces)
        nth = steps(pieces)
        at = np.append(bounds, 0)[lowest[which] + nth - 1]
        skipped = np.where(nth == 0, 0, at - places[which])
        is_last = nth == pieces[which] - 1
        ends = np.where(is_last, self.counts[which], np.append(skipped[1:], 0))
        return Ranges(self.ranks[which] + skipped, self.firsts[which] + skipped, ends - skipped)


def steps(counts: Numbers) -> Numbers:
    """Return 0, 1, ... for each count: the numbers of the rows of one place."""
    starts = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) - np.repeat(starts, counts)


@dataclass(frozen=True)
class Order:
    """Ranks of work rows; K places between these have carried rows."""

    places: Numbers
    """int64 (K,): how many work rows come before the carried rows of a place, ascending."""
    carried: Numbers
    """int64 (K + 1,): how many carried rows come before each place, and after the last."""

    def rank_of(self, work: Numbers) -> Numbers:
        """Return the ranks of work rows, (N,)."""
        return work + self.carried[np.searchsorted(self.places, work, "right")]

    def work_before(self, ranks: Numbers) -> Numbers:
        """Return how many work rows come before ranks, (N,)."""
        firsts, ends = self.places + self.carried[:-1], self.places + self.carried[1:]
        place = np.searchsorted(firsts, ranks, "right")
        inside = np.append(0, ends)[place] - ranks  # of a place that reaches beyond
        return ranks - self.carried[place] + np.maximum(0, inside)

    def between(self, start: int, end: int) -> Order:
        """Return what is needed for the work rows [start, end)."""
        low, high = np.searchsorted(self.places, [start, end], "right").tolist()
        return Order(self.places[low:high], self.carried[low : high + 1])


class Version(Protocol):
    """What is known of a source here."""

    @property
    def num_rows(self) -> int:
        """Predictions of the version."""
        ...


@dataclass(frozen=True)
class Placed:
    """What a plan carries, put into the order of the input."""

    order: Order
    runs: Ranges
    """The runs of the plan, as they are."""
    checked: Ranges
    """Rows of the work whose predictions are known, one by one."""
    checked_work: Numbers
    """(S,): which work rows these are."""


def put_in_order(
    slices: Sequence[SizedSlice], carried: Carried, versions: Sequence[Version]
) -> Placed:
    """Find where the runs of a plan go among the work rows.

    Args:
        slices: Of the work plan, in input order.
        carried: What is carried.

    Raises:
        InfraError: The runs are not in the order of the input.
        NotReadable: A version has not so many predictions.
    """
    units = np.array([key.unit for key, _, _ in slices], np.int64)
    rows_before = np.cumsum([0, *(key.num_rows for key, _, _ in slices)], dtype=np.int64)
    sizes = np.array([version.num_rows for version in versions], np.int64)

    def work_of(unit: Numbers, row: Numbers) -> Numbers:
        places = rows_before[np.searchsorted(units, unit, "left")] + row
        if (np.diff(places) < 0).any() or (places > rows_before[-1]).any():
            raise InfraError("the plan names carried rows out of the order of its input")
        return places

    def number_of(source: Numbers, first: Numbers, count: Numbers) -> Numbers:
        if len(first) and ((first < 0) | (first + count > sizes[source])).any():
            raise NotReadable("the plan names predictions that an earlier version does not have")
        return first + (np.cumsum(sizes) - sizes)[source]

    unit, row, source, first, count = carried.runs.T
    places = work_of(unit, row)
    order = Order(places, np.append(0, np.cumsum(count)))
    runs = Ranges(places + order.carried[:-1], number_of(source, first, count), count)
    unit, row, source, first = carried.checked.T
    checked, ones = work_of(unit, row), np.ones(len(row), np.int64)
    known = Ranges(order.rank_of(checked), number_of(source, first, ones), ones)
    return Placed(order, runs, known, checked)


def bytes_of(ranges: Ranges, old: OldRows) -> npt.NDArray[np.float64]:
    """Return what ranges take that do not reach beyond a part, (R,)."""
    return np.asarray(ranges.counts * old.row_bytes[old.part_of(ranges.firsts)])


def joined(*some: Ranges) -> Ranges:
    """Put ranges together, in order; those that go on where another ends become one.

    How a plan was cut into runs decides nothing.
    """
    ranks, firsts, counts = (
        np.concatenate([getattr(each, name) for each in some])
        for name in ("ranks", "firsts", "counts")
    )
    order = np.argsort(ranks, kind="stable")
    order = order[counts[order] > 0]
    every = Ranges(ranks, firsts, counts).take(order)
    heads = np.flatnonzero(np.append(True, ~every.go_on())[: len(every)])
    sums = np.append(0, np.cumsum(every.counts))[np.append(heads, len(every))]
    return Ranges(every.ranks[heads], every.firsts[heads], np.diff(sums))
