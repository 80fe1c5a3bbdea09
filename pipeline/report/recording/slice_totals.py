"""Sum up what became of the rows of committed slices, as their footers tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.commit.layout import parse_staged_name
from pipeline.commit.staging import StagedSlice
from pipeline.core.causes import Cause, Causes
from pipeline.core.failures import Reason
from pipeline.core.figures.histograms import Distribution, Numbers, sum_numbers
from pipeline.core.figures.slice_figures import SliceFigures
from pipeline.core.slices import SliceKey
from pipeline.storage.skipped import Skipped

ReadFooter = Callable[[str], StagedSlice]
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


class SliceTotals:
    """Labels, scores and failures of the slices that were counted."""

    def __init__(self) -> None:
        self.num_quarantined = 0
        self.reasons: Counter[str] = Counter()
        self.figures = SliceFigures()
        self.causes = Causes()
        """Why rows failed, as far as the footers say."""
        self._labels: Counter[str] = Counter()
        self._numbers: dict[str, Numbers] = {}
        self._names: dict[SliceKey, str] = {}  # of the attempts that were counted

    @property
    def distribution(self) -> Distribution:
        """How the predictions are distributed; numbers of duplicate ids are still among them."""
        return Distribution(labels=self._labels, numbers=self._numbers)

    def count(self, staged: StagedSlice) -> None:
        """Count one attempt of a slice."""
        key = parse_staged_name(staged.name)
        if key is not None:
            self._names[key] = staged.name
        self.figures += staged.figures
        found = {name: Numbers.from_dict(values) for name, values in staged.numbers.items()}
        self._numbers = sum_numbers(self._numbers, found)
        self._labels.update(staged.labels)
        self.reasons.update(staged.reasons)
        self.causes.add(Cause(**cause) for cause in staged.causes)
        self.num_quarantined += staged.num_quarantined

    def are_of(self, slices: Sequence[tuple[SliceKey, str]]) -> bool:
        """Tell whether of none of these slices another attempt was counted than the one named."""
        names = ((key, path.rpartition("/")[2]) for key, path in slices)
        return all(self._names.get(key, name) == name for key, name in names)

    def lose(self, labels: Mapping[str | None, int]) -> None:
        """Count rows that lost their prediction because an earlier row has the same id.

        Args:
            labels: How many of them had which label; None had failed already and counts no more.
        """
        for label, num_rows in labels.items():
            if label is not None:
                self.causes.add([replace(_DUPLICATE, num_rows=num_rows)])
                if label in self._labels:
                    self._labels[label] -= num_rows
                self.reasons[Reason.DUPLICATE_ID.value] += num_rows
                self.num_quarantined += num_rows
