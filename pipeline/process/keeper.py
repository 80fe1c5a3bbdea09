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
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NoReturn

from pipeline.process.interrupts import STOPS, handle_signals
from pipeline.process.last_words import say_last_words
from pipeline.process.parent_death import die_with
from pipeline.process.will import Will, leave, set_own

_MEANS = {
    "SIGKILL": "as happens when memory runs out",
    "SIGXFSZ": "a file grew beyond what ulimit -f allows",
    "SIGBUS": "as happens when /dev/shm is full",
}

Lost = Callable[[int, Mapping[str, Any]], NoReturn]
"""Says how a child ended, by its exit code (minus a signal) and its will, and ends the parent."""


def keep(work: Callable[[], NoReturn], lost: Lost) -> NoReturn:
    """Fork, work in the child, which ends by `exit_with`, and end as it does.

    Call it before anything is imported that starts threads or takes long.
    """
    will, parent = Will(), os.getpid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if ignored, nobody learns how a child ended
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    child = os.fork()
    if child == 0:
        die_with(parent)
        set_own(will)
        handle_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        work()
    _pass_signals_to(child, will)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _, status = os.waitpid(child, 0)
    for number in STOPS:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    code, left = os.waitstatus_to_exitcode(status), will.read()
    if "code" not in left:
        set_own(will)
        lost(code, left)
    os._exit(left["code"])


def exit_with(code: int) -> NoReturn:
    """End the process, whose result and errors are said; see `say_last_words` for its code."""
    seen = say_last_words(code)
    leave(code=seen)
    os._exit(seen)


def _pass_signals_to(child: int, will: Will) -> None:
    def on_signal(number: int, frame: FrameType | None) -> None:
        if will.is_deaf:
            return
        if not will.signal:
            will.signal = number
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
