"""Read the slices of a unit; a crash or a hang over a shard costs its rows, not the run.

The first attempt reads in this process, watched. A later one, when an attempt at the same unit has
ended, reads in a child, shard by shard: rows of a shard that ends the child are failed rows.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from pipeline.core.counters import ISOLATED, Counters, StageCounters, add, merge
from pipeline.core.errors import InfraError
from pipeline.core.failures import Failure, Reason, failure_columns, failures_of
from pipeline.core.schema import ROW_ID
from pipeline.core.slices import SliceKey, pack, unpack
from pipeline.core.watchdog import watch
from pipeline.execution.isolation.attempts import Attempts, Earlier
from pipeline.execution.isolation.child_process import Child, ChildExit, ChildResult, Step
from pipeline.execution.isolation.crash_guard import GIVE_UP_AFTER, fail_poison_rows, given_up
from pipeline.execution.isolation.row_isolation import Isolated, StagePlan
from pipeline.sources.extents import Extent
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import STAGE, Reader, failed_rows, failed_shard
from pipeline.sources.units import Unit

SLICE_LIMITS = 10
"""A slice may take so many times as long as a row: stores have time limits of their own."""
_NEXT, _EXTENT = "next", STAGE
_TRIES = 2


def read_guarded(
    reader: Reader, unit: Unit, starts: Set[int], attempts: Attempts, row_timeout_s: float
) -> Iterator[pa.Table]:
    """Yield the wanted slices of a unit, packed, as `read_slices` does.

    Raises:
        InfraError: As `read_slices`; or a shard ended its readers that others had read further.
    """
    limit_s, name = SLICE_LIMITS * row_timeout_s, f"read-{unit.index}"
    with attempts.attempt(name) as earlier:
        if not earlier.exits:
            slices = _packed(reader, unit, starts)
            while True:
                with watch(limit_s):
                    packed = next(slices, None)
                if packed is None:
                    return
                yield packed
        if unit.cut is not None:
            yield from _next_by_next(reader, unit, limit_s, earlier)
            return
        with contextlib.closing(Child(UnitReading(reader, unit), limit_s, limit_s)) as child:
            isolated = Isolated(child, functools.partial(attempts.note, name))
            for index, key in enumerate(key for key in unit.slices() if key.start in starts):
                num_earlier = 0 if index else earlier.exits
                yield _by_extent(reader, unit, key, isolated, earlier, num_earlier)


def _packed(reader: Reader, unit: Unit, starts: Set[int]) -> Iterator[pa.Table]:
    for key, counters, rows in read_slices(reader, unit, starts):
        yield pack(key, counters, rows)


@dataclass(frozen=True)
class UnitReading:
    """What a child does: read an extent that it is asked for, or the next slice."""

    reader: Reader
    unit: Unit

    def open(self) -> Mapping[str, Step]:
        """Open nothing: that may be what ends the child."""
        slices: list[Iterator[pa.Table]] = []

        def read_next(asked: pa.Table, counters: Counters) -> pa.Table:
            if not slices:
                slices.append(_packed(self.reader, self.unit, frozenset()))
            return next(slices[0], asked.slice(0, 0))

        return {_NEXT: read_next, _EXTENT: self._read_extent}

    def _read_extent(self, asked: pa.Table, counters: Counters) -> pa.Table:
        extent = _asked_extent(self.unit, asked)
        alone = Unit(self.unit.index, (extent,), (0, extent.num_rows))
        [(_, counted, rows)] = read_slices(self.reader, alone, frozenset([0]))
        counters.update(merge(counters, counted))
        return rows


def _asked_extent(unit: Unit, asked: pa.Table) -> Extent:
    index, first, number = (asked.column(name)[0].as_py() for name in ("extent", "first", "number"))
    extent: Extent = unit.extents[index]
    return extent.piece(first, number)


def _extents_of(unit: Unit, key: SliceKey) -> pa.Table:
    """Return which rows of which extents make up a slice, one row each."""
    found: list[tuple[int, int, int]] = []
    position = 0
    for index, extent in enumerate(unit.extents):
        begin, end = max(key.start, position), min(key.end, position + extent.num_rows)
        if begin < end:
            found.append((index, begin - position, end - begin))
        position += extent.num_rows
    columns: dict[str, Any] = dict(
        zip(("extent", "first", "number"), zip(*found, strict=True), strict=True)
    )
    columns[ROW_ID] = [unit.extents[index].path for index, _, _ in found]
    return pa.table({**columns, **failure_columns([None] * len(found))})


def _by_extent(
    reader: Reader,
    unit: Unit,
    key: SliceKey,
    isolated: Isolated,
    earlier: Earlier,
    num_earlier: int,
) -> pa.Table:
    """Read a slice extent by extent; those that end the child are failed rows."""

    counters: Counters = {}

    def failed_here(asked: pa.Table, _: Counters) -> pa.Table:
        extent, failure = _asked_extent(unit, asked), failures_of(asked)[0]
        others = extent.num_rows - 1  # one has been counted
        add(counters, STAGE, StageCounters(others, 0, others))
        lost = StageCounters(extent.num_rows, 0, extent.num_rows)
        add(counters, ISOLATED, lost)
        assert failure is not None, "only what failed is not read"
        return failed_rows(reader, extent, 0, failure)

    before = isolated.num_exits
    asked = fail_poison_rows(earlier, STAGE, _extents_of(unit, key), counters)
    plan = StagePlan(_EXTENT, 1, failed_here)
    rows = isolated.run(plan, asked, counters, one_by_one=True)
    num_earlier += isolated.num_exits - before
    add(counters, ISOLATED, StageCounters(retries=num_earlier))
    return pack(key, counters, rows)


def _next_by_next(
    reader: Reader, unit: Unit, limit_s: float, earlier: Earlier
) -> Iterator[pa.Table]:
    """Read a shard in a child; if two children end at one place, the shard is unreadable there."""
    assert unit.cut is not None, "asked before"
    done, tries, num_exits = list(unit.cut.done), 0, earlier.exits
    if num_exits >= GIVE_UP_AFTER:
        yield _rest_of_shard(reader, unit, done, given_up(earlier), num_exits)
        return
    nothing = pa.table({"unit": pa.array([], pa.int64())})
    while True:
        cut = replace(unit.cut, done=tuple(sorted(done, key=lambda key: key.start)))
        with contextlib.closing(
            Child(UnitReading(reader, replace(unit, cut=cut)), limit_s, limit_s)
        ) as child:
            while (
                isinstance(found := child.call(_NEXT, nothing), ChildResult) and found.rows.num_rows
            ):
                key, counters, rows = unpack(found.rows)[0]
                add(counters, ISOLATED, StageCounters(retries=num_exits))
                yield pack(key, counters, rows)
                done.append(key)
                num_exits = tries = 0
        if isinstance(found, ChildResult):
            return
        num_exits, tries = num_exits + 1, tries + 1
        if tries == _TRIES:
            yield _rest_of_shard(reader, unit, done, found, num_exits)
            return


def _rest_of_shard(
    reader: Reader, unit: Unit, done: Sequence[SliceKey], ended: ChildExit, num_exits: int
) -> pa.Table:
    """Quarantine the unreadable rest of a shard as one row."""
    position, path = 0, unit.extents[0].path
    for key in sorted(done, key=lambda key: key.start):
        position = key.end if key.start == position else position
    if len(unit.extents) > 1 or any(key.start > position for key in done):
        raise InfraError(
            f"{reader.store.url(path)}: {ended.message} when row {position} was read; others "
            "read it to its end, or it is read in one with other tars"
        )
    num_bytes = unit.extents[0].size_bytes
    failure = Failure(Reason.UNREADABLE_SHARD, STAGE, ended.message, num_bytes=num_bytes)
    rows = failed_shard(reader, unit.extents[0], failure)
    counters: Counters = {}
    add(counters, STAGE, StageCounters(1, 0, 1))
    add(counters, ISOLATED, StageCounters(rows_in=1, rows_quarantined=1, retries=num_exits))
    return pack(SliceKey(unit.index, position, position + 1, is_last=True), counters, rows)
