"""The two processes of a command stop as one, and the parent reports how a lost child ended."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from support import HANG_S
from support.runs.cli import left_by, survivors

from pipeline.process.interrupts import STOPS

ENDS_S = 30
PROGRAM = """
import os, select, signal, sys, time
from pipeline.process.interrupts import ignore_stops, reason
from pipeline.process.keeper import exit_with, keep
from pipeline.process.shared_notes import note

how = sys.argv[1]
ignored = int(sys.argv[2])

def say(*words):
    print(*words, flush=True)

def work():
    note(run={"name": "first"}, taken_back=1)
    note(run={"name": "second"}, taken_back=None)
    if how == "done":
        ignore_stops()
    try:
        say(os.getpid())
        # A signal just before a read that waits is noticed after it: so no wait is long.
        while not select.select([sys.stdin], [], [], 0.1)[0]:
            pass
        sys.stdin.readline()
        say("read")
    except KeyboardInterrupt:
        say(reason())
    if how == "drains":
        sys.stdin.readline()
    if how == "hangs":
        time.sleep(60)
    if how == "exits":
        os._exit(1)
    exit_with(6 if reason() else 0)

def lost(code, left):
    say("lost", code, left)
    os._exit(7)

if ignored:
    signal.signal(ignored, signal.SIG_IGN)
keep(work, lost)
"""
LEFT = "{'run': {'name': 'second'}, 'taken_back': None}"


class Command:
    """The two processes, in a session of their own."""

    def __init__(self, how: str = "", ignored: int = 0, stdin: int = subprocess.PIPE) -> None:
        self.parent = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, how, str(int(ignored))],
            stdin=stdin,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.parent.stdout is not None
        self.child = psutil.Process(int(self.parent.stdout.readline()))

    def line(self) -> str:
        assert self.parent.stdout is not None
        return self.parent.stdout.readline().rstrip()

    def ended(self, stdin: str | None = None) -> tuple[int, list[str]]:
        """The exit code of the parent and what else was said, when both have ended."""
        if stdin is None:  # the end of its input would be something to read
            self.parent.wait(ENDS_S)
        output, _ = self.parent.communicate(stdin, timeout=ENDS_S)
        return self.parent.returncode, output.splitlines()


@contextmanager
def command(how: str = "", ignored: int = 0) -> Iterator[Command]:
    made = Command(how, ignored)
    try:
        yield made
    finally:
        made.parent.kill()
        made.parent.communicate()


@pytest.mark.parametrize(
    ("number", "to"),
    [
        *((number, "parent") for number in STOPS),
        *((STOPS[0], to) for to in ("child", "both")),
        *(
            pytest.param(number, to, marks=pytest.mark.slow)
            for number in STOPS[1:]
            for to in ("child", "both")
        ),
    ],
)
def test_a_signal_stops_once_whoever_gets_it(number: signal.Signals, to: str):
    with command() as made:
        if to == "both":  # as Ctrl-C does
            os.killpg(made.parent.pid, number)
        else:
            (made.parent if to == "parent" else made.child).send_signal(number)
        assert made.ended() == (6, [f"{number.name} received"])


def test_a_second_signal_ends_both_at_once():
    with command("hangs") as made:
        made.parent.send_signal(signal.SIGINT)
        assert made.line() == "SIGINT received"
        made.parent.send_signal(signal.SIGTERM)
        assert made.ended() == (-signal.SIGTERM, [])
        assert survivors([made.child]) == []


def test_a_terminal_that_closes_says_so_twice_and_that_is_one_stop():
    with command("drains") as made:
        made.parent.send_signal(signal.SIGHUP)
        assert made.line() == "SIGHUP received"
        # Two signals in a row may arrive as one; the child ends only after the second one was sent.
        for process in (made.parent, made.child):
            process.send_signal(signal.SIGHUP)
        assert made.ended("a line\n") == (6, [])


def test_under_nohup_the_end_of_the_terminal_stops_nothing():
    with command(ignored=signal.SIGHUP) as made:
        os.killpg(made.parent.pid, signal.SIGHUP)
        assert made.ended("a line\n") == (0, ["read"])


def test_when_the_work_is_done_no_signal_stops_what_shows_it():
    with command("done") as made:
        for _ in range(3):
            os.killpg(made.parent.pid, signal.SIGTERM)
        assert made.ended("a line\n") == (0, ["read"])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_how_a_killed_child_ended_and_what_it_left_is_known(number: signal.Signals):
    with command() as made:
        made.child.send_signal(number)
        assert made.ended() == (7, [f"lost {-number} {LEFT}"])


@pytest.mark.parametrize("ignored", [0, signal.SIGCHLD])
def test_a_child_that_exits_by_another_way_than_its_own_is_lost(ignored: int):
    with command("exits", ignored) as made:
        assert made.ended("a line\n") == (7, ["read", f"lost 1 {LEFT}"])


def test_a_child_does_not_outlive_a_parent_that_is_killed():
    with command() as made:
        made.parent.kill()
        assert survivors([made.child]) == []


def test_where_the_kernel_does_not_tie_processes_a_thread_does():
    program = (
        "import os, sys, time; from pipeline.process import parent_death;"
        "sys.platform = 'darwin'; parent_death._LOOK_S = 0.01;"
        "parent_death.die_with(os.getppid()); print(os.getpid(), flush=True); time.sleep(60)"
    )
    starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])"
    child, _ = left_by(starts)
    assert survivors([child]) == []


def test_a_terminal_is_read_and_ctrl_c_there_is_one_stop():
    for typed, end in ((b"a line\n", b"read\r\n"), (b"\x03", b"SIGINT received\r\n")):
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(sys.executable, [sys.executable, "-c", PROGRAM, "", "0"])
        output = os.read(terminal, 1024)  # the child works
        os.write(terminal, typed)
        while end not in output:
            output += os.read(terminal, 1024)
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
        assert os.waitstatus_to_exitcode(status) == (6 if b"SIGINT" in end else 0)


LOST = """
import os
from pipeline.process.keeper import exit_with, keep
from pipeline.process.keeper import prepare_last_lines

def work():
    prepare_last_lines("pipeline run it", frozenset({7}))
    os._exit(1)

keep(work, lambda code, left: exit_with(7))
"""


def test_the_parent_of_a_lost_child_prints_its_last_lines_and_ends_with_its_code():
    done = subprocess.run(
        [sys.executable, "-c", LOST], capture_output=True, text=True, timeout=HANG_S, check=True
    )
    assert done.stderr.splitlines() == [
        "exiting 0 instead of 7 (--ok-exit)",
        "finished work is kept; to continue, run: pipeline run it",
    ]
