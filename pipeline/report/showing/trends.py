"""Figures as small lines: of the last versions, and of a run over its time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.commit.layout import partition_order
from pipeline.report.showing.number_format import (
    format_count,
    format_duration,
    format_pct,
    format_plain,
    format_rate,
)

if TYPE_CHECKING:
    from pipeline.report.document import Report

_SHOWN = 14
_HIGH_PX, _EDGE_PX = 28.0, 3.0


@dataclass(frozen=True)
class Line:
    """One figure over versions or time, as texts."""

    name: str
    num_points: int
    last: str
    low: str
    high: str
    points: str
    """Of a polyline in a box of 100 x 28; what is unknown has none."""


_Figure = Callable[["Report"], float | None]
_FIGURES: dict[str, tuple[_Figure, Callable[[float], str]]] = {
    "rows": (lambda run: run.rows.total, format_count),
    "quarantined": (lambda run: _pct(run.rows.quarantined, run.rows.total), format_pct),
    "carried over": (lambda run: _pct(run.rows.carried, run.rows.total), format_pct),
    "rows/s while streaming": (lambda run: run.rows_per_s, format_rate),
    "the run took": (lambda run: run.wall_s, format_duration),
    "cost of a million rows": (lambda run: run.cost_per_million_rows, format_plain),
}


def trends_of(reports: Iterable[Report]) -> list[Line]:
    """Return the lines of the last fourteen versions; [] if there are fewer than two."""
    published = [report for report in reports if report.status == "published"]
    published.sort(key=lambda run: (partition_order(run.partition), run.run_id))
    versions = published[-_SHOWN:]
    lines = (
        _line(name, [*map(figure, versions)], told) for name, (figure, told) in _FIGURES.items()
    )
    return [line for line in lines if line is not None]


def over_time(report: Report) -> list[Line]:
    """Return rows/s and actors over the time of the stream; [] if they were not counted."""
    if (time := report.over_time) is None:
        return []
    rates = [rows / time.bin_s for rows in time.rows]
    lines = (_line("rows/s", rates, format_rate), _line("actors", time.actors, format_count))
    return [line for line in lines if line is not None]


def _line(name: str, values: Sequence[float | None], told: Callable[[float], str]) -> Line | None:
    """Return a line; None if fewer than two values are known."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    low, high, step = min(known), max(known), 100 / (len(values) - 1)
    inside = (_HIGH_PX - 2 * _EDGE_PX) / ((high - low) or 1.0)
    points = " ".join(
        f"{number * step:.1f},{_HIGH_PX - _EDGE_PX - inside * (value - low):.1f}"
        for number, value in enumerate(values)
        if value is not None
    )
    return Line(name, len(values), told(known[-1]), told(low), told(high), points)


def _pct(part: int | None, whole: int | None) -> float | None:
    return 100 * part / whole if part is not None and whole else None
