"""What a command notes for its parent process, which reads it if the command is killed.

The notes are memory that both processes share (see `keeper`). Values are lines of JSON that are
only added, so that an end in the middle of writing loses the last line alone.
"""

from __future__ import annotations

import json
import mmap
import threading
from typing import Any

_SIZE_BYTES = 16 << 20
"""Of addresses; memory is taken as it is written."""
_SIGNAL, _IGNORES_SIGNALS, _LENGTH, _TEXT = 0, 1, 8, 16


class SharedNotes:
    """Made before the fork; the child writes, the parent reads when the child has ended."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SIZE_BYTES)
        self._lock = threading.Lock()

    def note(self, values: dict[str, Any]) -> None:
        """Add values by name; those that there is no room for are lost."""
        data = json.dumps(values).encode() + b"\n"
        with self._lock:
            begin = self._end()
            if begin + len(data) <= _SIZE_BYTES:
                self._memory[begin : begin + len(data)] = data
                self._memory[_LENGTH:_TEXT] = (begin + len(data) - _TEXT).to_bytes(8, "little")

    def read(self) -> dict[str, Any]:
        """Return the last value of each name."""
        values: dict[str, Any] = {}
        for line in self._memory[_TEXT : self._end()].splitlines():
            values |= json.loads(line)
        return values

    def _end(self) -> int:
        return _TEXT + int.from_bytes(self._memory[_LENGTH:_TEXT], "little")

    @property
    def signal(self) -> int:
        """The signal by which the parent was asked to stop; 0: none yet."""
        return self._memory[_SIGNAL]

    @signal.setter
    def signal(self, number: int) -> None:
        self._memory[_SIGNAL] = number

    @property
    def ignores_signals(self) -> bool:
        """Whether signals stop nothing any more: the work is done."""
        return bool(self._memory[_IGNORES_SIGNALS])

    @ignores_signals.setter
    def ignores_signals(self, ignores_signals: bool) -> None:
        self._memory[_IGNORES_SIGNALS] = ignores_signals


_notes: SharedNotes | None = None


def current_notes() -> SharedNotes | None:
    """Return the notes of this process; None: it has no parent that reads them."""
    return _notes


def set_current_notes(notes: SharedNotes) -> None:
    """Let this process note its values there from now on."""
    global _notes  # of the process, whatever runs in it
    _notes = notes


def note(**values: Any) -> None:
    """Note values by name, JSON; None takes one back. Without a parent nothing happens."""
    if _notes is not None:
        _notes.note(values)
