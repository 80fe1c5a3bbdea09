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

STDOUT, STDERR = 1, 2


class _Lasting(io.FileIO):
    """The unbuffered side of a stream; once writing failed, it takes everything, keeps nothing."""

    trouble: OSError | None = None

    def write(self, data: object) -> int:
        """Write; report all as written even if it fails."""
        if self.trouble is None:
            try:
                return super().write(data) or 0  # type: ignore[arg-type]
            except BlockingIOError:
                raise
            except OSError as error:
                self.trouble = error
        return memoryview(data).nbytes  # type: ignore[arg-type]


def hold() -> None:
    """Put lasting streams in place; `sys.stderr` gets a descriptor of its own.

    So descriptor 2 can be diverted. One that is closed becomes the null device's, for reading only:
    otherwise the next file that is opened, of a store for example, would get what is written.
    """
    for number in (0, STDOUT, STDERR):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # gets the lowest number that is free: this one
    sys.stdout, sys.stderr = _stream(STDOUT, sys.stdout), _stream(os.dup(STDERR), sys.stderr)


def trouble() -> OSError | None:
    """Return why something that was written to stdout did not get there; None if all did."""
    error: OSError | None = getattr(getattr(sys.stdout.buffer, "raw", None), "trouble", None)
    return error if error is not None and error.errno != errno.EPIPE else None


def _stream(descriptor: int, like: TextIO | None) -> TextIO:
    raw = _Lasting(descriptor, "w", closefd=False)
    # No text that a command has found ends it, whatever the terminal can show.
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(like, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=descriptor != STDOUT or raw.isatty(),
    )
