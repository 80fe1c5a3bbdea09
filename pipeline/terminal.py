"""Keep the user's terminal and signals ours while Ray runs in this process."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from pipeline.errors import JobErrors, PipelineError
from pipeline.printable import printable
from pipeline.schema import clean_message
from pipeline.screen import clear_status
from pipeline.user_code import tell


@contextlib.contextmanager
def own_signal_handlers() -> Iterator[None]:
    """Keep our handlers: Ray replaces the one of SIGTERM and exits with another code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def native_errors_to_log(ray: Any) -> Iterator[None]:
    """Send what Ray's C++ core writes to file descriptor 2 to a file of the session.

    Only where the command line has moved `sys.stderr` to a descriptor of its own (`detach_stderr`).
    """
    if sys.stderr is None or not hasattr(sys.stderr, "fileno") or _fileno(sys.stderr) in (2, None):
        yield
        return
    folder = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    saved = os.dup(2)
    with (folder / "driver-native.err").open("ab") as target:
        os.dup2(target.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _fileno(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def detach_stderr() -> None:
    """Give `sys.stderr` a descriptor of its own, so that descriptor 2 can be diverted."""
    if _fileno(sys.stderr) == 2:
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8")


def show_error(error: Exception, code: int) -> int:
    """Show an error in one line, with `--json` as a document, too; return the exit code.

    Several errors of a job file are a line each, and a list in the document.
    """
    import typer

    log = logging.getLogger("pipeline")
    if log.isEnabledFor(logging.DEBUG) or os.environ.get("PIPELINE_DEBUG"):
        log.exception("failed", exc_info=error)
    message, *errors = (
        [clean_message(line) for line in error.lines]
        if isinstance(error, JobErrors)
        else [clean_message(str(error) if isinstance(error, PipelineError) else tell(error))]
    )
    clear_status()  # it may still be there where a run is ended from outside
    report = getattr(error, "report", None)
    if report and "--quiet" not in sys.argv:
        typer.echo(f"report: {printable(report)}", err=True)
    typer.echo("\n  ".join([f"error: {message}", *errors]), err=True)
    if "--json" in sys.argv:
        document = {"status": "error", "exit_code": code, "error": message, "report": report}
        typer.echo(json.dumps({**document, "errors": errors} if errors else document))
    return code
