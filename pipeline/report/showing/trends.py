"""The last versions as small lines: one figure of each, in the order of their partitions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.report.partition_history import PartitionWork, versions_of
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
_Figure = Callable[[PartitionWork], float | None]
_FIGURES: dict[str, tuple[_Figure, Callable[[float], str]]] = {
    "rows": (lambda each: each.rows, format_count),
    "quarantined": (lambda each: each.errors_pct, format_pct),
    "carried over": (lambda each: each.carried_pct, format_pct),
    "rows/s while streaming": (lambda each: each.rows_per_s, format_rate),
    "all runs took": (lambda each: each.seconds.total, format_duration),
    "cost": (lambda each: each.cost.total if each.cost else None, format_plain),
}


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


def trends_of(reports: Iterable[Report]) -> list[Trend]:
    """Return the lines of the last fourteen versions; [] if there are fewer than two."""
    versions = versions_of(reports)[-_SHOWN:]
    found = []
    for name, (figure, told) in _FIGURES.items():
        values = [figure(each) for each in versions]
        known = [value for value in values if value is not None]
        if len(known) > 1:
            shown = (told(known[-1]), told(min(known)), told(max(known)))
            found.append(Trend(name, len(versions), *shown, _points(values)))
    return found


def _points(values: Sequence[float | None]) -> str:
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
