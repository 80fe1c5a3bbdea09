"""Work that some rows end or stop, in place of decoders and models that crash.

Named by tests and imported by the child processes that they start, so it imports little: what wraps
real stages is in `deadly_stages`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.errors import InfraError
from pipeline.core.failures import Failure, failure_columns
from pipeline.core.figures import Counters, StageCounters, add
from pipeline.core.schema import ERROR
from pipeline.execution.isolation.child_process import Step
from pipeline.execution.isolation.crash_marks import CrashMarks
from pipeline.process.liveness import input_started

STAGE = "predict"
FIELDS = pa.schema([pa.field("value", pa.int64())])
"""What `rows_of` takes for the input of a row."""
SEGFAULT, EXIT, HANG, KILL, RAISE, KILL_FIRST, GROW = -1, -2, -3, -4, -5, -6, -7
MAX_BYTES = 400 << 20
"""More than any work here takes, but for GROW."""


def grow() -> None:
    """Take up to 2 GiB, at most 4 GiB/s."""
    held = []
    for _ in range(512):
        held.append(b"x" * (4 << 20))
        time.sleep(0.001)


DEADLY: dict[int, Callable[[], object]] = {
    SEGFAULT: lambda: ctypes.string_at(0),
    EXIT: lambda: os._exit(3),
    HANG: lambda: ctypes.PyDLL(None).sleep(10**6),  # keeps Python's lock
    KILL: lambda: os.kill(os.getpid(), signal.SIGKILL),
    GROW: grow,
}


def rows_of(values: Sequence[int], failures: Sequence[Failure | None] = ()) -> pa.Table:
    """Rows with ids r0, r1, ...; `value` says what happens."""
    ids = [f"r{index}" for index in range(len(values))]
    columns = failure_columns(list(failures) or [None] * len(values))
    return pa.table({"row_id": ids, "value": pa.array(values, pa.int64()), **columns})


def double(rows: pa.Table, counters: Counters) -> pa.Table:
    """Double the values of the rows that have not failed."""
    good = rows.filter(rows.column(ERROR).is_null())
    for value in good.column("value").to_pylist():
        if value == RAISE:
            raise InfraError("the store is away")
        DEADLY.get(value, int)()
    add(counters, STAGE, StageCounters(good.num_rows, good.num_rows))
    return rows.append_column("doubled", pc.multiply(rows.column("value"), 2))


@dataclass(frozen=True)
class Doubling:
    """What a child does; `starts` gets a line for each that was started."""

    starts: str
    max_rows: int = 1000
    """More at once end the process."""
    can_start: bool = True

    def open(self) -> Mapping[str, Step]:
        with open(self.starts, "a") as started:
            started.write(f"{os.getpid()}\n")
        if not self.can_start:
            os.abort()
        return {STAGE: self._double}

    def _double(self, rows: pa.Table, counters: Counters) -> pa.Table:
        if rows.num_rows > self.max_rows:
            os.abort()
        if KILL_FIRST in rows.column("value").to_pylist() and len(self.pids) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return double(rows, counters)

    @property
    def pids(self) -> list[int]:
        path = Path(self.starts)
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass(frozen=True)
class TwoInputs:
    """Doubles the values of `value`, then those of `other`, and says which it begins with."""

    def open(self) -> Mapping[str, Step]:
        return {STAGE: double_both}


def double_both(rows: pa.Table, counters: Counters) -> pa.Table:
    for name in ("value", "other"):
        input_started(name)
        double(rows.drop_columns("value").append_column("value", rows.column(name)), counters)
    return rows


@dataclass(frozen=True)
class Writing:
    """Writes to file descriptor 2, as libraries of C do, what a terminal would obey."""

    def open(self) -> Mapping[str, Step]:
        return {STAGE: self._write}

    def _write(self, rows: pa.Table, counters: Counters) -> pa.Table:
        os.write(2, b"\x1b]0;T\x07\n2026-01-01 00:00:00,000 ERROR forged \xff line\n")
        return rows


@dataclass(frozen=True)
class Sizing:
    """Says of each row how many were worked on with it."""

    def open(self) -> Mapping[str, Step]:
        return {STAGE: size}


def size(rows: pa.Table, counters: Counters) -> pa.Table:
    good = rows.column(ERROR).null_count
    return rows.append_column("together", pa.array([good] * rows.num_rows, pa.int64()))


def die_over(attempts: CrashMarks, name: str, *notes: tuple[str, str | None]) -> None:
    """Let a real process die in the middle of an attempt."""
    if (pid := os.fork()) == 0:
        try:
            with attempts.attempt(name):
                for stage, row in notes:
                    attempts.note(name, stage, row)
                os._exit(1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def wait_for_end(pid: int, timeout_s: float = 120.0) -> bool:
    """Wait until a process is gone, or a zombie that its new parent has not collected yet."""
    return wait_until(lambda: _is_gone(pid), timeout_s)


def wait_until(is_so: Callable[[], bool], timeout_s: float = 120.0) -> bool:
    """Wait until something is so; return whether it is."""
    until_s = time.monotonic() + timeout_s
    while not (is_true := is_so()) and time.monotonic() < until_s:
        time.sleep(0.02)
    return is_true


def _is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"
