"""Which of several inputs of a row is worked on, for a parent that wants to know what ended it."""

from __future__ import annotations

from collections.abc import Callable


def _tell_nobody(name: str) -> None:
    pass


_tell: Callable[[str], None] = _tell_nobody


def tell_inputs_to(listener: Callable[[str], None]) -> None:
    """Let a function hear of every input that this process begins with."""
    global _tell
    _tell = listener


def begin_input(name: str) -> None:
    """Tell that the work on an input, of one row or of several, begins."""
    _tell(name)
