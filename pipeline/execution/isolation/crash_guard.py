"""Let a crash or a hang cost its row: work here as long as that is safe, in a child once it is not.

The first attempt at a slice runs in this process, watched, and costs nothing more. A later one,
after an attempt that ended its process, runs in a child; poison rows, which end the child, are
failed rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from time import perf_counter

import pyarrow as pa

from pipeline.core.failures import Failure, Reason
from pipeline.core.figures import Counters, SliceFigures, StageCounters, add
from pipeline.core.figures import Isolated as IsolatedFigure
from pipeline.core.schema import ERROR, ROW_ID
from pipeline.execution.isolation.attempts import Attempts, Earlier
from pipeline.execution.isolation.child_process import Child, ChildExit, Work
from pipeline.execution.isolation.row_isolation import IsolatedRunner, StagePlan, fail, failure_of
from pipeline.inference.devices.shared_lock import SharedLock
from pipeline.process.liveness import hang_guard
from pipeline.process.memory import at_most

GIVE_UP_AFTER = 12
"""Workers that may end over one slice before it is given up: more than preemption and lack of
memory explain."""
_START_LIMITS = 10
"""Loading a model may take so many times as long as a row."""


class Guard:
    """Does the stages of slices; several threads may call it at once."""

    def __init__(
        self,
        work: Work,
        plans: Sequence[StagePlan],
        attempts: Attempts,
        row_timeout_s: float,
        release: Callable[[], None] = lambda: None,
        *,
        fields: pa.Schema,
        max_bytes: int | None = None,
    ) -> None:
        """Take what is to be done.

        Args:
            work: The stages, as a child does them.
            plans: The same, in order.
            attempts: The crash marks of this node.
            row_timeout_s: How long one batch, or the decoding of a row, may take.
            release: Called before a child works: makes room for its model.
            fields: The columns of the source that hold a row's input.
            max_bytes: How much memory this process, and a child, may take; None: any number.
        """
        self._fields, self._max_bytes = fields, max_bytes
        self._plans, self._attempts, self._release = plans, attempts, release
        self._limit_s, self._lock = row_timeout_s, SharedLock()
        self._child = Child(work, row_timeout_s, _START_LIMITS * row_timeout_s, max_bytes=max_bytes)

    def run(self, name: str, rows: pa.Table, counters: Counters) -> pa.Table:
        """Do all stages with the rows of a slice; what cannot be done is failed rows.

        Args:
            name: Of the slice among all that this run attempts.
            counters: Gets what the stages did, and the figure `isolated` if there was need.
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
                    if not self._attempts.are_unsafe:  # the next slice will not need it
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
            # A worker that ended while its child worked did not crash: take less, as for memory.
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
    """Fail the rows over which several workers ended; all of them after `GIVE_UP_AFTER` workers.

    Args:
        earlier: What is known of earlier attempts at the rows.
        stage: That gives up, where all are failed.
        rows: With ids and the columns of failures.
        counters: Gets what is failed.
        fields: The columns of the source that hold a row's input, for its digest.
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
    """Say why work is not even tried once more."""
    message = f"given up: {earlier.exits} workers ended over its slice"
    return ChildExit(Reason.NATIVE_CRASH, message)
