"""Read the slices of a unit; a shard that crashes or hangs its reader costs its rows, not the run.

The first attempt reads in this process, under the hang guard. If it ends the process, later
attempts read in a child, extent by extent; the rows of an extent that ends the child are failed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline.core.errors import InfraError
from pipeline.core.failures import Failure, Reason, failure_columns, failures_of
from pipeline.core.figures import READ, Counters, SliceFigures, StageCounters, add, merge
from pipeline.core.figures import Isolated as IsolatedFigure
from pipeline.core.schema import ROW_ID
from pipeline.core.slices import SliceKey, pack, unpack
from pipeline.execution.isolation.child_process import Child, ChildExit, ChildResult, Step
from pipeline.execution.isolation.crash_guard import (
    GIVE_UP_AFTER,
    IsolatedRunner,
    StagePlan,
    fail_poison_rows,
    given_up,
)
from pipeline.execution.isolation.crash_marks import CrashMarks, Earlier
from pipeline.process.liveness import hang_guard
from pipeline.sources.reader import read_extent, read_slices
from pipeline.sources.rows import Reader
from pipeline.sources.source_format import failed_rows, failed_shard
from pipeline.sources.units import Extent, Unit

SLICE_LIMITS = 10
"""Time limit of a slice, in time limits of a row; stores have their own time limits."""
_SLICE, _EXTENT = "slice", READ
"""Stages of a child: read the next slice, or one piece of an extent."""
_MAX_TRIES = 2
_NO_ROWS = pa.Table.from_batches([], pa.schema([("unit", pa.int64())]))
_NO_FIELDS = pa.schema([])
"""No input columns: the input of a shard that ends its reader has no digest."""
_PIECES = pa.schema(
    [
        pa.field("extent", pa.int64()),
        pa.field("skip", pa.int64()),
        pa.field("num_rows", pa.int64()),
        pa.field(ROW_ID, pa.string()),
    ]
)
"""Pieces of a unit's extents, one per row, before the columns of `failure_columns`.

