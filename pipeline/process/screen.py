"""Write for people: log records, tables and pages of text, on a terminal or into a pipe.

All text is made printable. Lines are wrapped for terminals only: pipes are for `grep`.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, TextIO

from pipeline.core.printable import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_NO_WRAP = 100_000
"""Columns of output into a pipe: more than any line has."""


class LineFormatter(logging.Formatter):
    """Format each record as one printable line; an indented traceback cannot forge a line."""

    def __init__(self) -> None:
        super().__init__(_FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # logging's name
        """Return the line of a record."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: object) -> str:  # logging's name
        """Return a traceback with all lines indented."""
        lines = super().formatException(ei).splitlines()  # type: ignore[arg-type]
        return "\n".join(f"  {printable(line)}" for line in lines)


class JsonFormatter(logging.Formatter):
    """Format each record as one line of JSON, always with the same keys."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        error = super().formatException(record.exc_info) if record.exc_info else None
        return json.dumps({
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": printable(record.getMessage()),
            "exception": error,
        })  # fmt: skip


def is_json_log() -> bool:
    """Tell whether the command line asks for JSON, before its options are parsed."""
    words = sys.argv[1:]
    return "--log-format=json" in words or ("--log-format", "json") in pairwise(words)


def log_to_stderr(level: int) -> None:
    """Log to stderr from this level on, one line per record."""
    handler = _AboveStatus(sys.stderr)
    handler.setFormatter(JsonFormatter() if is_json_log() else LineFormatter())
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(is_json_log())


def write_line(text: str, level: int = logging.INFO) -> None:
    """Write a line to stderr outside of the log; if the log is JSON, write a record."""
    if is_json_log():
        text = JsonFormatter().format(
            logging.LogRecord("pipeline", level, "", 0, text.strip(), None, None)
        )
    sys.stderr.write(f"{text}\n")


@dataclass
class _Status:
    """The status line, which is overwritten in place."""

    stream: TextIO | None = None
    num_chars: int = 0


_lock = threading.RLock()
_status = _Status()


class _AboveStatus(logging.StreamHandler[TextIO]):
    """Removes the status line before it writes a record."""

    def emit(self, record: logging.LogRecord) -> None:
        with _lock:
            clear_status()
            super().emit(record)


def in_notebook() -> bool:
    """Tell whether this process is the kernel of a notebook."""
    shell = sys.modules.get("IPython")
    return "ipykernel" in sys.modules and shell is not None and shell.get_ipython() is not None


def status_stream() -> TextIO | None:
    """Return a stream whose last line can be overwritten (terminal, notebook), or None."""
    if is_json_log():
        return None
    if in_notebook():
        return sys.stdout
    return sys.stderr if _is_terminal(sys.stderr) else None


def show_status(text: str, stream: TextIO) -> None:
    """Overwrite the status line, cut to the width of the terminal; a notebook has no width."""
    columns = _NO_WRAP if in_notebook() else shutil.get_terminal_size().columns
    line = printable(text)[: columns - 1]
    with _lock, contextlib.suppress(OSError, ValueError):  # closed meanwhile
        stream.write(f"\r{line.ljust(_status.num_chars)}")
        stream.flush()
        _status.stream, _status.num_chars = stream, len(line)


def clear_status() -> None:
    """Remove the status line, if there is one."""
    with _lock, contextlib.suppress(OSError, ValueError):
        if _status.stream is not None and _status.num_chars:
            _status.stream.write(f"\r{' ' * _status.num_chars}\r")
            _status.stream.flush()
            _status.num_chars = 0


def show_rendered(rendered: RenderableType, *, to_stderr: bool = False) -> None:
    """Show a table or a page, wrapped to the width of a terminal.

    Nothing is shown on stderr if the log there is JSON.
    """
    if to_stderr and is_json_log():
        return
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    if _is_terminal(stream):
        Console(file=stream).print(rendered)
    else:
        stream.write(as_lines(rendered))


def as_lines(rendered: RenderableType) -> str:
    """Return a table or a page as lines, neither wrapped nor padded."""
    from rich.console import Console

    page = io.StringIO()
    console = Console(
        file=page, width=_NO_WRAP, color_system=None, force_terminal=False, force_jupyter=False
    )
    console.print(rendered)
    return "".join(f"{line.rstrip()}\n" for line in page.getvalue().splitlines())


def _is_terminal(stream: TextIO | None) -> bool:
    """Tell whether a stream is a terminal; one that is closed or missing is not."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False
