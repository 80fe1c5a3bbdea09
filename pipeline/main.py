"""Entry point of the `pipeline` command: signals, and one line and one exit code for every error.

`--debug` adds the traceback.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import typer

from pipeline.cli import app
from pipeline.errors import JobError, PipelineError, Stopped
from pipeline.terminal import detach_stderr

_GC_THRESHOLDS = (50_000, 20, 20)
"""Imports allocate much and free nothing: Python's own thresholds make Ray's a fifth slower."""


def _stop(signum: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    name = signal.Signals(signum).name
    raise Stopped(f"{name} received: finished slices are kept, run again to go on")


def main() -> None:
    """Entry point of the `pipeline` command."""
    detach_stderr()  # before logging takes hold of the stream
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    gc.set_threshold(*_GC_THRESHOLDS)
    code = _guard(app)
    # Unloading what Ray and Arrow have loaded takes most of a second, and nobody waits for it.
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
        return _fail(error, error.exit_code)
    except Exception as error:  # noqa: BLE001  # the last stop: everything ends in one line
        if hasattr(error, "format_message"):  # the parser's own errors know how to show themselves
            return _fail(JobError(error.format_message()), JobError.exit_code)
        return _fail(error, PipelineError.exit_code)


def _fail(error: Exception, code: int) -> int:
    from pipeline.schema import clean_message

    log = logging.getLogger("pipeline")
    if log.isEnabledFor(logging.DEBUG) or os.environ.get("PIPELINE_DEBUG"):
        log.exception("failed", exc_info=error)
    kind = "" if isinstance(error, PipelineError) else f"{type(error).__name__}: "
    message = clean_message(kind + str(error))
    typer.echo(f"error: {message}", err=True)
    if "--json" in sys.argv:
        typer.echo(json.dumps({"status": "error", "exit_code": code, "error": message}))
    return code