`extent` is an index into `unit.extents`, `skip` and `num_rows` are as in `Extent.piece`, and
`row_id` is the path of the shard, under which crash marks and verdicts name the piece.
"""


def read_guarded(
    reader: Reader, unit: Unit, starts: Set[int], attempts: CrashMarks, row_timeout_s: float
) -> Iterator[pa.Table]:
    """Yield the wanted slices of a unit, packed, as `read_slices` does.

    Args:
        starts: First rows of the slices to read, as in `read_slices`.
        attempts: The crash marks of this node.
        row_timeout_s: Time limit per row; a slice has `SLICE_LIMITS` times as much.

    Raises:
        InfraError: As `read_slices`; or a shard ended its readers although other readers had
            read it further.
    """
    limit_s, name = SLICE_LIMITS * row_timeout_s, f"read-{unit.index}"
    with attempts.attempt(name) as earlier:
        if not earlier.exits:
            slices = _packed(reader, unit, starts)
            while True:
                with hang_guard(limit_s):
                    packed = next(slices, None)
                if packed is None:
                    return
                yield packed
        if unit.cut is not None:
            yield from _read_next_slices(reader, unit, limit_s, earlier)
            return
        with contextlib.closing(Child(UnitReading(reader, unit), limit_s, limit_s)) as child:
            isolated = IsolatedRunner(child, functools.partial(attempts.note, name), _NO_FIELDS)
            extents = _ExtentReader(reader, unit)
            for index, key in enumerate(key for key in unit.slices() if key.start in starts):
                num_earlier = 0 if index else earlier.exits
                yield from _read_by_extent(extents, key, isolated, earlier, num_earlier)


def _packed(reader: Reader, unit: Unit, starts: Set[int]) -> Iterator[pa.Table]:
    for key, counters, rows in read_slices(reader, unit, starts):
        yield pack(key, counters, rows)


@dataclass(frozen=True)
class UnitReading:
    """The work of a child: read the next slice of a unit, or a piece of one of its extents."""

    reader: Reader
    unit: Unit

    def open(self) -> Mapping[str, Step]:
        """Open nothing yet: opening a shard may be what ends the child."""
        extents = _ExtentReader(self.reader, self.unit)
        slices = _packed(self.reader, self.unit, frozenset())
        return {_SLICE: lambda _rows, _counters: next(slices, _NO_ROWS), _EXTENT: extents.read}


@dataclass(frozen=True)
class _ExtentReader:
    """Reads a counted unit piece by piece; the pieces are rows of tables (`_PIECES`)."""

    reader: Reader
    unit: Unit

    def pieces(self, key: SliceKey) -> pa.Table:
        """Return the pieces that make up a slice, in order, none of them failed."""
        pieces = []
        position = 0
        for index, extent in enumerate(self.unit.extents):
            begin, end = max(key.start, position), min(key.end, position + extent.num_rows)
            if begin < end:
                values = (index, begin - position, end - begin, extent.path)
                pieces.append(dict(zip(_PIECES.names, values, strict=True)))
            position += extent.num_rows
        table = pa.Table.from_pylist(pieces, schema=_PIECES)
        for name, column in failure_columns([None] * len(pieces)).items():
            table = table.append_column(name, column)
        return table

    def read(self, piece: pa.Table, counters: Counters) -> pa.Table:
        """Read one piece; return its rows in the schema of the reader, none if they are too large.

        Those of the pieces of a smaller slice are not.
        """
        extent = self._extent(piece)
        counted, rows = read_extent(self.reader, extent)
        if rows.num_rows < extent.num_rows:
            return rows.slice(0, 0)
        counters.update(merge(counters, counted))
        return rows

    def fail(self, piece: pa.Table, counters: Counters) -> pa.Table:
        """Return the rows of one failed piece as failed rows, and count them."""
        [failure] = failures_of(piece)
        assert failure is not None, "other pieces are read"
        extent = self._extent(piece)
        others = extent.num_rows - 1  # the piece itself has been counted as one row
        add(counters, READ, StageCounters(others, 0, others))
        lost = IsolatedFigure(extent.num_rows, extent.num_rows)
        SliceFigures(isolated=lost).add_to(counters)
        return failed_rows(self.reader, extent, 0, failure)

    def _extent(self, piece: pa.Table) -> Extent:
        [values] = piece.select(_PIECES.names).to_pylist()
        extent: Extent = self.unit.extents[values["extent"]]
        return extent.piece(values["skip"], values["num_rows"])


def _read_by_extent(
    extents: _ExtentReader,
    key: SliceKey,
    isolated: IsolatedRunner,
    earlier: Earlier,
    num_earlier: int,
) -> Iterator[pa.Table]:
    """Read a slice extent by extent; yield it packed, in halves if it is too large for memory.

    Args:
        extents: Reads the unit of the slice.
        isolated: Lets a child read; pieces that end it are failed.
        earlier: What is known of earlier attempts at the unit.
        num_earlier: Processes that ended in these, to be counted with this slice.
    """
    counters: Counters = {}
    before = isolated.num_exits
    pieces = fail_poison_rows(earlier, READ, extents.pieces(key), counters, _NO_FIELDS)
    plan = StagePlan(_EXTENT, rows_at_once=1, here=extents.fail)
    rows = isolated.run(plan, pieces, counters, one_by_one=True)
    num_exits = num_earlier + isolated.num_exits - before
    if rows.num_rows < key.num_rows:
        first, second = key.halves()
        yield from _read_by_extent(extents, first, isolated, earlier, num_exits)
        yield from _read_by_extent(extents, second, isolated, earlier, 0)
        return
    SliceFigures(isolated=IsolatedFigure(dead_processes=num_exits)).add_to(counters)
    yield pack(key, counters, rows)


def _read_next_slices(
    reader: Reader, unit: Unit, limit_s: float, earlier: Earlier
) -> Iterator[pa.Table]:
    """Read an uncounted unit in a child; it is unreadable from where two children ended."""
    assert unit.cut is not None, "the unit is uncounted"
    done, tries, num_exits = list(unit.cut.done), 0, earlier.exits
    if num_exits >= GIVE_UP_AFTER:
        yield _rest_of_shard(reader, unit, done, given_up(earlier), num_exits)
        return
    while True:
        cut = replace(unit.cut, done=tuple(sorted(done, key=lambda key: key.start)))
        with contextlib.closing(
            Child(UnitReading(reader, replace(unit, cut=cut)), limit_s, limit_s)
        ) as child:
            while (
                isinstance(answer := child.call(_SLICE, _NO_ROWS), ChildResult)
                and answer.rows.num_rows
            ):
                [(key, counters, rows, _)] = unpack(answer.rows)
                SliceFigures(isolated=IsolatedFigure(dead_processes=num_exits)).add_to(counters)
                yield pack(key, counters, rows)
                done.append(key)
                num_exits = tries = 0
        if isinstance(answer, ChildResult):
            return
        num_exits, tries = num_exits + 1, tries + 1
        if tries == _MAX_TRIES:
            yield _rest_of_shard(reader, unit, done, answer, num_exits)
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
    failure = Failure(Reason.UNREADABLE_SHARD, READ, ended.message, num_bytes=num_bytes)
    rows = failed_shard(reader, unit.extents[0], failure)
    counters: Counters = {}
    add(counters, READ, StageCounters(1, 0, 1))
    SliceFigures(isolated=IsolatedFigure(1, 1, num_exits)).add_to(counters)
    return pack(SliceKey(unit.index, position, position + 1, is_last=True), counters, rows)
