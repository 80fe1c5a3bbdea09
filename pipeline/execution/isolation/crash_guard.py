"""Let a crash or a hang cost its row: work in this process while that is safe, else in a child.

The first attempt at a slice runs in this process, watched, at no further cost. After an attempt
that ended its process, the next one runs in a child: first in batches, then row by row, to find the
poison rows, which end the child. Those become failed rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import pyarrow as pa

from pipeline.core.failures import Failure, Reason, failure_columns, failures_of, of_part
from pipeline.core.figures import Counters, SliceFigures, StageCounters, add, merge
from pipeline.core.figures import Isolated as IsolatedFigure
from pipeline.core.row_digests import num_bytes, row_digests
from pipeline.core.schema import ERROR, ROW_ID
from pipeline.execution.isolation.child_process import Child, ChildExit, ChildResult, Step, Work
from pipeline.execution.isolation.crash_marks import CrashMarks, Earlier
from pipeline.inference.devices.shared_lock import SharedLock
from pipeline.process.liveness import hang_guard
from pipeline.process.memory import at_most

MAX_EXITS = 32
"""Ended children for one stage of a slice after which the rest of its rows is given up."""
_A_HANG_COUNTS = 4
"""A hang takes the whole time limit, and a slice must take less time than a stalled run."""
MAX_EXITS_IN_A_ROW = 8
"""Ended children in a row, without a finished row, after which the rest is given up."""
MAX_STARTS = 3


@dataclass(frozen=True)
class StagePlan:
    """One stage of the work on a slice."""

    stage: str
    rows_at_once: int
    """Rows of one call; 1 if the stage works row by row anyway."""
    here: Step
    """The stage in this process; rows that have failed pass unchanged."""


class IsolatedRunner:
    """Works on one slice in children, until all rows are done or given up."""

    def __init__(
        self, child: Child, note: Callable[[str, str | None], None], fields: pa.Schema
    ) -> None:
        """Take the child.

        Args:
            child: The child; it is not closed here.
            note: Called with the stage and the row id before work on a single row, and with None
                before a batch; the child has started then, so its start is blamed on no row.
            fields: The columns of the source with a row's input, for its digest.
        """
        self._child, self._note, self._fields = child, note, fields
        self._left = self._in_a_row = self._starts = 0
        self.num_exits = 0
        self.num_poison = 0

    def run(
        self, plan: StagePlan, rows: pa.Table, counters: Counters, *, one_by_one: bool
    ) -> pa.Table:
        """Run one stage; rows that end the child are returned as failed rows.

        Args:
            rows: Rows that have already failed stay unchanged.
            counters: Counters of the stage.
            one_by_one: Do not try batches.
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
            # Run the other rows together again: a batch of one may differ in the last digit.
            done = self._call(plan.stage, fail(rows, poison))
            if isinstance(done, ChildResult):
                return _take(done, counters)
        counters.update(merge(counters, apart))
        return pa.concat_tables(pieces)

    def _one_by_one(
        self, plan: StagePlan, rows: pa.Table, counters: Counters
    ) -> tuple[list[pa.Table], dict[int, Failure]]:
        """Return the result of each row, and the failures of rows that ended the child."""
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
        """Let the child work on rows, or on the single row with the id `alone`.

        A killed child gets another try: the cause may have been outside of it.
        """
        was_killed = False
        while min(self._left, self._in_a_row, self._starts) > 0:
            done = self._try(stage, rows, alone)
            if isinstance(done, ChildResult):
                self._in_a_row, self._starts = MAX_EXITS_IN_A_ROW, MAX_STARTS
                return done
            self.num_exits += 1
            self._left -= _A_HANG_COUNTS if done.reason is Reason.TIMEOUT else 1
            was_ours = done.max_bytes > 0  # its own memory ended it, and would do so again
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
    """Cut rows into the batches of the stage itself, which leaves out failed rows.

    Results must be as if no process had ended, and a batch of another size may differ in the last
    digit.
    """
    good = np.flatnonzero(rows.column(ERROR).is_null().to_numpy())
    starts = [0, *good[size::size].tolist()]
    ends = [*starts[1:], rows.num_rows]
    return [rows.slice(start, end - start) for start, end in zip(starts, ends, strict=True)]


def _take(done: ChildResult, counters: Counters) -> pa.Table:
    counters.update(merge(counters, done.counters))
    return done.rows


