"""Make the thread that runs a job stop: signals and timers become one KeyboardInterrupt.

A KeyboardInterrupt, for nothing else gets through: any other exception that a signal handler raises
while Ray waits is printed and forgotten, and code that expects failures would take it for one.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType

from pipeline.core.errors import Interrupted, PipelineError, Stopped
from pipeline.core.printable import clean_message
from pipeline.process.run_scope import current_scope, new_scope
from pipeline.process.shared_notes import current_notes

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""The signals that stop what runs."""
_WAKE = signal.SIGALRM


@dataclass
class _Stop:
    """Whether the current scope is to stop."""

    reason: PipelineError | None = None
    num_deferring: int = 0
    """How many bodies of `defer_stops` there are."""
    thread: int | None = None
    """The thread that may be interrupted, if there is one."""
    lock: threading.Lock = field(default_factory=threading.Lock)


def _stop() -> _Stop:
    return current_scope().part(_Stop)


def handle_signals() -> None:
    """Let the first signal of STOPS stop what runs; later ones are the parent's (`keeper`).

    `nohup` and shells ignore some of them for a process that is to outlive its terminal.
    """
    for number in STOPS:
        if number in (signal.SIGTERM, signal.SIGINT) or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    stop = _stop()
    if stop.reason is None:  # otherwise it is stopping already, and must not be disturbed at that
        stop.reason = Stopped(f"{signal.Signals(number).name} received")
        if not stop.num_deferring:
            raise KeyboardInterrupt


@contextlib.contextmanager
def stopped_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C stop what runs in the body of a caller's program; a second one is Python's again.

    Only on the main thread, and if the caller has no handler of its own. Others are not touched.

    Raises:
        Interrupted: It came.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    has_come = False
    stop = _stop()
    before = stop.reason

    def on_ctrl_c(number: int, frame: FrameType | None) -> None:
        nonlocal has_come
        has_come = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _on_signal(number, frame)

    signal.signal(signal.SIGINT, on_ctrl_c)
    try:
        yield
    except Stopped as error:
        if not has_come:
            raise
        interrupted = Interrupted(str(error))
        interrupted.report = error.report
        raise interrupted from None
    else:
        if has_come:  # while what may not be left half done was done
            raise Interrupted("interrupted when the run was over; its report is stored")
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if has_come:
            stop.reason = before  # the program may go on


def ignore_stops() -> None:
    """Ignore signals from now on: the work is done and only has to be shown."""
    if (notes := current_notes()) is not None:
        notes.ignores_signals = True
    if threading.current_thread() is threading.main_thread():
        for number in STOPS:
            if signal.getsignal(number) is _on_signal:
                signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def defer_stops() -> Iterator[None]:
    """Let a first signal, or `interrupt`, be noted only: the body is to be done as a whole.

    The supervisor of a run limits its time, and a second signal ends the process, as always.
    """
    stop = _stop()
    stop.num_deferring += 1
    try:
        yield
    finally:
        stop.num_deferring -= 1


def reason() -> PipelineError | None:
    """Return why this process is to stop; None if it is not."""
    return _stop().reason


def as_ours(error: BaseException) -> PipelineError:
    """Return an error with an exit code: why this process stops, or 1 for what is unexpected."""
    if isinstance(error, PipelineError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return reason() or Stopped("interrupted")
    return PipelineError(clean_message(f"{type(error).__name__}: {error}"))


@contextlib.contextmanager
def stoppable_body() -> Iterator[None]:
    """Let `interrupt` end the body; it then ends with the reason as its error, as by a signal.

    Raises:
        PipelineError: The reason.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(_WAKE, _on_wake) if is_main else None
    stop = _stop()
    with stop.lock:
        stop.thread = threading.get_ident()
    try:
        yield
    except KeyboardInterrupt:
        if stop.reason is None:  # Ctrl-C without `handle_signals`
            raise
        raise stop.reason from None
    finally:
        with stop.lock:
            stop.thread = None
        if is_main:
            signal.signal(_WAKE, before or signal.SIG_DFL)


def interrupt(why: PipelineError) -> None:
    """End what is `stoppable_body`, if anything is; the first reason counts."""
    stop = _stop()
    with stop.lock:
        if stop.reason is not None or stop.thread is None:
            return
        stop.reason = why
        if stop.thread == threading.main_thread().ident:
            signal.pthread_kill(stop.thread, _WAKE)  # also ends what it waits for
        else:
            target, error = ctypes.c_ulong(stop.thread), ctypes.py_object(KeyboardInterrupt)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(target, error)


@contextlib.contextmanager
def scope_of_run() -> Iterator[None]:
    """Give the body a scope of its own; what stops the body also stops the scope around it."""
    around = _stop()
    with new_scope():
        inside = _stop()
        try:
            yield
        finally:
            around.reason = around.reason or inside.reason


def _on_wake(number: int, frame: FrameType | None) -> None:
    if not _stop().num_deferring:
        raise KeyboardInterrupt
