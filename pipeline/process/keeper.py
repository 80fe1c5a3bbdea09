"""The two processes of a command: a small parent that stays as it began, and a child that works.

Ray's core ends its process from C++ where it finds no raylet, and the kernel ends one where memory
runs out. The parent then still says one line, with an exit code. It passes on the first signal;
a terminal or a scheduler may send it to both, which the child does not mind. A second one, which
the parent alone counts, ends the child at once.
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
"""Exit codes after which the command line is printed that goes on."""
_MEANS = {
    "SIGKILL": "as happens when memory runs out",
    "SIGXFSZ": "a file grew beyond what ulimit -f allows",
    "SIGBUS": "as happens when /dev/shm is full",
}
Lost = Callable[[int, Mapping[str, Any]], NoReturn]
"""Says how a child ended, by its exit code (minus a signal) and its notes, and ends the parent."""


def prepare_last_lines(command: str | None, ok_exits: frozenset[int]) -> None:
    """Note what the last lines need; the command or, if it was killed, its parent prints them.

    Args:
        command: The command line that continues it, printable; None: there is none.
        ok_exits: Exit codes for which the process ends with 0.
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
            write_line(f"exit 0 instead of {code}, as --ok-exit says")
        if again:
            write_line(f"the same command again is safe, and keeps what is done: {again}")
        if is_ok or again:
            sys.stderr.flush()
    return 0 if is_ok else code


def keep(work: Callable[[], NoReturn], lost: Lost) -> NoReturn:
    """Fork, work in the child, which ends by `exit_with`, and end as it does.

    Call it before anything is imported that starts threads or takes long.
    """
    notes, parent = SharedNotes(), os.getpid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if ignored, nobody learns how a child ended
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
    """End the process, whose result and errors are said; see `print_last_lines` for its code."""
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
        elif number != signal.SIGHUP:  # which a terminal that closes and its shell send
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            os._exit(128 + number)  # as process 1 of a container it does not end by a signal

    for number in STOPS:
        if number in (signal.SIGTERM, signal.SIGINT) or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, on_signal)


def how_it_ended(code: int) -> str:
    """Say what an exit code means, a negative one being minus a signal."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, {_MEANS[name]}" if name in _MEANS else name
