"""The last versions as small lines: one figure of each, in the order of their partitions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pipeline.report.partition_history import PartitionWork, versions_of
from pipeline.report.showing.lines import Trend, points_of
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
_Figure = Callable[[PartitionWork], float | None]
_FIGURES: dict[str, tuple[_Figure, Callable[[float], str]]] = {
    "rows": (lambda each: each.rows, format_count),
    "quarantined": (lambda each: each.errors_pct, format_pct),
    "carried over": (lambda each: each.carried_pct, format_pct),
    "rows/s while streaming": (lambda each: each.rows_per_s, format_rate),
    "all runs took": (lambda each: each.seconds.total, format_duration),
    "cost": (lambda each: each.cost.total if each.cost else None, format_plain),
}


def trends_of(reports: Iterable[Report]) -> list[Trend]:
    """Return the lines of the last fourteen versions; [] if there are fewer than two."""
    versions = versions_of(reports)[-_SHOWN:]
    found = []
    for name, (figure, told) in _FIGURES.items():
        values = [figure(each) for each in versions]
        known = [value for value in values if value is not None]
        if len(known) > 1:
            shown = (told(known[-1]), told(min(known)), told(max(known)))
            found.append(Trend(name, len(versions), *shown, points_of(values)))
    return found
