"""Find poison rows, which end processes: batches in a child first, then rows one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.core.failures import Failure, Reason, failure_columns, failures_of, of_part
from pipeline.core.figures import Counters, StageCounters, add, merge
from pipeline.core.row_digests import num_bytes, row_digests
from pipeline.core.schema import ERROR, ROW_ID
from pipeline.execution.isolation.child_process import Child, ChildExit, ChildResult, Step

MAX_EXITS = 32
"""Children that may end over the rows of one stage of a slice before the rest is given up."""
_A_HANG_COUNTS = 4
"""A hang takes the whole time limit, and a slice must not take as long as a run may stand still."""
MAX_EXITS_IN_A_ROW = 8
"""Children that may end one after the other without a row done."""
MAX_STARTS = 3


@dataclass(frozen=True)
class StagePlan:
    """One stage of the work on a slice."""

    stage: str
    rows_at_once: int
    """Rows of one call; 1 where rows are worked on one by one anyway."""
    here: Step
    """The same in this process; rows that have failed pass it without being touched."""


class IsolatedRunner:
    """Works on one slice in children, until all of it is done or given up."""

    def __init__(
        self, child: Child, note: Callable[[str, str | None], None], fields: pa.Schema
    ) -> None:
        """Take what works.

        Args:
            child: Is not closed here.
            note: Called with the stage and the row id before a row is worked on alone, and with
                None before a batch is; the child runs then, so that its start is on no row.
            fields: The columns of the source that hold a row's input, for its digest.
        """
        self._child, self._note, self._fields = child, note, fields
        self._left = self._in_a_row = self._starts = 0
        self.num_exits = 0
        self.num_poison = 0

    def run(
        self, plan: StagePlan, rows: pa.Table, counters: Counters, *, one_by_one: bool
    ) -> pa.Table:
        """Do one stage; rows that end the child are failed rows of what is returned.

        Args:
            rows: Those that have failed already stay as they are.
            counters: Gets what the stage did.
            one_by_one: Do not even try batches.
        """
        self._left, self._in_a_row, self._starts = MAX_EXITS, MAX_EXITS_IN_A_ROW, MAX_STARTS
        if not rows.num_rows:
            return plan.here(rows, counters)
        size = plan.rows_at_once
        one_by_one |= size == 1 or not rows.column(ERROR).null_count
        return pa.concat_tables(
            [self._work_on(plan, batch, counters, one_by_one) for batch in _batches(rows, size)]
        )

    def _work_on(
        self, plan: StagePlan, rows: pa.Table, counters: Counters, one_by_one: bool
    ) -> pa.Table:
        if not one_by_one:
            done = self._call(plan.stage, rows)
            if isinstance(done, ChildResult):
                return _take(done, counters)
        apart: Counters = {}
        pieces, poison = self._one_by_one(plan, rows, apart)
        for failure in poison.values():
            num_bytes = failure.num_bytes or 0
            add(counters, plan.stage, StageCounters(1, 0, 1, num_bytes))
        if poison and not one_by_one:
            # The others together once more: a batch of one may differ in the last digit.
            done = self._call(plan.stage, fail(rows, poison))
            if isinstance(done, ChildResult):
                return _take(done, counters)
        counters.update(merge(counters, apart))
        return pa.concat_tables(pieces)

    def _one_by_one(
        self, plan: StagePlan, rows: pa.Table, counters: Counters
    ) -> tuple[list[pa.Table], dict[int, Failure]]:
        """Return what became of each row, and those that ended the child."""
        pieces: list[pa.Table] = []
        poison: dict[int, Failure] = {}
        ids = rows.column(ROW_ID).to_pylist()
        have_failed = rows.column(ERROR).is_valid().to_pylist()
        for index, row_id in enumerate(ids):
            row = rows.slice(index, 1)
            if not have_failed[index]:
                done = self._call(plan.stage, row, row_id)
                if isinstance(done, ChildResult):
                    pieces.append(_take(done, counters))
                    continue
                poison[index] = failure_of(row, plan.stage, done, self._fields)
                row = fail(row, {0: poison[index]})
            pieces.append(plan.here(row, counters))
        self.num_poison += len(poison)
        return pieces, poison

    def _call(
        self, stage: str, rows: pa.Table, alone: str | None = None
    ) -> ChildResult | ChildExit:
        """Let the child work on rows, or on one row alone, whose id is given.

        One that is killed has another try: nothing of its own may have been the reason.
        """
        was_killed = False
        while min(self._left, self._in_a_row, self._starts) > 0:
            done = self._try(stage, rows, alone)
            if isinstance(done, ChildResult):
                self._in_a_row, self._starts = MAX_EXITS_IN_A_ROW, MAX_STARTS
                return done
            self.num_exits += 1
            self._left -= _A_HANG_COUNTS if done.reason is Reason.TIMEOUT else 1
            was_ours = done.max_bytes > 0  # its own memory is what ended it, and would again
            is_doubtful = done.reason is Reason.OUT_OF_MEMORY and done.had_started and not was_ours
            if is_doubtful and not was_killed:
                was_killed = True
                continue
            self._in_a_row -= 1
            self._starts -= not done.had_started
            if done.had_started or not self._starts:
                return done
        return ChildExit(
            Reason.NATIVE_CRASH, "given up: too many processes ended over other rows of its slice"
        )

    def _try(self, stage: str, rows: pa.Table, alone: str | None) -> ChildResult | ChildExit:
        if (ended := self._child.start()) is not None:
            return ended
        self._note(stage, alone)
        return self._child.call(stage, rows)


def _batches(rows: pa.Table, size: int) -> list[pa.Table]:
    """Cut rows where the stage itself does: those that have failed are in none of its batches.

    Rows must come out as if no process had ended, and a batch of another size may differ in the
    last digit.
    """
    good = np.flatnonzero(rows.column(ERROR).is_null().to_numpy())
    starts = [0, *good[size::size].tolist()]
    ends = [*starts[1:], rows.num_rows]
    return [rows.slice(start, end - start) for start, end in zip(starts, ends, strict=True)]


def _take(done: ChildResult, counters: Counters) -> pa.Table:
    counters.update(merge(counters, done.counters))
    return done.rows


def failure_of(row: pa.Table, stage: str, ended: ChildExit, fields: pa.Schema) -> Failure:
    """Describe a row that ended a process; with the digest of its input if that is still there.

    Args:
        row: The row as it came to the stage.
        stage: That it ended.
        ended: How.
        fields: The columns of the source that hold the input; a stage before may have replaced
            them by what it made of them.
    """
    types = dict(zip(row.column_names, row.schema.types, strict=True))
    is_there = len(fields) and all(types.get(field.name) == field.type for field in fields)
    [digest] = row_digests(row, fields.names) if is_there else [None]
    failure = Failure(ended.reason, stage, ended.message)
    if ended.input_name:
        failure = of_part(ended.input_name, failure)
    if digest is None:
        return failure
    return replace(failure, sha256=digest.hex(), num_bytes=num_bytes(row, fields.names))


def fail(rows: pa.Table, failures: Mapping[int, Failure]) -> pa.Table:
    """Return the same rows, some of them failed; failures that were there before are kept."""
    columns = failure_columns(
        [failure or failures.get(index) for index, failure in enumerate(failures_of(rows))]
    )
    for name in [name for name in rows.column_names if name in columns]:
        index = rows.schema.get_field_index(name)
        rows = rows.set_column(index, rows.schema.field(index), columns[name])
    return rows
