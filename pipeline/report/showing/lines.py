"""Small lines: figures of the last versions, and of a run over its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.report.showing.number_format import format_count, format_rate

if TYPE_CHECKING:
    from pipeline.report.document import Report

_HIGH_PX, _EDGE_PX = 28.0, 3.0


@dataclass(frozen=True)
class Trend:
    """One figure over the last versions, as texts."""

    name: str
    num_versions: int
    last: str
    low: str
    high: str
    points: str
    """Of a polyline in a box of 100 x 28; a version without the figure has none."""


def lines_over_time(report: Report) -> list[Trend]:
    """Return rows/s and actors over the time of the stream; [] if they were not counted."""
    time = report.over_time
    if time is None or len(time.rows) < 2:
        return []
    rates = [rows / time.bin_s for rows in time.rows]
    actors = [float(number) for number in time.actors]
    found = []
    for name, values, told in (("rows/s", rates, format_rate), ("actors", actors, format_count)):
        shown = (told(values[-1]), told(min(values)), told(max(values)))
        found.append(Trend(name, len(values), *shown, points_of(values)))
    return found


def points_of(values: Sequence[float | None]) -> str:
    """Return the points of a polyline in a box of 100 x 28."""
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    step = 100 / (len(values) - 1)
    inside = _HIGH_PX - 2 * _EDGE_PX
    return " ".join(
        f"{number * step:.1f},{_HIGH_PX - _EDGE_PX - inside * _share(value, low, high):.1f}"
        for number, value in enumerate(values)
        if value is not None
    )


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5
