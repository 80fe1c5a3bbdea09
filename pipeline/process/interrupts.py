"""Stop the thread that runs a job: signals and timers become one KeyboardInterrupt.

It is a KeyboardInterrupt because nothing else gets through: any other exception that a signal
handler raises while Ray waits is printed and forgotten, and code that expects failures would take
it for a failure.
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
"""The signals that stop a run."""
_WAKE = signal.SIGALRM


@dataclass
class _Stop:
    """Whether the current scope is to stop."""

    reason: PipelineError | None = None
    num_deferring: int = 0
    """Number of bodies of `defer_stops` in progress."""
    thread: int | None = None
    """The thread that may be interrupted, if there is one."""
    lock: threading.Lock = field(default_factory=threading.Lock)


def _stop() -> _Stop:
    return current_scope().part(_Stop)


def handle_signals() -> None:
    """Let the first signal of STOPS stop the run; the parent handles later ones (`keeper`).

    `nohup` and shells ignore some signals for a process that is to outlive its terminal.
    """
    for number in STOPS:
        if number in (signal.SIGTERM, signal.SIGINT) or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    stop = _stop()
    if stop.reason is None:  # otherwise it is stopping already, undisturbed
        stop.reason = Stopped(f"{signal.Signals(number).name} received")
        if not stop.num_deferring:
            raise KeyboardInterrupt


@contextlib.contextmanager
def stopped_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C stop the run in the body, in a caller's program; a second one acts as in Python.

    This applies on the main thread, and only if the caller has no handler of its own.

    Raises:
        Interrupted: Ctrl-C came.
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
        if has_come:  # during a step that must not be interrupted
            raise Interrupted("interrupted when the run was over; its report is stored")
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if has_come:
            stop.reason = before  # the program may continue


def ignore_stops() -> None:
    """Ignore signals from now on: the work is done, and only the result is to be shown."""
    if (notes := current_notes()) is not None:
        notes.ignores_signals = True
    if threading.current_thread() is threading.main_thread():
        for number in STOPS:
            if signal.getsignal(number) is _on_signal:
                signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def defer_stops() -> Iterator[None]:
    """Only note a first signal or `interrupt` during the body, which must not be interrupted.

    The supervisor of a run limits its time, and a second signal ends the process as always.
    """
    stop = _stop()
    stop.num_deferring += 1
    try:
        yield
    finally:
        stop.num_deferring -= 1


def reason() -> PipelineError | None:
    """Return why this process is to stop; None if it is not to stop."""
    return _stop().reason


def as_ours(error: BaseException) -> PipelineError:
    """Return an error with an exit code: the reason of a stop, or 1 for an unexpected error."""
    if isinstance(error, PipelineError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return reason() or Stopped("interrupted")
    return PipelineError(clean_message(f"{type(error).__name__}: {error}"))


@contextlib.contextmanager
def stoppable_body() -> Iterator[None]:
    """Let `interrupt` end the body, with the reason as its error, as a signal would.

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
    """End the current `stoppable_body`, if there is one; the first reason counts."""
    stop = _stop()
    with stop.lock:
        if stop.reason is not None or stop.thread is None:
            return
        stop.reason = why
        if stop.thread == threading.main_thread().ident:
            signal.pthread_kill(stop.thread, _WAKE)  # also ends a wait
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
