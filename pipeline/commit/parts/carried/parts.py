"""Turn staged slices and predictions of earlier versions into final parts, in input order.

As compaction does with slices alone: the same rows in the same order, and the same quarantine.
Old parts whose predictions are all taken over are copied by the store (`copies`), of others
the row groups that are needed are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.commit.manifest import Part
from pipeline.commit.parts.carried.copies import FailedRows, Work, choose_copies
from pipeline.commit.parts.carried.groups import CarriedGroup, cut_carried
from pipeline.commit.parts.carried.order import Ranges, joined, put_in_order
from pipeline.commit.parts.carried.rows import LookedUp
from pipeline.commit.parts.carried.version import (
    CarriedVersion,
    OldPart,
    OldReader,
    OldRows,
    Traffic,
)
from pipeline.commit.parts.compaction import (
    DUPLICATE,
    PARTS_PER_GROUP,
    Compacted,
    Compactor,
    DuplicateRows,
    Group,
    RunTasks,
    SizedSlice,
    shrinkage,
)
from pipeline.commit.parts.part_merge import Rest, interleave
from pipeline.commit.parts.part_writer import META_PREFIX
from pipeline.commit.parts.partition_columns import Keyed
from pipeline.commit.parts.row_positions import Positions, major_keys
from pipeline.core.arrays import Numbers
from pipeline.core.errors import InfraError
from pipeline.core.schema import ERROR, ERROR_STAGE, MESSAGE, QUARANTINE_SCHEMA, ROW_ID, URI
from pipeline.planning.carried import Carried

_IDS = pa.schema([field for field in QUARANTINE_SCHEMA if field.name in (ROW_ID, URI)])
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class CarriedCompactor:
    """Everything needed to make any group; plain enough for Ray."""

    compactor: Compactor
    looked_up: LookedUp

    def compact(self, group: CarriedGroup) -> tuple[list[Part], tuple[Part, ...], Traffic]:
        """Write the parts of predictions and of the quarantine, and copy those that are copied.

        Raises:
            NotReadable: An old part is gone, or damaged.
        """
        compactor = self.compactor
        task = _Task(self, group)
        merged = Rest(interleave(task.old(), task.new()))
        parts: list[Part] = []
        copied = Traffic()
        for piece in group.pieces:
            if piece.copied is not None:
                parts.append(self._copy(piece.copied, group.index, len(parts)))
                copied += Traffic(parts_copied=1, bytes_copied=parts[-1].size_bytes)
                continue
            done, is_last = piece.start, group.is_last and piece is group.pieces[-1]
            stream = compactor.stream(
                "predictions",
                group.index,
                compactor.schema,
                total_weight=None if is_last else float(piece.end - piece.start),
                first=len(parts),
            )
            while merged.fill() and merged.keys[0] < piece.end:
                rows, ranks = merged.cut(int(np.searchsorted(merged.keys, piece.end)))
                stream.write(rows, float(ranks[-1] + 1 - done))
                done = int(ranks[-1]) + 1
            parts += stream.close()
        assert not merged.fill(), "all rows belong to a piece"
        return parts, task.close(), copied + task.traffic

    def _copy(self, old: OldPart, index: int, nth: int) -> Part:
        store, path = self.compactor.store, self.compactor.part_path("predictions", index, nth)
        old.find(store, lambda at: store.copy(at, f"{self.compactor.folder}/{path}"))
        return replace(old.part, path=path)


class _Task:
    """The rows of a group: those of earlier versions, and those of slices, some of which failed."""

    def __init__(self, how: CarriedCompactor, group: CarriedGroup) -> None:
        compactor = self._compactor = how.compactor
        self._how, self._group = how, group
        self._whole = OldReader(compactor.store, group.old, compactor.schema)
        self._found = OldReader(compactor.store, group.old, how.looked_up.taken)
        self._ids = OldReader(compactor.store, group.old, _IDS)
        self._quarantine = compactor.stream("quarantine", group.index, QUARANTINE_SCHEMA)
        self._gone = Rest(map(self._to_quarantine, self._read(self._ids, group.gone)))

    @property
    def traffic(self) -> Traffic:
        """What was read of earlier versions."""
        return self._whole.traffic + self._found.traffic + self._ids.traffic

    def old(self) -> Keyed:
        """Yield predictions of earlier versions, with their ranks."""
        return self._read(self._whole, self._group.written)

    def new(self) -> Keyed:
        """Yield predicted rows of slices, with their ranks, and put failed ones into quarantine."""
        group, work = self._group, self._group.num_before
        start, end = group.pieces[0].start, group.pieces[-1].end
        slices = self._compactor.read(Group(0, group.slices, group.duplicates))
        for rows in self._how.looked_up.fill(slices, self._found):
            ranks = group.order.rank_of(np.arange(work, work + len(rows.is_good)))
            work += len(ranks)
            is_here = (ranks >= start) & (ranks < end)
            # Of rows that were checked the prediction that they had is taken over.
            is_here &= ~group.written.cover(ranks) & ~group.copied.cover(ranks)
            good, failed = is_here & rows.is_good, is_here & ~rows.is_good
            lost = rows.quarantined.filter(pa.array(is_here[~rows.is_good]))
            self._fail(lost, ranks[failed], int(ranks[-1]) if len(ranks) else start)
            yield rows.good.filter(pa.array(is_here[rows.is_good])), ranks[good]

    def close(self) -> tuple[Part, ...]:
        """Return the parts of the quarantine."""
        self._fail(QUARANTINE_SCHEMA.empty_table(), _NONE, self._group.pieces[-1].end)
        return self._quarantine.close()

    def _read(self, reader: OldReader, ranges: Ranges) -> Keyed:
        return reader.read(ranges.firsts, ranges.counts, ranges.ranks)

    def _fail(self, rows: pa.Table, ranks: Numbers, until: int) -> None:
        """Quarantine rows, and those that were taken over before them; all ranks are lower."""
        some = [(rows, ranks)]
        while self._gone.fill() and self._gone.keys[0] < until:
            some.append(self._gone.cut(int(np.searchsorted(self._gone.keys, until))))
        ranks = np.concatenate([ranks for _, ranks in some])
        starts = self._group.unit_starts
        if starts is None or not len(ranks):
            return
        order = np.argsort(ranks, kind="stable")
        ranks = ranks[order]
        unit = np.searchsorted(starts, ranks, "right") - 1
        places = Positions(
            major_keys(ranks), unit + self._group.first_unit, ranks - starts[unit], ranks
        )
        failed = pa.concat_tables([rows for rows, _ in some]).take(pa.array(order))
        self._quarantine.write(failed, numbers=places.to_matrix())

    def _to_quarantine(self, found: tuple[pa.Table, Numbers]) -> tuple[pa.Table, Numbers]:
        rows, ranks = found
        run_id = self._compactor.metadata.get(f"{META_PREFIX}run_id")
        said = {
            "stage": DUPLICATE[ERROR_STAGE],
            "reason": DUPLICATE[ERROR],
            MESSAGE: DUPLICATE[MESSAGE],
            "run_id": run_id,
        }
        columns = {
            field.name: rows.column(field.name)
            if field.name in rows.column_names
            else pa.array([said.get(field.name)] * len(ranks), field.type)
            for field in QUARANTINE_SCHEMA
        }
        return pa.table(columns, schema=QUARANTINE_SCHEMA), ranks


def compact_carried(
    compactor: Compactor,
    slices: Sequence[SizedSlice],
    duplicates: DuplicateRows,
    carried: Carried,
    versions: Sequence[CarriedVersion],
    own: Sequence[str],
    unit_rows: Numbers | None,
    run_tasks: RunTasks,
    *,
    gone: Numbers = _NONE,
) -> tuple[Compacted, Traffic]:
    """Compact the slices of a run and what it takes over.

    Args:
        slices: Of the work plan, in input order.
        duplicates: Rows of them to quarantine because of their ids.
        carried: What is taken over.
        own: The columns that rows found by content have of the new input.
        unit_rows: int64 (U,): rows of each unit of the whole plan; None: nothing is written to the
            quarantine.
        run_tasks: Calls a function for every tuple of arguments; results in the order of calls.
        gone: int64 (G,): numbers of predictions to quarantine because of their ids, counted over
            all versions one after the other.

    Raises:
        NotReadable: A part of an earlier version is gone, or damaged.
        InfraError: The rows are not the ones that were planned.
    """
    old, placed = OldRows.of(versions), put_in_order(slices, carried, versions)
    order, work = placed.order, _work(compactor, slices, duplicates, carried, old)
    num_rows = int(work.starts[-1] + order.carried[-1])
    if unit_rows is not None and int(unit_rows.sum()) != num_rows:
        raise InfraError(
            f"{num_rows} rows are computed or carried, {int(unit_rows.sum())} were planned; "
            "nothing was published, run again"
        )
    failed = FailedRows(compactor.store, work, run_tasks)
    checked = placed.checked_work
    failed.look(checked, checked + 1)
    is_good = failed.count(checked, checked + 1) == 0
    every = joined(placed.runs, placed.checked.take(is_good))
    every = every.cut(every.firsts, np.append(gone, gone + 1))
    is_gone = np.isin(every.firsts, gone)
    taken = every.take(~is_gone)
    taken = taken.cut(taken.firsts, old.starts)
    copies, traffic = choose_copies(compactor, work, failed, order, old, taken, run_tasks)
    groups = cut_carried(
        *(compactor.target_bytes, work, order, old, taken, copies, every.take(is_gone), unit_rows),
        by_content=carried.by_content,
    )
    how = CarriedCompactor(compactor, LookedUp.of(versions, compactor.schema, own))
    done = run_tasks(how.compact, [(group,) for group in groups])
    parts = [part for predictions, _, _ in done for part in predictions]
    quarantine = [part for _, failed_rows, _ in done for part in failed_rows]
    return compactor.whole(parts, quarantine), sum((t for _, _, t in done), traffic)


def _work(
    compactor: Compactor,
    slices: Sequence[SizedSlice],
    duplicates: DuplicateRows,
    carried: Carried,
    old: OldRows,
) -> Work:
    """Return the slices with what their rows will take, those found by content included."""
    rows = np.array([key.num_rows for key, _, _ in slices], np.int64)
    staged = np.array([size for _, _, size in slices], np.float64)
    if staged.sum() > PARTS_PER_GROUP * compactor.target_bytes:
        staged *= shrinkage(compactor, slices)
    if carried.by_content and len(old.parts):
        staged += rows * float((old.row_bytes * old.sizes).sum() / old.sizes.sum())
    return Work(
        slices, duplicates, np.append(0, np.cumsum(rows)), np.append(0.0, np.cumsum(staged))
    )
