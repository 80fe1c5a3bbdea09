"""What a plan carries over from earlier versions: predictions that are taken, not computed.

Pure data. Three plans of rows are told apart: the *whole* plan has all rows of the input and gives
the partition its fingerprint; the *work* plan has those that are computed, in the same order; and
`Carried` says between which of those the carried predictions go.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import numpy as np

from pipeline.core.arrays import Numbers

COMPUTED = -1
"""Instead of a source: of a row that is computed."""


@dataclass(frozen=True)
class Source:
    """A published version that predictions are taken from."""

    partition: str | None
    """As `Layout.partition`."""
    number: int
    token: str
    """Of its manifest: a version of the same number is no other one."""


@dataclass(frozen=True)
class KnownShard:
    """A shard as a version knows it: a row of `units.parquet`."""

    uri: str
    """Of the shard, whole."""
    size_bytes: int
    version: str
    """As `Extent.exact_version`: of a local file with its ctime, which no tool can put back."""
    num_rows: int
    """Rows of the shard in that version, predicted or quarantined."""
    first: int
    """How many predictions of that version come before its first row."""
    failed: tuple[int, ...] = ()
    """Numbers in the shard, ascending, of its rows without a prediction."""
    computed_day: int = 0
    """Days from 1970 to when the oldest of its predictions was computed."""


@dataclass(frozen=True)
class Carried:
    """Which predictions are taken from where; K runs of consecutive predictions, in input order.

    A row of `runs` says: before row `row` of unit `unit` of the work plan come `num_rows`
    predictions of source `source`, from its prediction `first` on. A unit that is one more than the
    last, with row 0, means: after all of them.
    """

    sources: tuple[Source, ...]
    runs: Numbers
    """int64 (K, 5): unit, row, source, first, num_rows."""
    checked: Numbers
    """int64 (S, 4): unit, row, source, first: rows of the work plan that are computed although the
    prediction of each is known, so that it is compared."""
    by_content: bool = False
    """Rows of the work plan are looked up by their content, too, while they are read."""

    @property
    def num_rows(self) -> int:
        """Rows that are carried; those that are found by content come on top."""
        return int(self.runs[:, 4].sum())


def no_runs() -> Numbers:
    """Return int64 (0, 5)."""
    return np.zeros((0, 5), np.int64)


def day_of(time: dt.datetime) -> int:
    """Return the days from 1970 to a time."""
    return (time.date() - dt.date(1970, 1, 1)).days
