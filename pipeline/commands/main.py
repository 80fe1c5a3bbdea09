"""The entry point of the `pipeline` command: every error ends in one line and an exit code.

`--debug` adds the traceback. A child process does the work; it is forked, and handles signals,
before anything else is imported.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from pipeline.core.errors import InfraError, JobError, PipelineError, Stopped
from pipeline.process import terminal
from pipeline.process.interrupts import ignore_stops, reason
from pipeline.process.keeper import exit_with, how_it_ended, keep
from pipeline.process.screen import write_line
from pipeline.process.terminal import show_error

log = logging.getLogger(__name__)
_GC_THRESHOLDS = (50_000, 20, 20)
"""Imports allocate much and free nothing; Python's thresholds make importing Ray a fifth slower."""
_INTERRUPTED = 130
"""Exit code of the command line parser after a KeyboardInterrupt."""


def main() -> NoReturn:
    """Entry point of the `pipeline` command."""
    keep(_work, _lost)


def _work() -> NoReturn:
    try:
        terminal.hold_streams()  # before logging takes hold of a stream
        gc.set_threshold(*_GC_THRESHOLDS)
        code = _guard(_command)
    except KeyboardInterrupt as error:  # between two steps, or while an error was shown
        code = _say(error)
    end(code)


def end(code: int) -> NoReturn:
    """End the process with a code, or with 7 if the result could not be written to stdout."""
    ignore_stops()
    # A normal exit would take most of a second to unload Ray and Arrow, or minutes if a thread
    # waits for a store or cluster that is gone.
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    if (trouble := terminal.stdout_trouble()) is not None:
        lost = f"cannot write the result to stdout ({trouble.strerror})"
        code = code or InfraError.exit_code
        write_line(f"error: {lost}; the work of the command is kept", logging.ERROR)
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    logging.shutdown()
    exit_with(code)


def _command(**named: Any) -> Any:
    from pipeline.commands.app import app

    return app(**named)


def _guard(command: Callable[..., Any]) -> int:
    """Run a command; turn any error into one line and an exit code."""
    try:
        code: int = command(standalone_mode=False) or 0
    except BaseException as error:  # noqa: BLE001  # every error ends in one line
        return _say(error)
    return _say(KeyboardInterrupt()) if code == _INTERRUPTED else code


def _say(error: BaseException) -> int:
    """Show how a command ended; return its exit code."""
    if isinstance(error, SystemExit) and isinstance(error.code, int) and not reason():
        return error.code
    if isinstance(error, PipelineError):
        return show_error(error, error.exit_code)
    # A library may have replaced the interrupt by an error of its own.
    if reason() is not None or isinstance(error, KeyboardInterrupt):
        why = reason() or Stopped("interrupted")
        stopped = type(why)(f"{why}; run again to continue")
        stopped.report = getattr(error, "report", None)
        return show_error(stopped, why.exit_code)
    if hasattr(error, "format_message"):  # an error of the parser
        from pipeline.commands.app import hint_of

        message = error.format_message() + hint_of(error)
        return show_error(JobError(message), JobError.exit_code)
    return show_error(error, PipelineError.exit_code)


def _lost(code: int, left: Mapping[str, Any]) -> NoReturn:
    """End a command whose process did not end by `end`, by its exit code and its notes."""
    from pipeline.process.screen import log_to_stderr

    terminal.hold_streams()
    log_to_stderr(logging.INFO)
    words = how_it_ended(code)
    if code > 0 and left.get("has_ray"):
        how = f"Ray ended the process of the command ({words}), as it does when its raylet is gone"
    else:
        how = f"the process of the command ended ({words})"
    error = InfraError(f"{how}; run again to continue")
    if left.get("ray_folders"):
        from pipeline.execution.embedded.ray_folder import keep_only_logs

        keep_only_logs([Path(folder) for folder in left["ray_folders"]])
    if left.get("run"):
        from pipeline.runs.ending import lost_run

        try:
            error = lost_run.end(left["run"], how)
        except Exception as further:  # noqa: BLE001  # the error below is shown in any case
            log.warning("no report: %s", further)
    end(show_error(error, error.exit_code))
