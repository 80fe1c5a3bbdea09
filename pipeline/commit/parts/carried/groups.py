"""Cut what a run computes and takes over into groups, of which each task makes one.

The rows of the whole input are tiled by pieces: old parts that are copied, and what lies between
them, evenly cut where that is much. A group is some pieces that follow each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pipeline.commit.parts.carried.copies import Whole, Work
from pipeline.commit.parts.carried.order import Order, Ranges, bytes_of
from pipeline.commit.parts.carried.version import OldPart, OldRows
from pipeline.commit.parts.compaction import PARTS_PER_GROUP, DuplicateRows, SizedSlice
from pipeline.core.arrays import Numbers

_COPIES_PER_PART = 8
"""As many take as long as to write one part."""


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of the input that become parts of their own: [start, end) by rank."""

    start: int
    end: int
    num_bytes: float
    copied: OldPart | None = None
    """The part that they are, besides rows that failed."""


@dataclass(frozen=True)
class CarriedGroup:
    """Pieces that one task makes; arrays have what belongs to its rows."""

    index: int
    pieces: tuple[Piece, ...]
    slices: tuple[SizedSlice, ...]
    duplicates: DuplicateRows
    num_before: int
    """Work rows before the first slice."""
    order: Order
    old: OldRows
    written: Ranges
    """Predictions that are taken over, besides those in parts that are copied."""
    copied: Ranges
    gone: Ranges
    """Predictions of rows whose id an earlier row has."""
    unit_starts: Numbers | None
    """int64: rank of the first row of each unit; None: nothing is written to the quarantine."""
    first_unit: int
    is_last: bool


def cut_carried(
    target_bytes: float,
    work: Work,
    order: Order,
    old: OldRows,
    taken: Ranges,
    copies: Sequence[Whole],
    gone: Ranges,
    unit_rows: Numbers | None,
    *,
    by_content: bool,
) -> list[CarriedGroup]:
    """Cut groups of a few parts.

    Args:
        target_bytes: Of a part.
        work: What is computed.
        order: Where it goes.
        old: All predictions of the earlier versions.
        taken: Those that are taken over; none reaches beyond a part.
        copies: Which of these are copied.
        gone: Predictions that go into quarantine.
        unit_rows: As of `compact_carried`.
        by_content: Rows of the work may have any prediction of the earlier versions.
    """
    is_copied = np.zeros(len(taken), bool)
    for copy in copies:
        is_copied[copy.start : copy.end] = True
    written, copied = taken.take(~is_copied), taken.take(is_copied)
    pieces = list(_pieces(target_bytes, work, order, old, taken, copies, written))
    written = written.cut(written.ranks, np.array([piece.start for piece in pieces], np.int64))
    starts = None if unit_rows is None else np.cumsum(unit_rows) - unit_rows
    chunks = list(_packed(pieces, PARTS_PER_GROUP * target_bytes))
    groups = []
    for index, chunk in enumerate(chunks):
        start, end = chunk[0].start, chunk[-1].end
        first, last = order.work_before(np.array([start, end])).tolist()
        low = int(np.searchsorted(work.starts, first, "right")) - 1
        high = int(np.searchsorted(work.starts, last)) if last > first else low
        units = slice(0, 0)
        if starts is not None:
            units = slice(
                int(np.searchsorted(starts, start, "right")) - 1, int(np.searchsorted(starts, end))
            )
        own, lost = written.between(start, end), gone.between(start, end)
        needed = old if by_content else old.only(np.append(own.firsts, lost.firsts))
        groups.append(
            CarriedGroup(
                index,
                chunk,
                tuple(work.slices[low:high]),
                {
                    k: work.duplicates[k]
                    for k, _, _ in work.slices[low:high]
                    if k in work.duplicates
                },
                int(work.starts[low]),
                order.between(int(work.starts[low]), int(work.starts[high])),
                needed,
                own,
                copied.between(start, end),
                lost,
                None if starts is None else starts[units],
                units.start,
                is_last=index == len(chunks) - 1,
            )
        )
    return groups


def _pieces(
    target_bytes: float,
    work: Work,
    order: Order,
    old: OldRows,
    taken: Ranges,
    copies: Sequence[Whole],
    written: Ranges,
) -> Iterator[Piece]:
    """Yield pieces that tile all rows, none much larger than what a task makes."""
    marks = np.unique(np.append(order.rank_of(work.starts[:-1]), written.ranks))
    sums = np.append(0.0, np.cumsum(bytes_of(written, old)))
    knots = np.stack([written.ranks, written.ends], axis=1).reshape(-1)

    def bytes_before(ranks: Numbers) -> npt.NDArray[np.float64]:
        computed = work.bytes_of(order.work_before(ranks))
        taken_over = np.interp(ranks, knots, np.repeat(sums, 2)[1:-1]) if len(written) else 0.0
        return np.asarray(computed + taken_over)

    def cut(start: int, end: int) -> Iterator[Piece]:
        """Cut [start, end) evenly, wherever that is."""
        inside = marks[np.searchsorted(marks, start, "right") : np.searchsorted(marks, end)]
        ranks = np.concatenate([[start], inside, [end]])
        at = bytes_before(ranks)
        num_pieces = max(1, round((at[-1] - at[0]) / (PARTS_PER_GROUP * target_bytes)))
        wanted = np.interp(np.linspace(at[0], at[-1], num_pieces + 1), at, ranks)
        bounds = np.unique([start, *wanted[1:-1].astype(np.int64), end])
        sizes = np.diff(bytes_before(bounds))
        for bound, size in zip(pairwise(bounds.tolist()), sizes.tolist(), strict=True):
            yield Piece(*bound, size)

    start = 0
    for copy in copies:
        first, end = int(taken.ranks[copy.start]), int(taken.ends[copy.end - 1])
        yield from cut(start, first)
        yield Piece(first, end, target_bytes / _COPIES_PER_PART, copy.part)
        start = end
    yield from cut(start, int(work.starts[-1] + order.carried[-1]))


def _packed(pieces: Sequence[Piece], most_bytes: float) -> Iterator[tuple[Piece, ...]]:
    """Put pieces that follow each other together; none is divided."""
    pending: list[Piece] = []
    for piece in pieces:
        held = sum(each.num_bytes for each in pending)
        if pending and held + piece.num_bytes > most_bytes:
            yield tuple(pending)
            pending = []
        pending.append(piece)
    if pending:
        yield tuple(pending)
