"""A store on which something happens just before one of a run's operations."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from pipeline.storage.create_once import CreateOutcome
from pipeline.storage.store import Store


@dataclass
class Event:
    """What happens, once, before an operation such as `open predictions/...`."""

    before: str
    """A regular expression."""
    act: Callable[[], object]
    has_happened: bool = False

    def note(self, operation: str) -> None:
        if not self.has_happened and re.match(self.before, operation):
            self.has_happened = True
            self.act()


@dataclass(frozen=True)
class EventfulStore(Store):
    """A store that tells an event of its operations."""

    event: Event | None = field(default=None, repr=False, compare=False)

    def _note(self, operation: str) -> None:
        assert self.event is not None
        self.event.note(operation)

    def open(self, path: str) -> BinaryIO:
        self._note(f"open {path}")
        return Store.open(self, path)

    def copy(self, source: str, target: str) -> None:
        self._note(f"copy {source}")
        Store.copy(self, source, target)

    def put(self, path: str, data: bytes) -> None:
        self._note(f"put {path}")
        Store.put(self, path, data)

    def create_once(self, path: str, data: bytes, token: str) -> CreateOutcome:
        self._note(f"create {path}")
        return Store.create_once(self, path, data, token)