def failure_of(row: pa.Table, stage: str, ended: ChildExit, fields: pa.Schema) -> Failure:
    """Return the failure of a row that ended a process, with the digest of its input if possible.

    Args:
        row: The row as it came to the stage.
        stage: The stage.
        ended: How the process ended.
        fields: The columns of the source with the input; an earlier stage may have replaced them.
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
    """Return the rows with some of them failed; existing failures are kept."""
    columns = failure_columns(
        [failure or failures.get(index) for index, failure in enumerate(failures_of(rows))]
    )
    for name in [name for name in rows.column_names if name in columns]:
        index = rows.schema.get_field_index(name)
        rows = rows.set_column(index, rows.schema.field(index), columns[name])
    return rows


GIVE_UP_AFTER = 12
"""Ended workers after which a slice is given up: more than preemption and lack of memory
explain."""
_START_LIMITS = 10
"""Time limit of loading a model, in time limits of a row."""


class Guard:
    """Runs the stages of slices; several threads may call it at once."""

    def __init__(
        self,
        work: Work,
        plans: Sequence[StagePlan],
        attempts: CrashMarks,
        row_timeout_s: float,
        release: Callable[[], None] = lambda: None,
        *,
        fields: pa.Schema,
        max_bytes: int | None = None,
    ) -> None:
        """Take the work.

        Args:
            work: The stages, as a child runs them.
            plans: The stages, in order.
            attempts: The crash marks of this node.
            row_timeout_s: Time limit for a batch, or for decoding a row.
            release: Called before a child works, to make room for its model.
            fields: The columns of the source with a row's input.
            max_bytes: Memory limit of this process, and of a child; None: no limit.
        """
        self._fields, self._max_bytes = fields, max_bytes
        self._plans, self._attempts, self._release = plans, attempts, release
        self._limit_s, self._lock = row_timeout_s, SharedLock()
        self._child = Child(work, row_timeout_s, _START_LIMITS * row_timeout_s, max_bytes=max_bytes)

    def run(self, name: str, rows: pa.Table, counters: Counters) -> pa.Table:
        """Run all stages on the rows of a slice; rows that end processes are returned as failed.

        Args:
            name: The name of the slice within the run.
            counters: Counters of the stages, with the figure `isolated` if a child was needed.
        """
        with self._attempts.attempt(name) as earlier, at_most(self._max_bytes):
            if not earlier.exits and not self._attempts.are_unsafe:
                with self._lock.shared(), hang_guard(self._limit_s):
                    for plan in self._plans:
                        rows = plan.here(rows, counters)
                return rows
            with self._lock.exclusive():
                try:
                    return self._isolate(name, earlier, rows, counters)
                finally:
                    if not self._attempts.are_unsafe:  # the next slice will not need the child
                        self._child.close()

    def close(self) -> None:
        """End the child, if there is one."""
        self._child.close()

    def _isolate(self, name: str, earlier: Earlier, rows: pa.Table, counters: Counters) -> pa.Table:
        started, num_good = perf_counter(), rows.column(ERROR).null_count
        self._release()
        stage = self._plans[0].stage
        rows = fail_poison_rows(earlier, stage, rows, counters, self._fields)
        num_poison = num_good - rows.column(ERROR).null_count
        note = functools.partial(self._attempts.note, name)
        isolated = IsolatedRunner(self._child, note, self._fields)
        for plan in self._plans:
            # A worker that ended while its child worked did not crash: use fewer rows at once.
            rows = isolated.run(plan, rows, counters, one_by_one=earlier.end_in_batches)
        num_poison += isolated.num_poison
        if num_poison:
            self._attempts.mark_poison(name)
        exits, busy_s = earlier.exits + isolated.num_exits, perf_counter() - started
        figure = IsolatedFigure(num_good, num_poison, exits, busy_s)
        SliceFigures(isolated=figure).add_to(counters)
        return rows


def fail_poison_rows(
    earlier: Earlier, stage: str, rows: pa.Table, counters: Counters, fields: pa.Schema
) -> pa.Table:
    """Fail the rows over which several workers ended; all rows after `GIVE_UP_AFTER` workers.

    Args:
        earlier: Facts about earlier attempts at the rows.
        stage: The stage that gives up, if all rows fail.
        rows: Rows with ids and error columns.
        counters: Counters of the failed rows.
        fields: The columns of the source with a row's input, for its digest.
    """
    failures: dict[int, Failure] = {}
    have_failed = rows.column(ERROR).is_valid().to_pylist()
    for index, row_id in enumerate(rows.column(ROW_ID).to_pylist()):
        if have_failed[index] or (verdict := _verdict(earlier, stage, row_id)) is None:
            continue
        at, ended = verdict
        failures[index] = failure_of(rows.slice(index, 1), at, ended, fields)
        add(counters, at, StageCounters(1, 0, 1, failures[index].num_bytes or 0))
    return fail(rows, failures)


def _verdict(earlier: Earlier, stage: str, row_id: str) -> tuple[str, ChildExit] | None:
    if row_id in earlier.suspected_rows:
        at, times = earlier.suspected_rows[row_id]
        message = f"{times} workers were killed over this row alone, as happens for lack of memory"
        return at, ChildExit(Reason.OUT_OF_MEMORY, message)
    if earlier.exits < GIVE_UP_AFTER:
        return None
    return stage, given_up(earlier)


def given_up(earlier: Earlier) -> ChildExit:
    """Return why the work is not tried again."""
    message = f"given up: {earlier.exits} workers ended over its slice"
    return ChildExit(Reason.NATIVE_CRASH, message)
