"""The user's terminal while Ray runs in this process: streams, signals, error lines.

Standard streams outlive a full disk, a closed end and a missing descriptor. What cannot be written
is dropped and remembered: nothing on the way raises, and the command says at its end that its
result could not be written. A reader that has closed its end early is no error.
"""

from __future__ import annotations

import contextlib
import errno
import io
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
    """Keep our signal handlers: Ray replaces that of SIGTERM and exits with another code."""
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
    """Send output of Ray's C++ core to file descriptor 2 into a new file.

    This applies only if the command line has moved `sys.stderr` to another descriptor
    (`hold_streams`).
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
    """Drop output of native code to file descriptor 2, if its error has the same content.

    All threads share the descriptor: the first thread in the body diverts it, the last restores it.
    """
    _DROPPING.enter()
    try:
        yield
    finally:
        _DROPPING.leave()


class _Dropping:
    """Counts the threads that need descriptor 2 to lead nowhere."""

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
    """Make a file in a folder where others may have put links; follow none, open nothing."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        log.debug("%s: the output of Ray's core is lost: %s", path, error)
        return os.open(os.devnull, flags)


def _fileno(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def show_error(error: BaseException, code: int) -> int:
    """Show an error in one line, with `--json` also as a document; return the exit code.

    Several errors of a job file get a line each, and a list in the document.
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
    clear_status()  # it may still be shown if a run is ended from outside
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


STDOUT, STDERR = 1, 2


class _Lasting(io.FileIO):
    """The unbuffered side of a stream; after a failed write it accepts and drops everything."""

    trouble: OSError | None = None

    def write(self, data: object) -> int:
        """Write the data; report success even if it fails."""
        if self.trouble is None:
            try:
                return super().write(data) or 0  # type: ignore[arg-type]
            except BlockingIOError:
                raise
            except OSError as error:
                self.trouble = error
        return memoryview(data).nbytes  # type: ignore[arg-type]


def hold_streams() -> None:
    """Install lasting streams; `sys.stderr` gets its own descriptor, so that 2 can be diverted.

    A closed descriptor becomes the null device, for reading only: otherwise the next opened file,
    for example of a store, would get the output.
    """
    for number in (0, STDOUT, STDERR):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # gets the lowest free number: this one
    sys.stdout, sys.stderr = _stream(STDOUT, sys.stdout), _stream(os.dup(STDERR), sys.stderr)


def stdout_trouble() -> OSError | None:
    """Return why some output to stdout was lost; None if nothing was lost."""
    error: OSError | None = getattr(getattr(sys.stdout.buffer, "raw", None), "trouble", None)
    return error if error is not None and error.errno != errno.EPIPE else None


def _stream(descriptor: int, like: TextIO | None) -> TextIO:
    raw = _Lasting(descriptor, "w", closefd=False)
    # No text ends the command, whatever the terminal can show.
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(like, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=descriptor != STDOUT or raw.isatty(),
    )
