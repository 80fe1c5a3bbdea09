"""A row that ends its process fails with its reason, and costs no other row."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from deadly import (
    EXIT,
    FIELDS,
    GROW,
    HANG,
    KILL,
    KILL_FIRST,
    MAX_BYTES,
    RAISE,
    SEGFAULT,
    STAGE,
    Doubling,
    Sizing,
    TwoInputs,
    Writing,
    double,
    double_both,
    rows_of,
    size,
    wait_for_end,
    wait_until,
)
from support.runs.checkout import PYTHONPATH

from pipeline.core.errors import InfraError
from pipeline.core.failures import Failure, Reason, failures_of
from pipeline.core.figures import Counters
from pipeline.core.schema import ERROR
from pipeline.execution.isolation import child_process
from pipeline.execution.isolation.child_process import Child, ChildResult
from pipeline.execution.isolation.crash_guard import (
    MAX_EXITS_IN_A_ROW,
    MAX_STARTS,
    IsolatedRunner,
    StagePlan,
    fail,
)

pytestmark = pytest.mark.early

CALL_S, START_S = 5.0, 60.0  # a call on a loaded machine may take two
BAD = Failure(Reason.TRUNCATED, "decode", "half of it", "e" * 64, 7)


@contextmanager
def isolating(work: Doubling) -> Iterator[IsolatedRunner]:
    with closing(Child(work, CALL_S, START_S)) as child:
        yield IsolatedRunner(child, lambda stage, row: None, FIELDS)


def plan(rows_at_once: int) -> StagePlan:
    return StagePlan(STAGE, rows_at_once, double)


@pytest.mark.parametrize("one_by_one", [pytest.param(False, marks=pytest.mark.slow), True])
def test_rows_that_end_processes_are_failed_with_their_reasons_and_the_others_are_done(
    one_by_one: bool, tmp_path: Path
) -> None:
    deadly = {3: SEGFAULT, 4: EXIT, 9: HANG, 17: KILL}
    values = [deadly.get(index, index) for index in range(20)]
    rows = rows_of(values, [BAD if index == 5 else None for index in range(20)])
    counters: Counters = {}
    work = Doubling(str(tmp_path / "starts"))
    with isolating(work) as isolated:
        done = isolated.run(plan(5), rows, counters, one_by_one=one_by_one)
    failures = {index: f for index, f in enumerate(failures_of(done)) if f}
    assert {index: (f.reason, f.stage) for index, f in failures.items()} == {
        3: (Reason.NATIVE_CRASH, STAGE),
        4: (Reason.NATIVE_CRASH, STAGE),
        5: (Reason.TRUNCATED, "decode"),
        9: (Reason.TIMEOUT, STAGE),
        17: (Reason.OUT_OF_MEMORY, STAGE),
    }
    assert failures[5] == BAD
    assert failures[4].sha256 == hashlib.sha256(str(EXIT).encode()).hexdigest()
    assert (failures[4].num_bytes, failures[3].sha256) != (None, failures[4].sha256)
    assert "SIGSEGV" in failures[3].message
    assert "exit code 3" in failures[4].message
    assert done.equals(double(fail(rows, failures), {}))
    did = counters[STAGE]
    assert (did["rows_in"], did["rows_out"], did["rows_quarantined"]) == (19, 15, 4)
    assert len(work.pids) == isolated.num_exits + 1
    assert isolated.num_poison == 4
    assert all(wait_for_end(pid) for pid in work.pids)


def test_a_row_that_takes_too_much_memory_is_ended_once_and_says_the_limit(tmp_path: Path) -> None:
    work = Doubling(str(tmp_path / "starts"))
    with closing(Child(work, 60.0, START_S, max_bytes=MAX_BYTES)) as child:
        isolated = IsolatedRunner(child, lambda stage, row: None, FIELDS)
        done = isolated.run(plan(3), rows_of([1, GROW, 3]), {}, one_by_one=True)
    failures = failures_of(done)
    assert [failure and failure.reason for failure in failures] == [
        None,
        Reason.OUT_OF_MEMORY,
        None,
    ]
    assert failures[1] is not None
    assert failures[1].message == "its process took more than 400 MiB"
    assert (isolated.num_exits, len(work.pids)) == (1, 2)


def test_what_a_silent_child_writes_is_one_printable_line_of_the_debug_log(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "pipeline")
    rows = rows_of([0])
    with closing(Child(Writing(), CALL_S, START_S, is_silent=True)) as child:
        assert isinstance(child.call(STAGE, rows), ChildResult)
    assert wait_until(lambda: len(caplog.records) >= 2)
    messages = [record.getMessage() for record in caplog.records]
    assert "child process: \\x1b]0;T\\x07" in messages
    assert all(message.isprintable() for message in messages)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_row_that_ends_its_process_says_over_which_input() -> None:
    values, others = [0, SEGFAULT, 2, 3, KILL], [0, 1, HANG, EXIT, 4]
    rows = rows_of(values).append_column("other", pa.array(others, pa.int64()))
    with closing(Child(TwoInputs(), CALL_S, START_S)) as child:
        isolated = IsolatedRunner(child, lambda stage, row: None, FIELDS)
        done = isolated.run(StagePlan(STAGE, 1, double_both), rows, {}, one_by_one=True)
    messages = [failure and failure.message for failure in failures_of(done)]
    assert messages == [
        None,
        "input 'value': its process was ended by SIGSEGV",
        f"input 'other': no result after {CALL_S:g} s",
        "input 'other': its process ended itself with exit code 3",
        "input 'value': its process was killed, as happens when memory runs out",
    ]


def test_a_batch_that_is_too_much_loses_no_row(tmp_path: Path) -> None:
    rows = rows_of(range(10))
    counters: Counters = {}
    with isolating(Doubling(str(tmp_path / "starts"), max_rows=3)) as isolated:
        done = isolated.run(plan(5), rows, counters, one_by_one=False)
    assert done.equals(double(rows, {}))
    assert counters[STAGE]["rows_out"] == 10
    assert isolated.num_poison == 0


@pytest.mark.parametrize("one_by_one", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_child_that_is_killed_once_costs_no_row(one_by_one: bool, tmp_path: Path) -> None:
    rows, work = rows_of([0, KILL_FIRST, 2, 3]), Doubling(str(tmp_path / "starts"))
    with isolating(work) as isolated:
        done = isolated.run(plan(2), rows, {}, one_by_one=one_by_one)
    assert done.equals(double(rows, {}))
    assert (len(work.pids), isolated.num_exits) == (2, 1)


def test_batches_are_those_of_the_stage_itself() -> None:
    """It takes so many rows that have not failed: of a batch of another size digits may differ."""
    rows = rows_of(range(11), [BAD if index in (1, 2, 6) else None for index in range(11)])
    with closing(Child(Sizing(), CALL_S, START_S)) as child:
        isolated = IsolatedRunner(child, lambda stage, row: None, FIELDS)
        done = isolated.run(StagePlan(STAGE, 3, size), rows, {}, one_by_one=False)
    good = done.filter(done.column(ERROR).is_null())
    assert good.column("together").to_pylist() == [3] * 6 + [2] * 2
    assert done.column("row_id").equals(rows.column("row_id"))


@pytest.mark.slow
def test_what_works_is_noted_once_its_child_is_there(tmp_path: Path) -> None:
    notes: list[tuple[str, str | None]] = []
    for can_start in (False, True):
        work = Doubling(str(tmp_path / "starts"), can_start=can_start)
        with closing(Child(work, CALL_S, START_S)) as child:
            isolated = IsolatedRunner(child, lambda stage, row: notes.append((stage, row)), FIELDS)
            for one_by_one in (True, False):
                isolated.run(plan(2), rows_of(range(2)), {}, one_by_one=one_by_one)
    assert notes == [(STAGE, "r0"), (STAGE, "r1"), (STAGE, None)]


@pytest.mark.slow
def test_what_kills_every_child_is_given_up_after_bounded_tries(tmp_path: Path) -> None:
    work = Doubling(str(tmp_path / "starts"))
    with isolating(work) as isolated:
        done = isolated.run(plan(64), rows_of([SEGFAULT] * 50 + [1]), {}, one_by_one=False)
    assert done.column(ERROR).to_pylist() == [Reason.NATIVE_CRASH] * 51
    assert "given up" in done.column("message")[50].as_py()
    assert len(work.pids) == isolated.num_exits == MAX_EXITS_IN_A_ROW


@pytest.mark.slow
def test_a_slice_of_hangs_takes_no_longer_than_a_few(tmp_path: Path) -> None:
    values = [index if index % 2 else HANG for index in range(20)]
    work = Doubling(str(tmp_path / "starts"))
    with isolating(work) as isolated:
        errors = isolated.run(plan(1), rows_of(values), {}, one_by_one=True).column(ERROR)
    tried = [Reason.TIMEOUT, None] * 7 + [Reason.TIMEOUT]
    assert errors.to_pylist() == tried + [Reason.NATIVE_CRASH] * 5
    assert len(work.pids) == 8


def test_a_child_that_cannot_start_is_not_started_for_ever(tmp_path: Path) -> None:
    work = Doubling(str(tmp_path / "starts"), can_start=False)
    with isolating(work) as isolated:
        done = isolated.run(plan(4), rows_of(range(12)), {}, one_by_one=False)
    assert done.column(ERROR).to_pylist() == [Reason.NATIVE_CRASH] * 12
    assert len(work.pids) == MAX_STARTS


class Steps:
    """The end of a pipe from which a message comes each 0.6 s, and the clock beside it."""

    def __init__(self, messages: list[object]) -> None:
        self.messages, self.now_s, self.next_s = messages, 0.0, 0.6

    def send(self, message: object) -> None:
        pass

    def poll(self, timeout_s: float) -> bool:
        self.now_s = min(self.now_s + timeout_s, self.next_s)
        return self.now_s == self.next_s

    def recv(self) -> object:
        self.next_s += 0.6
        return self.messages.pop(0)


def test_each_step_of_a_child_begins_its_limit_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, child = Steps([child_process._Alive()] * 3 + ["done"]), Child(Writing(), 1.0, 60.0)
    monkeypatch.setattr(child_process, "monotonic", lambda: pipe.now_s)
    monkeypatch.setattr(child, "_pipe", pipe)
    monkeypatch.setattr(child, "_process", SimpleNamespace(poll=lambda: None))
    monkeypatch.setattr(child, "close", lambda: None)
    assert child._ask("rows", 1.0) == "done"


def test_what_the_work_raises_is_raised_and_no_rows_need_no_child(tmp_path: Path) -> None:
    work = Doubling(str(tmp_path / "starts"))
    with isolating(work) as isolated:
        assert isolated.run(plan(4), rows_of([]), {}, one_by_one=False).num_rows == 0
        assert not work.pids
        with pytest.raises(InfraError, match="the store is away"):
            isolated.run(plan(4), rows_of([1, RAISE]), {}, one_by_one=False)
    assert all(wait_for_end(pid) for pid in work.pids)


def test_a_child_dies_with_its_parent_even_when_it_hangs(tmp_path: Path) -> None:
    work = Doubling(str(tmp_path / "starts"))
    code = (
        "import sys\n"
        "from deadly import HANG, STAGE, Doubling, rows_of\n"
        "from pipeline.execution.isolation.child_process import Child\n"
        "Child(Doubling(sys.argv[1]), 600.0, 600.0).call(STAGE, rows_of([HANG]))\n"
    )
    path = os.pathsep.join([PYTHONPATH, *sys.path])
    parent = subprocess.Popen(
        [sys.executable, "-c", code, work.starts], env={**os.environ, "PYTHONPATH": path}
    )
    while not work.pids and parent.poll() is None:
        with pytest.raises(subprocess.TimeoutExpired):
            parent.wait(timeout=0.05)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert all(wait_for_end(pid) for pid in work.pids)
