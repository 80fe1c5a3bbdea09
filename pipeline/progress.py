"""Show how far a run is: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

log = logging.getLogger(__name__)
LOG_EVERY_S = 30.0


class Progress:
    """Counts rows; draws on stderr, so that stdout stays for results."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._total: int | None = None
        self._done = self._first = self._quarantined = 0
        self._started = self._logged = 0.0

    @contextmanager
    def rows(self, total: int | None, *, done: int) -> Iterator[None]:
        """Show the body's progress; `done` rows were finished by an earlier run.

        No total means that nobody knows it before all is read.
        """
        self._total, self._done, self._first = total, done, done
        self._started = self._logged = perf_counter()
        if self._quiet:
            yield
        elif sys.stderr.isatty():
            with _bar() as bar:
                self._bar = bar
                self._task = bar.add_task("predict", total=total, completed=done, quarantined=0)
                yield
            self._bar = None
        else:
            if total is None:
                log.info("rows are to be computed, how many is unknown until they are read")
            else:
                log.info("%s of %s rows are to be computed", total - done, total)
            yield

    def advance(self, num_rows: int, num_quarantined: int) -> None:
        """Count the rows of one committed slice."""
        self._done += num_rows
        self._quarantined += num_quarantined
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, quarantined=self._quarantined)
        elif not self._quiet and perf_counter() - self._logged >= LOG_EVERY_S:
            self._logged = perf_counter()
            log.info("%s", self.line())

    def line(self) -> str:
        """Describe the progress in one line."""
        elapsed_s = perf_counter() - self._started
        rows_per_s = (self._done - self._first) / elapsed_s if elapsed_s > 0 else 0.0
        if self._total is None:
            total, left = "unknown", "unknown"
        else:
            total = str(self._total)
            left = f"{(self._total - self._done) / rows_per_s:.0f} s" if rows_per_s else "unknown"
        return (
            f"{self._done} of {total} rows, {rows_per_s:.0f} rows/s, "
            f"{self._quarantined} quarantined, {left} left"
        )


def _bar() -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class RateColumn(TextColumn):
        def render(self, task: object) -> Text:
            speed = getattr(task, "speed", None)
            return Text(f"{speed:.0f} rows/s" if speed else "starting")

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(""),
        TextColumn("{task.fields[quarantined]} quarantined"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
