"""Rows and actors over the time of a stream, in at most 60 bins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.commit.staging import StagedSlice
from pipeline.report.sections import Section
from pipeline.report.showing.blocks import Block, format_count, format_rate, line_of, lines_block

if TYPE_CHECKING:
    from pipeline.report.document import Report

_BINS = 60


class OverTime(Section):
    """The stream in bins of equal width, from its beginning."""

    bin_s: float
    rows: list[int]
    """Computed rows whose slice was committed in the bin."""
    actors: list[int]
    """Actors that had finished a slice by the end of the bin."""


class Timeline:
    """Counts committed slices in at most 60 bins; if they do not suffice, their width doubles."""

    def __init__(self) -> None:
        """Start with bins of one second."""
        self._bin_s = 1.0
        self._rows: list[int] = []
        self._actors: list[int] = []
        """Actors that finished their first slice in the bin."""

    def add(self, elapsed_s: float, staged: StagedSlice) -> None:
        """Count a slice.

        Args:
            elapsed_s: Since the stream began.
            staged: The slice.
        """
        while elapsed_s >= self._bin_s * _BINS:
            self._bin_s *= 2
            self._rows, self._actors = _halved(self._rows), _halved(self._actors)
        index = int(elapsed_s / self._bin_s)
        missing = [0] * (index + 1 - len(self._rows))
        self._rows += missing
        self._actors += missing
        self._rows[index] += staged.num_rows - staged.num_carried
        self._actors[index] += "model_load" in staged.figures.stages

    def section(self) -> OverTime | None:
        """Return the section of the report; None if no slice was computed."""
        if not self._rows:
            return None
        started = [sum(self._actors[: n + 1]) for n in range(len(self._actors))]
        return OverTime(bin_s=self._bin_s, rows=[*self._rows], actors=started)


def _halved(counts: list[int]) -> list[int]:
    return [sum(counts[n : n + 2]) for n in range(0, len(counts), 2)]


def over_time_block(report: Report) -> Block:
    """Return rows/s and actors as lines; no block if they were not counted."""
    if (time := report.over_time) is None:
        return Block("Over time")
    rates = [rows / time.bin_s for rows in time.rows]
    lines = (line_of("rows/s", rates, format_rate), line_of("actors", time.actors, format_count))
    return lines_block("Over time", [line for line in lines if line is not None])
