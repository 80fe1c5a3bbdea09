"""The process that a run is in may be a caller's: a notebook, a scheduler's worker, a program."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any

from pipeline.core.errors import JobError
from pipeline.execution import health
from pipeline.process.interrupts import STOPS, scope_of_run, stopped_by_ctrl_c
from pipeline.process.run_scope import current_scope

_running = threading.Lock()
_SIGNALS = (*STOPS, signal.SIGALRM)


@contextlib.contextmanager
def one_run_at_a_time() -> Iterator[None]:
    """Let the body be the only run of this process, with a life of its own.

    Raises:
        JobError: Another run is in progress here.
    """
    if not _running.acquire(blocking=False):
        raise JobError(
            "another run is in progress in this process: wait for its end, or use another process"
        )
    try:
        with scope_of_run():
            yield
    finally:
        _running.release()


@contextlib.contextmanager
def one_run(*, is_callers: bool) -> Iterator[None]:
    """Let the body be the only run of this process, and leave the process as it was.

    Args:
        is_callers: The process is not there for this run alone: its signal handlers are restored.

    Raises:
        JobError: Another run is in progress here.
        Interrupted: Ctrl-C in a caller's program has stopped it.
    """
    with one_run_at_a_time(), restore_process_state(signals=is_callers), stopped_by_ctrl_c():
        yield


@contextlib.contextmanager
def restore_process_state(*, signals: bool = False) -> Iterator[None]:
    """Restore after the body what it changes of the process for Ray's sake.

    Environment variables, levels of loggers and of their handlers, and warning filters. The
    DataContext is restored by `default_data_context`, around what needs Ray Data.

    Args:
        signals: Signal handlers, too. Not those of the command line, which after a first signal
            leave the next one to the system.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(_restore_environment, dict(os.environ))
        stack.callback(_restore_logging, _logging_state())
        stack.enter_context(warnings.catch_warnings())
        if signals and threading.current_thread() is threading.main_thread():
            stack.callback(
                _restore_handlers, {number: signal.getsignal(number) for number in _SIGNALS}
            )
        yield


@contextlib.contextmanager
def default_data_context(*, ray_stays: bool = False) -> Iterator[Any]:
    """Give the current DataContext Ray's defaults for the body, and then its own values again.

    A run's rows must not depend on what a caller has set for other datasets, such as
    `max_errored_blocks`, by which Ray Data drops rows.

    Args:
        ray_stays: Ray goes on after the body. Actors hold processors for as long as something
            refers to them, and a next run would wait for those: the frames of an exception are
            cleared, which a notebook keeps, and what refers to itself is collected.
    """
    from ray.data import DataContext

    values = vars(DataContext.get_current())
    before = dict(values)
    values.update(vars(DataContext()))
    try:
        yield
    except BaseException as error:
        if ray_stays:
            _clear_frames(error)
        raise
    finally:
        values.clear()
        values.update(before)
        if ray_stays:
            gc.collect()


def _clear_frames(error: BaseException) -> None:
    """Clear the variables of the functions that an exception, and its causes, have ended.

    Also of those that called them: Ray Data's loop is on another thread, and refers to actors.
    """
    seen: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        cause = left.pop()
        if cause is not None and cause not in seen:
            seen.append(cause)
            for frame, _ in traceback.walk_tb(cause.__traceback__):
                _clear_with_callers(frame)
            left += [cause.__cause__, cause.__context__]


def _clear_with_callers(frame: FrameType | None) -> None:
    while frame is not None:
        with contextlib.suppress(RuntimeError):  # it still runs
            frame.clear()
        frame = frame.f_back


def _restore_environment(before: dict[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _logging_state() -> list[tuple[Any, int]]:
    """Return loggers and handlers, each with its level."""
    named = logging.Logger.manager.loggerDict.values()
    loggers: list[logging.Logger] = [
        logging.root,
        *(logger for logger in named if isinstance(logger, logging.Logger)),
    ]
    handlers = [(handler, handler.level) for logger in loggers for handler in logger.handlers]
    return [*((logger, logger.level) for logger in loggers), *handlers]


def _restore_logging(before: list[tuple[Any, int]]) -> None:
    for target, level in before:
        if target.level != level:
            target.setLevel(level)


def _restore_handlers(before: dict[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@dataclass
class Sharing:
    """The Ray of several runs: what ends it, and whether the first of them has started it."""

    stack: contextlib.ExitStack
    is_embedded: bool = False


SHARING: ContextVar[Sharing | None] = ContextVar("SHARING", default=None)


@contextlib.contextmanager
def share_ray() -> Iterator[None]:
    """Let the runs of the body share one Ray: the first `connect` starts it, leaving stops it."""
    current_scope().part(health.ConnectedRay)  # which the runs find
    with restore_process_state(), contextlib.ExitStack() as stack:
        token = SHARING.set(Sharing(stack))
        try:
            yield
        finally:
            SHARING.reset(token)


def is_started() -> bool:
    """Tell whether an earlier run of the body of `share_ray` has started a Ray."""
    shared = SHARING.get()
    return shared is not None and shared.is_embedded
