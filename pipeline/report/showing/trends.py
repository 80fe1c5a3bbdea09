"""The last versions as small lines: one figure of each, in the order of their partitions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pipeline.commit.layout import partition_order
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
_Figure = Callable[["Report"], float | None]
_FIGURES: dict[str, tuple[_Figure, Callable[[float], str]]] = {
    "rows": (lambda run: run.rows.total, format_count),
    "quarantined": (lambda run: _pct(run.rows.quarantined, run.rows.total), format_pct),
    "carried over": (lambda run: _pct(run.rows.carried, run.rows.total), format_pct),
    "rows/s while streaming": (lambda run: run.rows_per_s, format_rate),
    "the run took": (lambda run: run.wall_s, format_duration),
    "cost of a million rows": (lambda run: run.cost_per_million_rows, format_plain),
}


def trends_of(reports: Iterable[Report]) -> list[Trend]:
    """Return the lines of the last fourteen versions; [] if there are fewer than two."""
    published = [report for report in reports if report.status == "published"]
    published.sort(key=lambda run: (partition_order(run.partition), run.run_id))
    versions, found = published[-_SHOWN:], []
    for name, (figure, told) in _FIGURES.items():
        values = [figure(each) for each in versions]
        known = [value for value in values if value is not None]
        if len(known) > 1:
            shown = (told(known[-1]), told(min(known)), told(max(known)))
            found.append(Trend(name, len(versions), *shown, points_of(values)))
    return found


def _pct(part: int | None, whole: int | None) -> float | None:
    return 100 * part / whole if part is not None and whole else None
