"""Keep the user's terminal and signals ours while Ray runs in this process."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from pipeline.core.environment import DEBUG
from pipeline.core.errors import JobErrors, PipelineError
from pipeline.core.printable import clean_message, json_text, printable
from pipeline.process.interrupts import STOPS
from pipeline.process.screen import clear_status, write_line

log = logging.getLogger(__name__)


@contextlib.contextmanager
def restore_signal_handlers() -> Iterator[None]:
    """Keep our handlers: Ray replaces the one of SIGTERM and exits with another code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def native_errors_to(path: Path) -> Iterator[None]:
    """Send what Ray's C++ core writes to file descriptor 2 to a file, which must not be there yet.

    Only if the command line has moved `sys.stderr` to a descriptor of its own (`streams.hold`).
    """
    if sys.stderr is None or not hasattr(sys.stderr, "fileno") or _fileno(sys.stderr) in (2, None):
        yield
        return
    saved, target = os.dup(2), _new_file(path)
    try:
        os.dup2(target, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(target)


@contextlib.contextmanager
def native_errors_dropped() -> Iterator[None]:
    """Keep what native code writes to file descriptor 2 away, where its error says it, too.

    The descriptor is that of all threads: the first one in the body diverts it, the last restores
    it.
    """
    _DROPPING.enter()
    try:
        yield
    finally:
        _DROPPING.leave()


class _Dropping:
    """Counts the threads during which descriptor 2 leads nowhere."""

    def __init__(self) -> None:
        self._lock, self._num_inside, self._saved = threading.Lock(), 0, -1

    def enter(self) -> None:
        with self._lock:
            self._num_inside += 1
            if self._num_inside == 1:
                self._saved = os.dup(2)
                with open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), 2)

    def leave(self) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                os.dup2(self._saved, 2)
                os.close(self._saved)


_DROPPING = _Dropping()


def _new_file(path: Path) -> int:
    """Make a file where others may have put links: none is followed, nothing there is opened."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        log.debug("%s: what Ray's core says is lost: %s", path, error)
        return os.open(os.devnull, flags)


def _fileno(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def show_error(error: BaseException, code: int) -> int:
    """Show an error in one line, with `--json` as a document, too; return the exit code.

    Several errors of a job file are a line each, and a list in the document.
    """
    from pipeline.core.user_code import describe_user_error

    package = logging.getLogger("pipeline")
    if package.isEnabledFor(logging.DEBUG) or os.environ.get(DEBUG):
        package.exception("failed", exc_info=error)
    message, *errors = (
        [clean_message(line) for line in error.lines]
        if isinstance(error, JobErrors)
        else [
            clean_message(
                str(error) if isinstance(error, PipelineError) else describe_user_error(error)
            )
        ]
    )
    clear_status()  # it may still be there if a run is ended from outside
    report = getattr(error, "report", None)
    if report and "--quiet" not in sys.argv:
        write_line(f"report: {printable(report)}")
    write_line(f"error: {message}", logging.ERROR)
    for line in errors:
        write_line(f"  {line}", logging.ERROR)
    if "--json" in sys.argv:
        document = {"status": "error", "exit_code": code, "error": message, "report": report}
        sys.stdout.write(json_text({**document, "errors": errors} if errors else document) + "\n")
    return code
