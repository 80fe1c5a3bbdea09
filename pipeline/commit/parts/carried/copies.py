"""Which old parts are copied as they are.

A part is copied if all its predictions are carried in order, and none comes between them. Rows
between them that failed do not matter: they go into the quarantine. What lies between copied parts
is written anew; where that is little, the smaller of the two is written with it, so that small
parts do not pile up from run to run. Only the last part may be small, as that of any output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline.commit.parts.carried.order import Order, Ranges, bytes_of
from pipeline.commit.parts.carried.version import OldPart, OldRows, Traffic, open_old
from pipeline.commit.parts.compaction import Compactor, DuplicateRows, RunTasks, SizedSlice
from pipeline.commit.parts.part_reader import read_columns
from pipeline.core.arrays import Numbers
from pipeline.core.schema import ERROR
from pipeline.storage.store import Store

_SMALLEST, _LARGEST = 0.5, 2.0
"""Shares of the target size: parts beyond are written anew, the former with their neighbours."""
_PER_TASK = 16


@dataclass(frozen=True)
class Whole:
    """A part all of whose predictions are carried in order: the ranges [start, end)."""

    start: int
    end: int
    part: OldPart

    @property
    def size_bytes(self) -> int:
        return self.part.part.size_bytes


@dataclass(frozen=True)
class Work:
    """The staged slices of a plan, in input order."""

    slices: Sequence[SizedSlice]
    duplicates: DuplicateRows
    """Rows that fail because of their ids."""
    starts: Numbers
    """int64 (N + 1,): work rows before each slice, and in all."""
    bytes_before: npt.NDArray[np.float64]
    """(N + 1,): what the rows before each slice will take, and all."""

    def bytes_of(self, rows: Numbers) -> npt.NDArray[np.float64]:
        """Return what the rows before each of these will take, (M,)."""
        return np.interp(rows, self.starts, self.bytes_before)


class FailedRows:
    """Work rows without a prediction, of the slices that were looked at."""

    def __init__(self, store: Store, work: Work, run_tasks: RunTasks) -> None:
        self._store, self._work, self._run_tasks = store, work, run_tasks
        self._is_known = np.zeros(len(work.slices), bool)
        self.rows: Numbers = np.zeros(0, np.int64)
        """Ascending."""

    def look(self, firsts: Numbers, ends: Numbers) -> None:
        """Look at all slices that have some of the work rows [first, end), (M,) of both."""
        marks = np.zeros(len(self._is_known) + 1, np.int64)
        np.add.at(marks, np.searchsorted(self._work.starts, firsts, "right") - 1, 1)
        np.add.at(marks, np.searchsorted(self._work.starts, ends, "left"), -1)
        chosen = np.flatnonzero((np.cumsum(marks)[:-1] > 0) & ~self._is_known)
        self._is_known[chosen] = True
        calls = []
        for start in range(0, len(chosen), _PER_TASK):
            some = [self._work.slices[index] for index in chosen[start : start + _PER_TASK]]
            repeated = self._work.duplicates
            calls.append((self._store, [(path, repeated.get(key, ())) for key, path, _ in some]))
        found = [rows for rows_of in self._run_tasks(read_failed, calls) for rows in rows_of]
        moved = [rows + self._work.starts[i] for i, rows in zip(chosen, found, strict=True)]
        self.rows = np.sort(np.concatenate([self.rows, *moved]))

    def count(self, firsts: Numbers, ends: Numbers) -> Numbers:
        """Count them among the work rows [first, end), (M,) of both."""
        return np.searchsorted(self.rows, ends) - np.searchsorted(self.rows, firsts)


def read_failed(store: Store, slices: Sequence[tuple[str, Sequence[int]]]) -> list[Numbers]:
    """Return of staged slices which of their rows failed; beside each path are its duplicates."""
    found = []
    for path, duplicates in slices:
        has_failed = np.asarray(read_columns(store, path, [ERROR]).column(ERROR).is_valid())
        found.append(np.union1d(np.flatnonzero(has_failed), np.array(duplicates, np.int64)))
    return found


def choose_copies(
    compactor: Compactor,
    work: Work,
    failed: FailedRows,
    order: Order,
    old: OldRows,
    ranges: Ranges,
    run_tasks: RunTasks,
) -> tuple[list[Whole], Traffic]:
    """Choose parts, in the order of the output.

    Args:
        work: What is computed.
        failed: Tells which of it has no prediction.
        order: Where the work goes.
        old: All predictions of the earlier versions.
        ranges: What is carried; none reaches beyond a part.
        run_tasks: Calls a function for every tuple of arguments; results in the order of calls.

    Raises:
        NotReadable: A part is gone, or damaged.
    """
    whole = _whole_parts(ranges, old)
    if not whole:
        return [], Traffic()
    low, high = (share * compactor.target_bytes for share in (_SMALLEST, _LARGEST))
    # Between ranges are gaps of work rows; the one of a number lies before the range of this
    # number, the last one behind all.
    firsts = np.append(0, order.work_before(ranges.ends))
    ends = np.append(order.work_before(ranges.ranks), work.starts[-1])
    range_bytes = bytes_of(ranges, old)
    gaps = _Gaps(work.bytes_of(ends) - work.bytes_of(firsts), range_bytes)
    decides = np.zeros(len(firsts), bool)
    for start, each in zip([0, *(one.end for one in whole)], whole, strict=False):
        decides[each.start + 1 : each.end] = True
        decides[start : each.start + 1] |= gaps.between(start, each.start) < low
    decides[-1] = True
    decides &= (ends > firsts) & (gaps.gap_bytes < low)
    failed.look(firsts[decides], ends[decides])
    is_empty = failed.count(firsts, ends) == ends - firsts
    gaps = _Gaps(np.where(is_empty, 0.0, gaps.gap_bytes), range_bytes)

    whole = [each for each in whole if is_empty[each.start + 1 : each.end].all()]
    fitting = [each for each in whole if low <= each.size_bytes <= high]
    alone = [each for each in whole if each.end == len(ranges) and each.size_bytes < low]
    candidates, traffic = _like_new_ones(compactor, fitting + alone, run_tasks)
    copies: list[Whole] = []
    start = 0
    for each in candidates:
        between = gaps.between(start, each.start)
        if each in alone and (between or not is_empty[-1]):
            continue
        if 0 < between < low:
            if not copies or copies[-1].size_bytes > each.size_bytes:
                continue
            copies.pop()
        copies.append(each)
        start = each.end
    return copies, traffic


class _Gaps:
    """Bytes of ranges, and of the work rows between them."""

    def __init__(
        self, gap_bytes: npt.NDArray[np.float64], range_bytes: npt.NDArray[np.float64]
    ) -> None:
        self.gap_bytes = gap_bytes
        self._before = np.append(0.0, np.cumsum(gap_bytes[:-1] + range_bytes))

    def between(self, start: int, end: int) -> float:
        """Return the bytes of the ranges [start, end), and of the gaps before each and after."""
        return float(self._before[end] - self._before[start] + self.gap_bytes[end])


def _whole_parts(ranges: Ranges, old: OldRows) -> list[Whole]:
    """Find the parts whose predictions are all there, in order."""
    part = old.part_of(ranges.firsts)
    follows = (np.diff(part) == 0) & (ranges.firsts[1:] == (ranges.firsts + ranges.counts)[:-1])
    starts = np.flatnonzero(np.append(True, ~follows)[: len(ranges)])
    ends = np.append(starts[1:], len(ranges))
    counts = np.diff(np.append(0, np.cumsum(ranges.counts))[np.append(starts, len(ranges))])
    is_whole = counts == old.sizes[part[starts]]
    return [
        Whole(start, end, old.parts[part[start]])
        for start, end in zip(starts[is_whole].tolist(), ends[is_whole].tolist(), strict=True)
    ]


def _like_new_ones(
    compactor: Compactor, whole: Sequence[Whole], run_tasks: RunTasks
) -> tuple[list[Whole], Traffic]:
    """Return those that have the columns and the compression of new parts."""
    chunks = [whole[start : start + _PER_TASK] for start in range(0, len(whole), _PER_TASK)]
    found = run_tasks(are_like, [(compactor, [each.part for each in chunk]) for chunk in chunks])
    is_like = [like for some, _ in found for like in some]
    return (
        [each for each, like in zip(whole, is_like, strict=True) if like],
        sum((traffic for _, traffic in found), Traffic()),
    )


def are_like(compactor: Compactor, parts: Sequence[OldPart]) -> tuple[list[bool], Traffic]:
    """Tell which parts are written as the compactor writes them; only footers are read.

    Raises:
        NotReadable: A part is gone, or damaged.
    """
    wanted = {"none": "UNCOMPRESSED"}.get(compactor.compression, compactor.compression.upper())
    traffic = Traffic()
    are: list[bool] = []
    for old in parts:

        def look(path: str, old: OldPart = old) -> pq.ParquetFile:
            nonlocal traffic
            with open_old(compactor.store, old, path) as handle:
                file = pq.ParquetFile(handle)
                traffic += Traffic(num_reads=handle.num_reads, bytes_read=handle.num_bytes)
                return file

        file = old.find(compactor.store, look)
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        used = {group.column(i).compression for group in groups for i in range(group.num_columns)}
        are.append(used == {wanted} and file.schema_arrow.equals(compactor.schema))
    return are, traffic
