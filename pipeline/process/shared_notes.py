"""Notes of a command for its parent process, which reads them if the command is killed.

The notes are memory shared by both processes (see `keeper`). Values are lines of JSON that are only
appended, so an end in the middle of writing loses only the last line.
"""

from __future__ import annotations

import json
import mmap
import threading
from typing import Any

_SIZE_BYTES = 16 << 20
"""Reserved addresses; memory is taken as it is written."""
_SIGNAL, _IGNORES_SIGNALS, _LENGTH, _TEXT = 0, 1, 8, 16


class SharedNotes:
    """Notes made before the fork; the child writes, the parent reads after the child has ended."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SIZE_BYTES)
        self._lock = threading.Lock()

    def note(self, values: dict[str, Any]) -> None:
        """Add values by name; values are lost if there is no room."""
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
        """The signal that asked the parent to stop; 0: none yet."""
        return self._memory[_SIGNAL]

    @signal.setter
    def signal(self, number: int) -> None:
        self._memory[_SIGNAL] = number

    @property
    def ignores_signals(self) -> bool:
        """Whether signals are ignored because the work is done."""
        return bool(self._memory[_IGNORES_SIGNALS])

    @ignores_signals.setter
    def ignores_signals(self, ignores_signals: bool) -> None:
        self._memory[_IGNORES_SIGNALS] = ignores_signals


_notes: SharedNotes | None = None


def current_notes() -> SharedNotes | None:
    """Return the notes of this process; None if no parent reads them."""
    return _notes


def set_current_notes(notes: SharedNotes) -> None:
    """Write the notes of this process there from now on."""
    global _notes  # one per process, whatever the scope
    _notes = notes


def note(**values: Any) -> None:
    """Note JSON values by name; None takes a value back. Without a parent, do nothing."""
    if _notes is not None:
        _notes.note(values)
