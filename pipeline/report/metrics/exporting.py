"""Exporters work beside a run; what fails in one neither fails nor delays the run.

Each exporter has a thread of its own, and the run does not wait for it until the run ends: then at
most two seconds. An exporter that fails logs one warning.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pipeline.core.printable import clean_message

log = logging.getLogger(__name__)
T = TypeVar("T")


class Exporter(Protocol):
    """Tells others of a run. Its methods may raise anything, and block; one thread calls them."""

    def update(self) -> None:
        """Export how the run is now; called again and again, and once when it has ended."""

    def close(self) -> None:
        """Give up what is held."""


@dataclass(frozen=True)
class Planned:
    """An exporter that is to be made, on the thread that it will work on."""

    what: str
    """Names it in a warning."""
    make: Callable[[], Exporter]
    """Imports, opens and connects what it needs."""
    every_s: float = 15.0
    ends_within_s: float = 2.0
    """How long the end of a run waits for the last update and for `close`."""


class Exporting:
    """The exporters of one run."""

    def __init__(self, planned: Iterable[Planned]) -> None:
        self._workers = [_Worker(exporter) for exporter in planned]
        for worker in self._workers:
            worker.start()

    def end(self, *, has_result: bool) -> None:
        """Wait for the last updates, each within its time.

        Args:
            has_result: The run has a report to export; False: only close.
        """
        started_s = time.monotonic()
        for worker in self._workers:
            worker.has_result = has_result
            worker.is_over.set()
        for worker in self._workers:
            limit_s = worker.planned.ends_within_s
            worker.join(max(0.0, started_s + limit_s - time.monotonic()))
            if worker.is_alive():
                worker.warn(f"no end within {limit_s:g} s")


class _Worker(threading.Thread):
    def __init__(self, planned: Planned) -> None:
        super().__init__(name=planned.what, daemon=True)
        self.planned = planned
        self.is_over, self.has_result = threading.Event(), False
        self._has_warned = False

    def run(self) -> None:
        exporter = self._try(self.planned.make)
        if exporter is None:
            return
        while not self.is_over.wait(self.planned.every_s):
            self._try(exporter.update)
        if self.has_result:
            self._try(exporter.update)
        self._try(exporter.close)

    def _try(self, act: Callable[[], T]) -> T | None:
        try:
            return act()
        except Exception as error:  # noqa: BLE001  # whatever a library or a server does
            self.warn(clean_message(f"{type(error).__name__}: {error}"))
            return None

    def warn(self, why: str) -> None:
        """Warn once; what follows is for those who look closely."""
        level = logging.DEBUG if self._has_warned else logging.WARNING
        self._has_warned = True
        log.log(level, "%s: %s; the run goes on without", self.planned.what, why)
