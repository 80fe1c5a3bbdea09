"""The two processes of a command: a small parent that imports nothing more, and a child that works.

Ray's core ends its process from C++ if it finds no raylet, and the kernel ends a process if memory
runs out. The parent then still prints one line and returns an exit code. It passes on the first
signal; a terminal or a scheduler may send it to both, which does no harm. A second signal, which
only the parent counts, ends the child at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NoReturn

from pipeline.core.errors import InfraError, Stopped
from pipeline.process.interrupts import STOPS, handle_signals
from pipeline.process.parent_death import die_with
from pipeline.process.screen import write_line
from pipeline.process.shared_notes import SharedNotes, current_notes, note, set_current_notes

_GOES_ON = (Stopped.exit_code, InfraError.exit_code)
"""Exit codes after which the command line that continues the run is printed."""
_MEANS = {
    "SIGKILL": "as happens when memory runs out",
    "SIGXFSZ": "a file grew beyond what ulimit -f allows",
    "SIGBUS": "as happens when /dev/shm is full",
}
Lost = Callable[[int, Mapping[str, Any]], NoReturn]
"""Reports how a child ended, by its exit code (minus a signal) and notes; ends the parent."""


def prepare_last_lines(command: str | None, ok_exits: frozenset[int]) -> None:
    """Note the content of the last lines; the command or, if it is killed, its parent prints them.

    Args:
        command: The printable command line that continues the run; None: there is none.
        ok_exits: Exit codes that become 0.
    """
    note(again=command, ok_exits=sorted(ok_exits), goes_on=list(_GOES_ON))


def print_last_lines(code: int) -> int:
    """Print the last lines; return the exit code with which the process ends."""
    notes = current_notes()
    left = notes.read() if notes is not None else {}
    is_ok = code in left.get("ok_exits", ())
    again = left.get("again") if code in left.get("goes_on", ()) else None
    with contextlib.suppress(OSError, ValueError):
        if is_ok:
            write_line(f"exiting 0 instead of {code} (--ok-exit)")
        if again:
            write_line(f"finished work is kept; to continue, run: {again}")
        if is_ok or again:
            sys.stderr.flush()
    return 0 if is_ok else code


def keep(work: Callable[[], NoReturn], lost: Lost) -> NoReturn:
    """Fork; work in the child, which ends by `exit_with`; end with the same exit code.

    Call this before importing anything that starts threads or takes long.
    """
    notes, parent = SharedNotes(), os.getpid()
    signal.signal(
        signal.SIGCHLD, signal.SIG_DFL
    )  # if it is ignored, the exit code of a child is lost
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    child = os.fork()
    if child == 0:
        die_with(parent)
        set_current_notes(notes)
        handle_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        work()
    _pass_signals_to(child, notes)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _, status = os.waitpid(child, 0)
    for number in STOPS:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    code, left = os.waitstatus_to_exitcode(status), notes.read()
    if "code" not in left:
        set_current_notes(notes)
        lost(code, left)
    os._exit(left["code"])


def exit_with(code: int) -> NoReturn:
    """End the process after its result and errors were shown; `print_last_lines` gives the code."""
    seen = print_last_lines(code)
    note(code=seen)
    os._exit(seen)


def _pass_signals_to(child: int, notes: SharedNotes) -> None:
    def on_signal(number: int, frame: FrameType | None) -> None:
        if notes.ignores_signals:
            return
        if not notes.signal:
            notes.signal = number
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
        elif number != signal.SIGHUP:  # sent twice by a terminal that closes: by it and its shell
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            os._exit(128 + number)  # process 1 of a container does not end by a signal

    for number in STOPS:
        if number in (signal.SIGTERM, signal.SIGINT) or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, on_signal)


def how_it_ended(code: int) -> str:
    """Describe an exit code; a negative one is minus a signal."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, {_MEANS[name]}" if name in _MEANS else name
