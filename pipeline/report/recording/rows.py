"""What became of the rows of a run so far: those of its slices, and those that a retry keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline.commit.layout import parse_staged_name
from pipeline.commit.manifest import Manifest
from pipeline.commit.staging import StagedSlice
from pipeline.core.causes import Cause, Causes
from pipeline.core.failures import Reason
from pipeline.core.figures.histograms import Distribution, Numbers, sum_numbers
from pipeline.core.figures.slice_figures import SliceFigures
from pipeline.core.printable import num_of
from pipeline.core.slices import SliceKey
from pipeline.planning.plan import Plan
from pipeline.report.sections import LabelCount, Rows, Slices
from pipeline.storage.skipped import Skipped

Origin = Literal["computed", "resumed"]
"""Committed by this run, or by an earlier one."""
_FOUND: Literal["found"] = "found"
"""Of rows of both whose predictions were found by their content in earlier versions."""
ReadFooter = Callable[[str], StagedSlice]
_TOP_FAILURES = 5
_TOP_LABELS = 10
_DUPLICATE = Cause(Reason.DUPLICATE_ID.value, "publish", "an earlier row has the same id")


@dataclass(frozen=True)
class KeptRows:
    """What a version keeps of the one before: the rows that were not retried."""

    num_rows: int
    reasons: Mapping[str, int]
    distribution: Distribution
    num_unreadable_shards: int | None
    """None: those are counted by their reason."""
    fingerprint: str
    skipped: Skipped = field(default_factory=Skipped)


class RowAccounts:
    """The sums over all rows of a run, as they are known so far."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._published: Manifest | None = None
        self.restart()

    def restart(self) -> None:
        """Count anew: the rows of another plan of the same run."""
        self._kept: KeptRows | None = None
        self._alike: Cause | None = None
        self._rows: Counter[Literal[Origin, "found"]] = Counter()
        self._slices: Counter[Origin] = Counter()
        self._total_rows: int | None = None
        self._total_slices: int | None = None
        self._is_begun = False
        """What is staged already has been counted, so that the rest is what is left."""
        self._clear()

    def _clear(self) -> None:
        self.figures = SliceFigures()
        """What was measured of all committed slices, of this run and of earlier ones."""
        self._num_quarantined = 0
        self._reasons: Counter[str] = Counter()
        self._causes = Causes()  # as far as the footers say
        self._labels: Counter[str] = Counter()
        self._numbers: dict[str, Numbers] = {}
        self.units_with_found_rows: set[int] = set()
        """Units of the plan with rows whose predictions were found by their content."""
        self._names: dict[SliceKey, str] = {}  # of the attempts that were counted

    def add(self, origin: Origin, staged: StagedSlice) -> None:
        """Count a committed slice."""
        self._rows[origin] += staged.num_rows - staged.num_carried
        self._rows[_FOUND] += staged.num_carried
        self._slices[origin] += 1
        self._count(staged)

    def _count(self, staged: StagedSlice) -> None:
        key = parse_staged_name(staged.name)
        if key is not None:
            self._names[key] = staged.name
            if staged.num_carried:
                self.units_with_found_rows.add(key.unit)
        self.figures += staged.figures
        numbers = {name: Numbers.from_dict(values) for name, values in staged.numbers.items()}
        self._numbers = sum_numbers(self._numbers, numbers)
        self._labels.update(staged.labels)
        self._reasons.update(staged.reasons)
        self._causes.add(Cause(**cause) for cause in staged.causes)
        self._num_quarantined += staged.num_quarantined

    def recount(self, slices: Sequence[tuple[SliceKey, str]], read: ReadFooter) -> None:
        """Count what is staged if not our attempt of a slice won, but another run's.

        Two attempts may differ: a URI that failed an hour ago can be read now.

        Args:
            slices: Every slice with the path of the attempt that won.
            read: Reads the footer of a staged part.
        """
        names = ((key, path.rpartition("/")[2]) for key, path in slices)
        if any(self._names.get(key, name) != name for key, name in names):
            self._clear()
            for _, path in slices:
                self._count(read(path))

    def tiled(self, slices: Sequence[SliceKey]) -> None:
        """Note the slices that make up the plan; how many rows they have may be news."""
        self._is_begun = True
        self._total_rows = sum(key.num_rows for key in slices)
        self._total_slices = len(slices)

    def keep(self, kept: KeptRows) -> None:
        """Note what stays as it is published: a retry computes only the rest."""
        self._kept = kept

    def duplicates(self, labels: Mapping[str | None, int]) -> None:
        """Count rows that lost their prediction because an earlier row has the same id.

        Args:
            labels: How many of them had which label; None had failed already and counts no more.
        """
        for label, num_rows in labels.items():
            if label is not None:
                self._causes.add([replace(_DUPLICATE, num_rows=num_rows)])
                if label in self._labels:
                    self._labels[label] -= num_rows
                self._reasons[Reason.DUPLICATE_ID.value] += num_rows
                self._num_quarantined += num_rows

    def left_to_do(self) -> str:
        """Describe in a few words what is done and what is left."""
        if not self._is_begun:
            return "nothing was computed yet"
        done, slices = self.num_done, self._slices.total()
        total = self._most_slices()
        if self._total_rows is None or total is None:
            verb = "is" if done == 1 else "are"
            return (
                f"{num_of(done, 'row')} in {num_of(slices, 'slice')} {verb} done, the number of "
                "remaining rows is unknown"
            )
        if slices == total:
            return f"all {done} rows are computed, but not published"
        return (
            f"{done:,} of {self._total_rows:,} rows are done, "
            f"{num_of(self._total_rows - done, 'row')} in {num_of(total - slices, 'slice')} to go"
        )

    def _most_slices(self) -> int | None:
        """Return how many slices there are in all; more than planned if some came in pieces."""
        if self._total_slices is None:
            return None
        are_left = self._total_rows is not None and self.num_done < self._total_rows
        return max(self._total_slices, self._slices.total() + are_left)

    def rows_section(self) -> Rows:
        """Return the section of the report; kept rows count as resumed."""
        is_known = self._is_begun and self._total_slices is not None
        return Rows(
            total=None if self._total_rows is None else self._total_rows + self.num_kept,
            predicted=self.num_predicted,
            quarantined=self.num_quarantined,
            computed=self._rows["computed"],
            resumed=self._rows["resumed"] + self.num_kept,
            left=self.num_left if is_known else None,
        )

    def slices_section(self) -> Slices:
        """Return the section of the report."""
        total, done = self._most_slices(), self._slices.total()
        is_known = self._is_begun and total is not None and self._total_rows is not None
        return Slices(
            total=total,
            computed=self._slices["computed"],
            resumed=self._slices["resumed"],
            left=total - done if total is not None and is_known else None,
        )

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
        return (self._total_rows or 0) + self.num_kept

    @property
    def num_done(self) -> int:
        """Rows of all committed slices, of this run and of earlier ones."""
        return self._rows.total()

    @property
    def num_found(self) -> int:
        """Rows of them whose predictions were found by their content in earlier versions."""
        return self._rows[_FOUND]

    @property
    def num_left(self) -> int | None:
        """Rows that are not committed; None if their number is unknown."""
        return None if self._total_rows is None else self._total_rows - self.num_done

    @property
    def num_kept(self) -> int:
        """Rows that stay as they are published."""
        return self._kept.num_rows if self._kept else 0

    @property
    def num_quarantined(self) -> int:
        """Quarantined rows, with those that are kept."""
        kept = sum(self._kept.reasons.values()) if self._kept else 0
        return self._num_quarantined + kept

    @property
    def reasons(self) -> Mapping[str, int]:
        """Quarantined rows by reason."""
        found = Counter(self._reasons)
        found.update(self._kept.reasons if self._kept else {})
        return {reason: num_rows for reason, num_rows in found.items() if num_rows}

    def top_failures(self, number: int = _TOP_FAILURES) -> list[Cause]:
        """Return the causes of the most failed rows; those of kept rows have no message."""
        causes = self._causes.complete(self.reasons)
        return [self._alike] if self._alike else causes.top(number)

    def top_labels(self) -> list[LabelCount]:
        """Return the most frequent labels with their rows."""
        labels = Counter(self.distribution.labels).most_common(_TOP_LABELS)
        return [LabelCount(label=label, count=num_rows) for label, num_rows in labels]

    @property
    def skipped(self) -> Skipped:
        """What lies below the source and is no row; of a retry, when it was listed at last."""
        if self._kept is not None:
            return self._kept.skipped
        return self._plan.skipped if self._plan else Skipped()

    @property
    def distribution(self) -> Distribution:
        """How the predictions are distributed; numbers of duplicate ids are still among them."""
        own = self.own_distribution
        return own if self._kept is None else self._kept.distribution + own

    @property
    def own_distribution(self) -> Distribution:
        """How the predictions of all committed slices are distributed, without what is kept."""
        return Distribution(labels=self._labels, numbers=self._numbers)

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
