"""Leave the process of a caller as it was: a notebook, a scheduler's worker, a program."""

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
    """Let the body be the only run of this process, with a scope of its own.

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
        is_callers: The process does not exist for this run alone: restore its signal handlers.

    Raises:
        JobError: Another run is in progress here.
        Interrupted: Ctrl-C in a caller's program has stopped it.
    """
    with one_run_at_a_time(), restore_process_state(signals=is_callers), stopped_by_ctrl_c():
        yield


@contextlib.contextmanager
def restore_process_state(*, signals: bool = False) -> Iterator[None]:
    """Restore after the body what it changes in the process for Ray.

    Restored are environment variables, the levels of loggers and handlers, and warning filters.
    `default_data_context` restores the DataContext, around code that needs Ray Data.

    Args:
        signals: Restore signal handlers, too. Not for the command line, whose handlers leave the
            second signal to the system.
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
    """Give the current DataContext Ray's defaults for the body; then restore its values.

    The rows of a run must not depend on settings of a caller for other datasets, such as
    `max_errored_blocks`, which lets Ray Data drop rows.

    Args:
        ray_stays: Ray continues after the body. Actors hold processors as long as something refers
            to them, and the next run would wait for those. So clear the frames of an exception,
            which a notebook keeps, and collect garbage.
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
    """Clear the local variables of the functions that an exception and its causes have ended.

    Their callers are cleared, too: the loop of Ray Data, on another thread, refers to actors.
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
        with contextlib.suppress(RuntimeError):  # the frame is still executing
            frame.clear()
        frame = frame.f_back


def _restore_environment(before: dict[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _logging_state() -> list[tuple[Any, int]]:
    """Return all loggers and handlers with their levels."""
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
    """The Ray of several runs: how to end it, and whether the first run has started it."""

    stack: contextlib.ExitStack
    is_embedded: bool = False


SHARING: ContextVar[Sharing | None] = ContextVar("SHARING", default=None)


@contextlib.contextmanager
def share_ray() -> Iterator[None]:
    """Let the runs of the body share one Ray: the first `connect` starts it, the end stops it."""
    current_scope().part(health.ConnectedRay)  # the runs find it by `nearest`
    with restore_process_state(), contextlib.ExitStack() as stack:
        token = SHARING.set(Sharing(stack))
        try:
            yield
        finally:
            SHARING.reset(token)


def is_started() -> bool:
    """Tell whether an earlier run in the body of `share_ray` has started a Ray."""
    shared = SHARING.get()
    return shared is not None and shared.is_embedded
