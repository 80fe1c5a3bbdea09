"""A report beside earlier versions: lines of its figures, and its most frequent classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from pipeline.commit.layout import earlier_names, partition_order
from pipeline.report.sections import Section
from pipeline.report.showing.blocks import (
    Bar,
    Block,
    Cell,
    Line,
    Table,
    format_count,
    format_duration,
    format_pct,
    format_plain,
    format_rate,
    line_of,
    lines_block,
)

if TYPE_CHECKING:
    from pipeline.report.document import Report

_SHOWN = 14
_PARTITIONS = 7
_REPORTED = 10
"""A report has this many labels; the others are unknown."""


class LabelCount(Section):
    """The number of rows with a label."""

    label: str
    count: int


_Figure = Callable[["Report"], float | None]
_FIGURES: dict[str, tuple[_Figure, Callable[[float], str]]] = {
    "rows": (lambda run: run.rows.total, format_count),
    "quarantined": (lambda run: _pct(run.rows.quarantined, run.rows.total), format_pct),
    "carried over": (lambda run: _pct(run.rows.carried, run.rows.total), format_pct),
    "rows/s while streaming": (lambda run: run.rows_per_s, format_rate),
    "the run took": (lambda run: run.wall_s, format_duration),
    "cost of a million rows": (lambda run: run.cost_per_million_rows, format_plain),
}


def trends_block(report: Report, past: Sequence[Report]) -> Block:
    """Return the figures of the last versions as lines."""
    return lines_block("The last {} versions", trends_of([*past, report]))


def trends_of(reports: Iterable[Report]) -> list[Line]:
    """Return the lines of the last fourteen versions; [] if there are fewer than two."""
    published = [report for report in reports if report.status == "published"]
    published.sort(key=lambda run: (partition_order(run.partition), run.run_id))
    versions = published[-_SHOWN:]
    lines = (
        line_of(name, [*map(figure, versions)], format_value)
        for name, (figure, format_value) in _FIGURES.items()
    )
    return [line for line in lines if line is not None]


def _pct(part: int | None, whole: int | None) -> float | None:
    return 100 * part / whole if part is not None and whole else None


def classes_block(report: Report, past: Sequence[Report]) -> Block:
    """Return the most frequent classes, beside the mean of the partitions before."""
    classes = classes_of(report, past)
    scale = 100 / (classes.most_pct or 1)
    rows: list[Sequence[Cell]] = [
        (
            share.label,
            format_count(share.rows),
            format_pct(share.pct),
            *([format_pct(share.before_pct)] if classes.beside else []),
            Bar(scale * share.pct, None if share.before_pct is None else scale * share.before_pct),
        )
        for share in classes.shares
    ]
    before = ["before"] if classes.beside else []
    note = "The most frequent ones, of the rows with a prediction."
    if classes.has_ids:
        note += " A number behind a name is the class id: several classes have that name."
    if classes.beside:
        note += f" Before, and the dark line: {classes.beside}."
    return Block("Classes", table=Table(("class", "rows", "share", *before, ""), rows), note=note)


@dataclass(frozen=True)
class ClassShare:
    """One class, as a share of the rows with a prediction."""

    label: str
    rows: int
    pct: float
    before_pct: float | None
    """The mean of the earlier partitions in which it is known; None if there are none."""


@dataclass(frozen=True)
class Classes:
    """The most frequent classes of a partition."""

    shares: tuple[ClassShare, ...]
    beside: str
    """The partitions of the comparison; '' if there are none."""

    @property
    def has_ids(self) -> bool:
        """Tell whether a class id follows a name, as in `missile (657)`."""
        return any(re.search(r" \(\d+\)$", share.label) for share in self.shares)

    @property
    def most_pct(self) -> float:
        """The largest of all shares, for the scale of a chart."""
        return max((max(share.pct, share.before_pct or 0.0) for share in self.shares), default=0.0)


def classes_of(report: Report, past: Sequence[Report]) -> Classes:
    """Compare the classes of a report with those of up to seven partitions before.

    Args:
        past: Reports of earlier runs, the newest first.
    """
    now, before = _shares(report), _before(report, past)
    earlier = [_shares(run) for run in before]
    names = dict.fromkeys([*now, *(name for shares in earlier for name in [*shares][:3])])
    counts = {label.label: label.count for label in report.top_labels}
    class_shares = []
    for name in names:
        if name not in now and len(now) >= _REPORTED:
            continue  # it may have rows all the same
        known = [
            shares.get(name, 0.0) for shares in earlier if name in shares or len(shares) < _REPORTED
        ]
        mean = fmean(known) if known else None
        class_shares.append(ClassShare(name, counts.get(name, 0), now.get(name, 0.0), mean))
    if not now or not before:
        return Classes(tuple(class_shares) if now else (), "")
    last, first = before[0].partition, before[-1].partition
    are = f"the mean of the {len(before)} partitions before, {first} to {last}"
    return Classes(tuple(class_shares), last if len(before) == 1 else are)


def _shares(report: Report) -> dict[str, float]:
    rows = report.rows.predicted
    return {label.label: 100 * label.count / rows for label in report.top_labels} if rows else {}


def _before(report: Report, past: Sequence[Report]) -> list[Report]:
    """Return the newest published report of each of the partitions before, the last one first."""
    newest: dict[str, Report] = {}
    for run in past:
        if run.status == "published" and run.top_labels:
            newest.setdefault(run.partition, run)
    return [newest[name] for name in earlier_names(report.partition, [*newest])[:_PARTITIONS]]
