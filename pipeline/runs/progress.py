"""Show the progress of a run: one line that is overwritten on a terminal, log lines elsewhere.

Rows are those of committed slices. The rate is that of the last minute, and the remaining time
follows from it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Protocol

from pipeline.process.liveness import unfinished
from pipeline.process.screen import clear_status, in_notebook, show_status, status_stream
from pipeline.report.showing.blocks import format_duration, format_rate
from pipeline.report.so_far import Rate

log = logging.getLogger(__name__)
_DRAW_S, _LOOK_S = 0.5, 1.0
_LOG_EVERY_S, _LOG_LATER_S, _LATER_FROM_S = 10.0, 30.0, 60.0
_BAR_CHARS = 20
_ENDS_S = 4.0


@dataclass
class Counts:
    """Counts of rows in committed slices."""

    total: int | None
    """Rows of the plan; None if unknown."""
    rows: int
    quarantined: int = 0


class Progress(Protocol):
    """A receiver of the phases and the progress of a run."""

    def phase(self, what: str, *, is_logged: bool = True) -> None:
        """Show the current phase; `is_logged`: also if there is no terminal."""

    def rows(self, total: int | None, *, done: int) -> AbstractContextManager[None]:
        """Show the body's progress.

        Args:
            total: Rows of the plan; None if unknown before all are read.
            done: Rows that an earlier run finished.
        """

    def advance(self, num_rows: int, num_quarantined: int) -> None:
        """Count the rows of one committed slice."""


class Silent:
    """Shows nothing."""

    def phase(self, what: str, *, is_logged: bool = True) -> None:
        """Say nothing."""

    def rows(self, total: int | None, *, done: int) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()

    def advance(self, num_rows: int, num_quarantined: int) -> None:
        """Count nothing."""


class TerminalProgress:
    """Shows phase and progress on stderr; stdout is for results."""

    def __init__(self) -> None:
        self._stream = status_stream()
        self._lock = threading.Lock()
        self._phase = ""
        self._counts: Counts | None = None
        self._rate = Rate()
        self._left = self._trouble = ""
        """Remaining rows; the reason why actors do not work, '' if none is known."""
        self._started = self._logged = monotonic()
        self._thread: threading.Thread | None = None
        self._is_over = threading.Event()

    def __enter__(self) -> TerminalProgress:
        """Start to show progress."""
        if self._thread is None:
            self._is_over.clear()
            self._thread = threading.Thread(target=self._show, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop showing."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._is_over.set()
            thread.join(_ENDS_S)
        clear_status()

    def phase(self, what: str, *, is_logged: bool = True) -> None:
        """Show the current phase, which replaces the last one on a terminal."""
        with self._lock:
            self._phase = what
        if self._stream is None:
            if is_logged:
                self._log(what)
        elif self._thread is not None:
            show_status(self.line(), self._stream)

    @contextmanager
    def rows(self, total: int | None, *, done: int) -> Iterator[None]:
        """Show the body's progress."""
        if total is None:
            self._left = "how many rows there are is unknown until they are read"
        else:
            self._left = f"{total - done:,} of {total:,} rows are left"
        self.phase(f"loading the model; {self._left}")
        with self._lock:
            self._counts, self._rate = Counts(total, done), Rate()
            self._rate.add(monotonic(), done)
        try:
            with nullcontext() if self._thread is not None else self:
                yield
        finally:
            with self._lock:
                self._counts, self._trouble = None, ""

    def advance(self, num_rows: int, num_quarantined: int) -> None:
        """Count the rows of one committed slice."""
        with self._lock:
            if self._counts is not None:
                self._counts.rows += num_rows
                self._counts.quarantined += num_quarantined

    def line(self) -> str:
        """Describe the progress in one line."""
        so_far = format_duration(monotonic() - self._started, 0)
        with self._lock:
            counts, rate = self._counts, self._rate.rows_per_s
            begun = describe_unfinished(*unfinished()) if counts is not None else ""
            if counts is None or rate is None:
                phase = "predicting, no slice is finished yet" if begun else self._phase
                if self._trouble:
                    phase = f"{self._trouble}; {self._left}"
                return f"{'; '.join(filter(None, (phase, begun)))}, {so_far} so far"
            line = describe(counts, rate, so_far, with_bar=self._stream is not None)
            return "; ".join(filter(None, (line, begun)))

    def _show(self) -> None:
        """Update and show until the end."""
        looked = 0.0
        while not self._is_over.wait(_DRAW_S):
            if monotonic() - looked >= _LOOK_S:
                looked = monotonic()
                self._look()
            if self._stream is not None:
                show_status(self.line(), self._stream)
                continue
            is_later = monotonic() - self._started > _LATER_FROM_S
            if monotonic() - self._logged >= (_LOG_LATER_S if is_later else _LOG_EVERY_S):
                self._log(self.line())

    def _look(self) -> None:
        with self._lock:
            counts, rate = self._counts, self._rate
            if counts is not None:
                rate.add(monotonic(), counts.rows)
        if counts is not None and rate.rows_per_s is None:
            from pipeline.execution.cluster.in_flight import actors_in_trouble

            with suppress(Exception):  # only for display: the run itself reports errors
                self._trouble = actors_in_trouble()

    def _log(self, line: str) -> None:
        self._logged = monotonic()
        log.info("%s", line)


@contextmanager
def shown_on(progress: Progress | None) -> Iterator[Progress]:
    """Give the body a receiver of its progress.

    Args:
        progress: From the caller of an operation; None for the cell of a notebook or the terminal,
            if there is one.
    """
    if progress is not None:
        yield progress
    elif in_notebook() or status_stream() is not None:
        with TerminalProgress() as shown:
            yield shown
    else:
        yield Silent()


def describe(counts: Counts, rows_per_s: float, so_far: str, *, with_bar: bool) -> str:
    """Describe the progress of a run in one line."""
    rows, total = counts.rows, counts.total
    left, bar, of_total = "unknown", "", ""
    if total:
        of_total = f" of {total:,}"
        share = rows / total
        bar = f"[{'#' * int(share * _BAR_CHARS):.<{_BAR_CHARS}}] " if with_bar else ""
        of_total += f" rows, {int(100 * share)}%"
        left = format_duration((total - rows) / rows_per_s, 0) if rows_per_s else "unknown"
    else:
        of_total = " rows"
    return (
        f"{bar}{rows:,}{of_total}, {format_rate(rows_per_s)} rows/s, "
        f"{counts.quarantined:,} quarantined, {so_far} so far, {left} left"
    )


def describe_unfinished(num_rows: int, num_tokens: int) -> str:
    """Describe the finished rows of unfinished slices; '' if unknown."""
    if not num_tokens:
        return f"{num_rows:,} rows of slices under way" if num_rows else ""
    return f"{num_rows:,} rows and {num_tokens:,} tokens of slices under way"
