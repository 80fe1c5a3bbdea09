"""Standard streams that outlive what is wrong with them: a full disk, a closed end, no descriptor.

What cannot be written is dropped and remembered, so that nothing on the way raises and the command
can say at its end that its result was not read. A reader that has seen enough is no trouble.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TextIO

STDIN, STDOUT, STDERR = range(3)
_trouble: list[OSError] = []


class _Lasting(io.FileIO):
    """The unbuffered side of a stream; once writing failed, it takes everything and keeps nothing.

    Args:
        descriptor: Where to write; stays open.
        troubles: Where to note what went wrong.
        is_closed: There was no such descriptor when the process started.
    """

    def __init__(self, descriptor: int, troubles: list[OSError], *, is_closed: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._troubles, self._is_over = troubles, False
        self._is_closed = is_closed

    def write(self, data: object) -> int:
        """Write; report all as written even if it fails."""
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        if self._is_closed and not self._is_over:
            self._fail(OSError(errno.EBADF, os.strerror(errno.EBADF)))
        if self._is_over:
            return len(view)
        try:
            return super().write(view) or 0
        except BlockingIOError:
            raise
        except OSError as error:
            self._fail(error)
            return len(view)

    def _fail(self, error: OSError) -> None:
        self._is_over = True
        if error.errno != errno.EPIPE:
            self._troubles.append(error)


def hold() -> None:
    """Put lasting streams in place; `sys.stderr` gets a descriptor of its own.

    So descriptor 2 can be diverted. A descriptor that is closed becomes the null device's;
    otherwise libraries would write their messages to the next file that is opened, of a store for
    example.
    """
    closed = [number for number in (STDIN, STDOUT, STDERR) if _is_closed(number)]
    for number in closed:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
    out, err = sys.stdout, sys.stderr
    sys.stdout = _stream(STDOUT, out, _trouble, is_closed=STDOUT in closed)
    sys.stderr = _stream(os.dup(STDERR), err, [], is_closed=STDERR in closed)


def trouble() -> OSError | None:
    """Return why something that was written to stdout did not get there; None if all did."""
    return _trouble[0] if _trouble else None


def _is_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False


def _stream(
    descriptor: int, like: TextIO | None, troubles: list[OSError], *, is_closed: bool
) -> TextIO:
    raw = _Lasting(descriptor, troubles, is_closed=is_closed)
    # No text that a command has found ends it, whatever the terminal can show.
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(like, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=descriptor != STDOUT or raw.isatty(),
    )
