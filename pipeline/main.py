"""Entry point of the `pipeline` command: signals, and one line and one exit code for every error.

`--debug` adds the traceback.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from pipeline.cli import app
from pipeline.errors import JobError, PipelineError, Stopped
from pipeline.interrupt import handle_signals, reason
from pipeline.screen import take_every_character
from pipeline.terminal import detach_stderr, show_error

_GC_THRESHOLDS = (50_000, 20, 20)
"""Imports allocate much and free nothing: Python's own thresholds make Ray's a fifth slower."""


def main() -> None:
    """Entry point of the `pipeline` command."""
    detach_stderr()  # before logging takes hold of the stream
    take_every_character()
    handle_signals()
    gc.set_threshold(*_GC_THRESHOLDS)
    code = _guard(app)
    # Unloading what Ray and Arrow have loaded takes most of a second, and threads that wait for a
    # dead store or cluster would hold the process for minutes: nobody waits for either.
    with contextlib.suppress(BrokenPipeError):  # whoever read it has seen enough
        sys.stdout.flush()
        sys.stderr.flush()
    logging.shutdown()
    os._exit(code)


def _guard(command: Callable[..., Any]) -> int:
    """Run a command; turn any error into one line and an exit code."""
    try:
        return command(standalone_mode=False) or 0
    except PipelineError as error:
        return show_error(error, error.exit_code)
    except KeyboardInterrupt:
        why = reason() or Stopped("interrupted")
        return show_error(type(why)(f"{why}; run again to go on"), why.exit_code)
    except Exception as error:  # noqa: BLE001  # the last stop: everything ends in one line
        if hasattr(error, "format_message"):  # the parser's own errors know how to show themselves
            return show_error(JobError(error.format_message()), JobError.exit_code)
        return show_error(error, PipelineError.exit_code)
