"""Signals stop what runs, once; what is ignored from the start stays ignored."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from pipeline.process.interrupts import STOPS

_STOPPED = """
import os, signal, sys
from pipeline.process.interrupts import handle_signals, reason
first, second, ignored = (int(each) for each in sys.argv[1:])
if ignored:
    signal.signal(ignored, signal.SIG_IGN)
handle_signals()
try:
    os.kill(os.getpid(), first)
except KeyboardInterrupt:
    print(reason(), flush=True)
os.kill(os.getpid(), second)
print("lives")
"""


def stopped(first: int, second: int, ignored: int = 0) -> tuple[int, list[str]]:
    command = [sys.executable, "-c", _STOPPED, *(str(int(n)) for n in (first, second, ignored))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("number", STOPS)
def test_the_first_signal_stops_and_the_second_ends_at_once(number: signal.Signals):
    assert stopped(number, signal.SIGTERM) == (-signal.SIGTERM, [f"{number.name} received"])


def test_a_terminal_that_closes_says_so_twice_and_that_is_one_stop():
    assert stopped(signal.SIGHUP, signal.SIGHUP) == (0, ["SIGHUP received", "lives"])


def test_under_nohup_the_end_of_the_terminal_stops_nothing():
    assert stopped(signal.SIGHUP, signal.SIGHUP, signal.SIGHUP) == (0, ["lives"])
