"""What became of the rows of a run so far: those of its slices, and those that a retry keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from pipeline.commit.manifest import Manifest
from pipeline.core.causes import Cause
from pipeline.core.failures import Reason
from pipeline.core.figures.histograms import Distribution
from pipeline.core.figures.slice_figures import SliceFigures
from pipeline.planning.plan import Plan
from pipeline.report.recording.slice_count import SliceCount
from pipeline.report.recording.slice_totals import KeptRows, SliceTotals
from pipeline.storage.skipped import Skipped

_TOP_FAILURES = 5


class RowAccounts:
    """The sums over all rows of a run, as they are known so far."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._totals = SliceTotals()
        self._count = SliceCount()
        self._published: Manifest | None = None
        self._kept: KeptRows | None = None
        self._alike: Cause | None = None

    @property
    def plan(self) -> Plan | None:
        """Return what is to be done, once that is known."""
        return self._plan

    @property
    def num_accounted(self) -> int:
        """Rows that will be published: of all committed slices, and what is kept."""
        return self.num_done + self.num_kept

    @property
    def num_planned(self) -> int:
        """Rows of all slices that make up the plan, and what is kept."""
        return (self._count.total_rows or 0) + self.num_kept

    @property
    def num_done(self) -> int:
        """Rows of all committed slices, of this run and of earlier ones."""
        return self._count.num_done

    @property
    def num_kept(self) -> int:
        """Rows that stay as they are published."""
        return self._kept.num_rows if self._kept else 0

    @property
    def num_quarantined(self) -> int:
        """Quarantined rows, with those that are kept."""
        kept = sum(self._kept.reasons.values()) if self._kept else 0
        return self._totals.num_quarantined + kept

    @property
    def reasons(self) -> Mapping[str, int]:
        """Quarantined rows by reason."""
        found = Counter(self._totals.reasons)
        found.update(self._kept.reasons if self._kept else {})
        return {reason: num_rows for reason, num_rows in found.items() if num_rows}

    def top_failures(self, number: int = _TOP_FAILURES) -> list[Cause]:
        """Return the causes of the most failed rows; those of kept rows have no message."""
        causes = self._totals.causes.complete(self.reasons)
        return [self._alike] if self._alike else causes.top(number)

    @property
    def skipped(self) -> Skipped:
        """What lies below the source and is no row; of a retry, when it was listed at last."""
        if self._kept is not None:
            return self._kept.skipped
        return self._plan.skipped if self._plan else Skipped()

    @property
    def figures(self) -> SliceFigures:
        """What was measured of all committed slices, of this run and of earlier ones."""
        return self._totals.figures

    @property
    def distribution(self) -> Distribution:
        """How the predictions are distributed; numbers of duplicate ids are still among them."""
        own = self._totals.distribution
        return own if self._kept is None else self._kept.distribution + own

    @property
    def num_predicted(self) -> int:
        """Predicted rows, with those that are kept."""
        return self.num_accounted - self.num_quarantined

    @property
    def num_unreadable_shards(self) -> int:
        """Shards that could not be read (to their end), so that their row count is unknown."""
        if self._published is not None:
            return self._published.num_unreadable_shards
        if self._plan is None:
            return 0
        if self._plan.counts_by_reading:  # each such shard is one row
            return self.reasons.get(Reason.UNREADABLE_SHARD.value, 0)
        if self._kept is not None and self._kept.num_unreadable_shards is not None:
            return self._kept.num_unreadable_shards
        return sum(extent.is_whole_shard for unit in self._plan.units for extent in unit.extents)
