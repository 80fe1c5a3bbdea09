"""Sums over the rows of a run so far: by origin, reason, cause, label and number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pipeline.commit.layout import parse_staged_name
from pipeline.commit.manifest import Manifest
from pipeline.commit.staging import StagedSlice
from pipeline.core.failures import Cause, Causes, Reason
from pipeline.core.figures import PUBLISH, SliceFigures
from pipeline.core.histograms import Distribution, Numbers, sum_numbers
from pipeline.core.printable import clean_message, num_of
from pipeline.core.slices import SliceKey
from pipeline.gates.gate import NONE_UNREADABLE, UnreadableShards
from pipeline.planning.plan import Plan
from pipeline.report.sections.outcome import Rows, Slices
from pipeline.report.sections.versions import LabelCount
from pipeline.sources.units import Extent
from pipeline.storage.skipped import Skipped

Origin = Literal["computed", "resumed"]
"""Committed by this run, or by an earlier one."""
_CARRIED: Literal["carried"] = "carried"
"""Rows, of either origin, whose predictions were taken over from earlier versions."""
_KEPT: Literal["kept"] = "kept"
"""Rows, of either origin, that failed before a retry that was not asked for them."""
ReadFooter = Callable[[str], StagedSlice]
_TOP_FAILURES = 5
_TOP_LABELS = 10
_DUPLICATE = Cause(Reason.DUPLICATE_ID.value, PUBLISH, "an earlier row has the same id")


class RowAccounts:
    """The sums over all rows of a run, as they are known so far."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        """None until it is made."""
        self._published: Manifest | None = None
        self._alike: Cause | None = None
        self._rows: Counter[Literal[Origin, "carried", "kept"]] = Counter()
        self._slices: Counter[Origin] = Counter()
        self._total_rows: int | None = None
        self._total_slices: int | None = None
        self._is_begun = False
        """Slices that were staged before are counted, so that the rest is left to do."""
        self._clear()

    def _clear(self) -> None:
        self.figures = SliceFigures()
        """Figures of all committed slices, of this run and of earlier ones."""
        self.num_quarantined = 0
        self._reasons: Counter[str] = Counter()
        self._causes = Causes()  # as far as the footers say
        self._labels: Counter[str] = Counter()
        self._numbers: dict[str, Numbers] = {}
        self._computed_labels: Counter[str] = Counter()
        self._computed_numbers: dict[str, Numbers] = {}
        self.units_with_looked_up_rows: set[int] = set()
        """Units of the plan with rows whose predictions were found by their content."""
        self.num_checked = 0
        """Known rows that were computed again and compared."""
        self.differing: list[str] = []
        """A line for each of them that differs."""
        self._broken_units: set[int] = set()
        """Units whose shard could not be read to its end, if only reading counts their rows."""
        self._names: dict[SliceKey, str] = {}  # of the attempts that were counted

    def start_over(self) -> None:
        """Forget the counted slices: staged ones are counted again."""
        self._rows.clear()
        self._slices.clear()
        self._clear()

    def add(self, origin: Origin, staged: StagedSlice) -> None:
        """Count a committed slice."""
        self._rows[origin] += staged.num_rows - staged.num_carried - staged.num_kept
        self._rows[_CARRIED] += staged.num_carried
        self._rows[_KEPT] += staged.num_kept
        self._slices[origin] += 1
        self._count(staged)

    def _count(self, staged: StagedSlice) -> None:
        key = parse_staged_name(staged.name)
        if key is not None:
            self._names[key] = staged.name
            if staged.reasons.get(Reason.UNREADABLE_SHARD.value):
                self._broken_units.add(key.unit)
            looked_up = staged.figures.looked_up
            if looked_up is not None and looked_up.num_known:
                self.units_with_looked_up_rows.add(key.unit)
        self.figures += staged.figures
        self._numbers = sum_numbers(self._numbers, _read(staged.numbers))
        self._labels.update(staged.labels)
        is_mixed = bool(staged.sources)
        labels = staged.computed_labels if is_mixed else staged.labels
        self._computed_labels.update(labels)
        numbers = staged.computed_numbers if is_mixed else staged.numbers
        self._computed_numbers = sum_numbers(self._computed_numbers, _read(numbers))
        self.num_checked += staged.num_checked
        self.differing += staged.differing
        self._reasons.update(staged.reasons)
        self._causes.add(Cause(**cause) for cause in staged.causes)
        self.num_quarantined += staged.num_quarantined

    def recount(self, slices: Sequence[tuple[SliceKey, str]], read: ReadFooter) -> None:
        """Count the staged parts again if another run's attempt at a slice won.

        Two attempts may differ: a URI that failed an hour ago can be read now.

        Args:
            slices: Every slice with the path of the winning attempt.
            read: Reads the footer of a staged part.
        """
        names = ((key, path.rpartition("/")[2]) for key, path in slices)
        if any(self._names.get(key, name) != name for key, name in names):
            self._clear()
            for _, path in slices:
                self._count(read(path))

    def tiled(self, slices: Sequence[SliceKey]) -> None:
        """Note the slices that make up the plan; only now may their number of rows be known."""
        self._is_begun = True
        self._total_rows = sum(key.num_rows for key in slices)
        self._total_slices = len(slices)

    def duplicates(self, labels: Mapping[str | None, int]) -> None:
        """Count rows that lost their prediction because an earlier row has the same id.

        Args:
            labels: Label -> number of these rows; rows under None had failed already and are not
                counted again.
        """
        for label, num_rows in labels.items():
            if label is not None:
                self._causes.add([replace(_DUPLICATE, num_rows=num_rows)])
                if label in self._labels:
                    self._labels[label] -= num_rows
                self._reasons[Reason.DUPLICATE_ID.value] += num_rows
                self.num_quarantined += num_rows

    def left_to_do(self) -> str:
        """Describe in a few words how much is done and how much is left."""
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
        """Return the number of slices in all; more than planned if some came in pieces."""
        if self._total_slices is None:
            return None
        are_left = self._total_rows is not None and self.num_done < self._total_rows
        return max(self._total_slices, self._slices.total() + are_left)

    def rows_section(self) -> Rows:
        """Return the section of the report."""
        is_known = self._is_begun and self._total_slices is not None
        left_out = self.plan.left_out if self.plan and self.plan.where else None
        return Rows(
            left_out=left_out and left_out.rows,
            unopened_shards=left_out and left_out.shards,
            total=self._total_rows,
            predicted=self.num_predicted,
            quarantined=self.num_quarantined,
            computed=self._rows["computed"],
            resumed=self._rows["resumed"],
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
    def num_planned(self) -> int:
        """Rows of all slices that make up the plan."""
        return self._total_rows or 0

    @property
    def num_done(self) -> int:
        """Rows of all committed slices, of this run and of earlier ones."""
        return self._rows.total()

    @property
    def num_carried(self) -> int:
        """Committed rows whose predictions were taken over from earlier versions."""
        return self._rows[_CARRIED]

    @property
    def num_left(self) -> int | None:
        """Rows that are not committed; None if their number is unknown."""
        return None if self._total_rows is None else self._total_rows - self.num_done

    @property
    def reasons(self) -> Mapping[str, int]:
        """Quarantined rows by reason."""
        return {reason: num_rows for reason, num_rows in self._reasons.items() if num_rows}

    def top_failures(self, number: int = _TOP_FAILURES) -> list[Cause]:
        """Return the causes of the most failed rows."""
        causes = self._causes.complete(self.reasons)
        return [self._alike] if self._alike else causes.top(number)

    def top_labels(self) -> list[LabelCount]:
        """Return the most frequent labels with their rows."""
        labels = sorted(self.distribution.labels.items(), key=lambda pair: (-pair[1], pair[0]))
        return [LabelCount(label=label, count=num) for label, num in labels[:_TOP_LABELS]]

    @property
    def skipped(self) -> Skipped:
        """Files below the source that are not input."""
        return self.plan.skipped if self.plan else Skipped()

    @property
    def distribution(self) -> Distribution:
        """The distribution of the predictions; it still has the numbers of duplicate ids."""
        return Distribution(labels=self._labels, numbers=self._numbers)

    @property
    def computed_distribution(self) -> Distribution:
        """The distribution of the predictions that were not taken over."""
        return Distribution(labels=self._computed_labels, numbers=self._computed_numbers)

    @property
    def num_predicted(self) -> int:
        """Predicted rows."""
        return self.num_done - self.num_quarantined

    @property
    def num_unreadable_shards(self) -> int:
        """Shards that could not be read to their end, so that their row count is unknown."""
        if self._published is not None:
            return self._published.num_unreadable_shards
        if self.plan is None:
            return 0
        if self.plan.counts_by_reading:  # each such shard is one row
            return self.reasons.get(Reason.UNREADABLE_SHARD.value, 0)
        return len(self.plan.unopened)

    @property
    def unreadable(self) -> UnreadableShards:
        """Shards that could not be read to their end, as known so far."""
        if (plan := self.plan) is None:
            return NONE_UNREADABLE
        extents: Sequence[Extent] = plan.unopened
        if plan.counts_by_reading:
            units = (plan.units[index] for index in sorted(self._broken_units))
            extents = [unit.extents[0] for unit in units if len(unit.extents) == 1]
        example = extents[0] if extents else None
        words = (example.path, example.message) if example else ()
        return UnreadableShards(
            self.num_unreadable_shards,
            sum(extent.size_bytes for extent in extents),
            plan.num_shards,
            plan.input_bytes,
            clean_message(": ".join(filter(None, words))),
        )


def _read(numbers: Mapping[str, dict[str, Any]]) -> dict[str, Numbers]:
    return {name: Numbers.from_dict(values) for name, values in numbers.items()}
