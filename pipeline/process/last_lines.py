"""The last lines that a command prints: the exit code, and the command line that continues it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from pipeline.core.errors import InfraError, Stopped
from pipeline.process.screen import write_line
from pipeline.process.shared_notes import note, own_notes

_GOES_ON = (Stopped.exit_code, InfraError.exit_code)


def prepare_last_lines(
    command: str | None, ok_exits: frozenset[int], goes_on: Sequence[int] = _GOES_ON
) -> None:
    """Note what the last lines need; the command or, if it was killed, its parent prints them.

    Args:
        command: The command line that continues it, printable; None: there is none.
        ok_exits: Exit codes for which the process ends with 0.
        goes_on: Exit codes after which the command line is printed.
    """
    note(again=command, ok_exits=sorted(ok_exits), goes_on=list(goes_on))


def print_last_lines(code: int) -> int:
    """Print the last lines; return the exit code with which the process ends."""
    notes = own_notes()
    left = notes.read() if notes is not None else {}
    is_ok = code in left.get("ok_exits", ())
    again = left.get("again") if code in left.get("goes_on", ()) else None
    with contextlib.suppress(OSError, ValueError):
        if is_ok:
            write_line(f"exit 0 instead of {code}, as --ok-exit says")
        if again:
            write_line(f"the same command again is safe, and goes on from there: {again}")
        if is_ok or again:
            sys.stderr.flush()
    return 0 if is_ok else code
