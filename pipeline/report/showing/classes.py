"""The most frequent classes of a partition, beside those of the partitions before."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from pipeline.commit.layout import earlier_names

if TYPE_CHECKING:
    from pipeline.report.document import Report

_PARTITIONS = 7
_REPORTED = 10
"""A report has so many labels; what is behind them is unknown."""


@dataclass(frozen=True)
class ClassShare:
    """One class, as a share of the rows with a prediction."""

    label: str
    rows: int
    pct: float
    before_pct: float | None
    """The mean of the partitions before that tell it; None if none does."""


@dataclass(frozen=True)
class Classes:
    """The most frequent classes of a partition."""

    shares: tuple[ClassShare, ...]
    beside: str
    """What they are compared with; '' if there is nothing."""

    @property
    def has_ids(self) -> bool:
        """Tell whether a class id stands behind a name, as in `missile (657)`."""
        return any(re.search(r" \(\d+\)$", each.label) for each in self.shares)

    @property
    def most_pct(self) -> float:
        """The largest of all shares, for the scale of a chart."""
        return max((max(each.pct, each.before_pct or 0.0) for each in self.shares), default=0.0)


def classes_of(report: Report, past: Sequence[Report]) -> Classes:
    """Compare the classes of a report with those of up to seven partitions before.

    Args:
        past: Reports of earlier runs, the newest first.
    """
    now, before = _shares(report), _before(report, past)
    earlier = [_shares(each) for each in before]
    names = dict.fromkeys([*now, *(name for shares in earlier for name in [*shares][:3])])
    counts = {each.label: each.count for each in report.top_labels}
    found = []
    for name in names:
        if name not in now and len(now) >= _REPORTED:
            continue  # it may have rows all the same
        known = [
            shares.get(name, 0.0) for shares in earlier if name in shares or len(shares) < _REPORTED
        ]
        mean = fmean(known) if known else None
        found.append(ClassShare(name, counts.get(name, 0), now.get(name, 0.0), mean))
    if not now or not before:
        return Classes(tuple(found) if now else (), "")
    last, first = before[0].partition, before[-1].partition
    are = f"the mean of the {len(before)} partitions before, {first} to {last}"
    return Classes(tuple(found), last if len(before) == 1 else are)


def _shares(report: Report) -> dict[str, float]:
    rows = report.rows.predicted
    return {each.label: 100 * each.count / rows for each in report.top_labels} if rows else {}


def _before(report: Report, past: Sequence[Report]) -> list[Report]:
    """Return the newest published report of each of the partitions before, the last one first."""
    newest: dict[str, Report] = {}
    for each in past:
        if each.status == "published" and each.top_labels:
            newest.setdefault(each.partition, each)
    return [newest[name] for name in earlier_names(report.partition, [*newest])[:_PARTITIONS]]
