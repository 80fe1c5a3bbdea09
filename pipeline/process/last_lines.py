"""What a command says at its very end, for whoever starts it again: a person or a scheduler."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from pipeline.core.errors import InfraError, Stopped
from pipeline.process.will import leave, own_will

_GOES_ON = (Stopped.exit_code, InfraError.exit_code)


def prepare_last_words(
    command: str | None, ok_exits: frozenset[int], goes_on: Sequence[int] = _GOES_ON
) -> None:
    """Keep what the end of this command needs, whichever of its two processes comes to it.

    Args:
        command: Does the same again, in one printable line; None: it cannot be said.
        ok_exits: Exit codes that the scheduler takes for success.
        goes_on: Exit codes after which the command is said.
    """
    leave(again=command, ok_exits=sorted(ok_exits), goes_on=list(goes_on))


def say_last_words(code: int) -> int:
    """Say how a command that was stopped goes on; return the exit code that is shown outside."""
    will = own_will()
    left = will.read() if will is not None else {}
    is_ok = code in left.get("ok_exits", ())
    again = left.get("again") if code in left.get("goes_on", ()) else None
    with contextlib.suppress(OSError, ValueError):
        if is_ok:
            sys.stderr.write(f"exit 0 instead of {code}, as --ok-exit says\n")
        if again:
            sys.stderr.write(f"the same command again is safe, and goes on from there: {again}\n")
        if is_ok or again:
            sys.stderr.flush()
    return 0 if is_ok else code
