"""Distributions of predictions, counted slice by slice; they add up exactly, and gates/drift.py
compares them.

Scores of labels are counted in 20 bins of [0, 1]. Other numbers have no natural bins, so they are
counted by the upper 16 bits of their rounded float32: sign, exponent and 7 bits of the mantissa.
Values of one bin are within 2**-7 (0.8%) of each other, and counts add up exactly in any order.
This is a DDSketch (Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable quantile sketch with
relative-error guarantees", PVLDB 12, 2019) whose logarithm is interpolated linearly within an
octave, as in its fast mapping. If there are too many bins, one more bit is left out, which halves
their number.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import as_array
from pipeline.core.schema import EMBEDDING, LABEL, LABELS, SCORE

NORM = "norm"
DIRECTIONS = tuple(f"direction_{i}" for i in range(4))
"""Figures of an embedding: its length, and its cosines to four fixed vectors of ones and minus
ones. A changed space is unlikely to have the old distribution in all four."""
SCORE_BINS = 20
MAX_LABELS = 1000
MAX_BINS = 500
MAX_COUNTED_TARGETS = 8
_FEW_KEYS = 1 << 17

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Numbers:
    """The distribution of one number of the predictions."""

    lowest: float
    highest: float
    counts: Mapping[int, int] = field(default_factory=dict)
    """Bin -> rows; empty if only the range is kept."""
    shift: int | None = None
    """How many more bits the bins leave out; None for the bins of scores."""

    def __add__(self, other: Numbers) -> Numbers:
        """Add two distributions, with the coarser bins of the two."""
        shift = self.shift
        if shift is not None and other.shift is not None:
            shift = max(shift, other.shift)
        counts = Counter(self.shifted(shift))
        counts.update(other.shifted(shift))
        low, high = min(self.lowest, other.lowest), max(self.highest, other.highest)
        return Numbers(low, high, dict(counts), shift)

    def is_constant(self, tolerance: float, scale: float | None = None) -> bool:
        """Tell whether the range is at most `tolerance` times `scale`, or the largest value."""
        scale = max(abs(self.lowest), abs(self.highest)) if scale is None else scale
        return self.highest - self.lowest <= tolerance * scale

    def shifted(self, shift: int | None) -> dict[int, int]:
        """Return the counts with coarser bins; bins of scores are kept."""
        if shift is None or shift == self.shift:
            return dict(self.counts)
        counts: Counter[int] = Counter()
        for key, rows in self.counts.items():
            counts[key >> (shift - (self.shift or 0))] += rows
        return dict(counts)

    def bounded(self) -> Numbers:
        """Return the same distribution with at most `MAX_BINS` bins."""
        numbers = self
        while numbers.shift is not None and len(numbers.counts) > MAX_BINS:
            shift = numbers.shift + 1
            numbers = Numbers(numbers.lowest, numbers.highest, numbers.shifted(shift), shift)
        return numbers

    def to_dict(self) -> dict[str, Any]:
        counts = {str(key): self.counts[key] for key in sorted(self.counts)}
        return {"lowest": self.lowest, "highest": self.highest, "counts": counts,
                "shift": self.shift}  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Numbers:
        counts = {int(key): rows for key, rows in values["counts"].items()}
        return cls(values["lowest"], values["highest"], counts, values["shift"])


@dataclass(frozen=True)
class Distribution:
    """The distribution of the predictions of a partition; failed rows do not count."""

    labels: Mapping[str, int] = field(default_factory=dict)
    num_other: int = 0
    """Rows with a label that is not in `labels`."""
    numbers: Mapping[str, Numbers] = field(default_factory=dict)

    @property
    def num_labelled(self) -> int:
        return sum(self.labels.values()) + self.num_other

    def __add__(self, other: Distribution) -> Distribution:
        """Add the distributions of two partitions, or of two parts."""
        labels = Counter(self.labels)
        labels.update(other.labels)
        numbers = sum_numbers(self.numbers, other.numbers)
        return Distribution(dict(labels), self.num_other + other.num_other, numbers)

    def is_constant(self, tolerance: float) -> bool:
        """Tell whether all predictions are alike; False if nothing was measured."""
        labels = [label for label, rows in self.labels.items() if rows]
        return bool(self.numbers) and len(labels) <= 1 and not self.num_other and all(
            numbers.is_constant(tolerance, 1.0 if name in DIRECTIONS else None)
            for name, numbers in self.numbers.items()
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: the most frequent labels, and bounded numbers."""
        frequent = Counter(self.labels).most_common(MAX_LABELS)
        rest = self.num_labelled - sum(rows for _, rows in frequent)
        numbers = {name: value.bounded().to_dict() for name, value in self.numbers.items()}
        return {"labels": dict(frequent), "num_other": rest, "numbers": numbers}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Distribution:
        """Undo `to_dict`; an empty document is an empty distribution."""
        numbers = {k: Numbers.from_dict(v) for k, v in values.get("numbers", {}).items()}
        return cls(values.get("labels", {}), values.get("num_other", 0), numbers)


def measure_numbers(rows: pa.Table, columns: Sequence[str]) -> dict[str, Numbers]:
    """Count the numbers of the rows that have a prediction; texts are left out.

    Args:
        rows: A staged slice; rows without a prediction are null in these columns.
        columns: The columns that `measured_columns` names.
    """
    numbers: dict[str, Numbers] = {}
    for place, name in enumerate(columns):
        column = as_array(rows.column(name).drop_null())
        if not len(column) or pa.types.is_string(column.type):
            continue
        if pa.types.is_fixed_size_list(column.type):
            head = name.removesuffix(EMBEDDING)  # one of several has a name before the column's
            numbers |= {f"{head}{part}": _counted(values) for part, values in _vectors(column)}
            continue
        if pa.types.is_list(column.type):
            head = name.removesuffix(LABELS) if name.endswith(f"_{LABELS}") else ""
            counted = _of_entries(name.removeprefix(head), column)
            numbers |= {f"{head}{part}": values for part, values in counted.items()}
            continue
        values = np.asarray(column.to_numpy(zero_copy_only=False), np.float32)
        if name == SCORE and LABEL in rows.column_names:  # the score of a pair has any size
            numbers[name] = _probabilities(values)
        else:
            numbers[name] = _counted(values, with_bins=place < MAX_COUNTED_TARGETS)
    return numbers


def _of_entries(name: str, column: pa.Array) -> dict[str, Numbers]:
    """Count the entries of each row, and their scores; list<struct<score, ...>> (N,)."""
    lengths = np.asarray(column.value_lengths().to_numpy(zero_copy_only=False), np.float32)
    scores = pc.struct_field(column.flatten(), SCORE).to_numpy(zero_copy_only=False)
    numbers = {f"num_{name}": _counted(lengths)}
    return {**numbers, SCORE: _probabilities(scores)} if len(scores) else numbers


def _probabilities(values: Floats) -> Numbers:
    """Count probabilities, float32 (N,) in [0, 1]."""
    bins = np.minimum((values * SCORE_BINS).astype(np.int64), SCORE_BINS - 1)
    return Numbers(float(values.min()), float(values.max()), _counts(bins))


def _vectors(column: pa.Array) -> Iterable[tuple[str, Floats]]:
    """Yield the name and values of each figure of embeddings, (N,)."""
    size = column.type.list_size
    flat = column.values.slice(column.offset * size, len(column) * size)
    vectors = np.asarray(flat.to_numpy(zero_copy_only=False), np.float64).reshape(-1, size)
    norms = np.linalg.norm(vectors, axis=1)
    yield NORM, norms
    scale = np.where(norms == 0.0, 1.0, norms) * np.sqrt(size)
    for name in DIRECTIONS:
        digest = hashlib.shake_256(name.encode()).digest(-(-size // 8))
        signs = np.unpackbits(np.frombuffer(digest, np.uint8))[:size] * 2.0 - 1.0
        yield name, vectors @ signs / scale


def _counted(values: Floats, *, with_bins: bool = True) -> Numbers:
    """Count numbers, (N,), by the upper 16 bits of their float32 (see the module's docstring).

    Keys are in the order of the numbers: 1.0 is 0x3F80 = 16256, 2.0 is 16384, 0.0 is 0, -1.0 is
    -16256 - 1 and -2.0 is -16384 - 1.
    """
    # Minus zero becomes zero. Rounding puts numbers that should be 1 (scaled lengths) in the middle
    # of a bin. For negative numbers a larger magnitude gives a smaller key.
    bits = (np.asarray(values, np.float32) + np.float32(0)).view(np.uint32)
    upper = (bits + np.uint32(0x8000)) >> 16
    magnitude = (upper & 0x7FFF).astype(np.int64)
    keys = np.where(upper >> 15 == 1, -magnitude - 1, magnitude)
    counts = _counts(keys) if with_bins else {}
    return Numbers(float(values.min()), float(values.max()), counts, shift=0)


def _counts(keys: npt.NDArray[np.int64]) -> dict[int, int]:
    """Return key -> number of rows, for keys (N,)."""
    low, high = int(keys.min()), int(keys.max())
    if high - low < _FEW_KEYS:  # counted without sorting
        counts = np.bincount(keys - low)
        present = np.flatnonzero(counts)
        return dict(zip((present + low).tolist(), counts[present].tolist(), strict=True))
    present, rows = np.unique(keys, return_counts=True)
    return dict(zip(present.tolist(), rows.tolist(), strict=True))


def sum_numbers(a: Mapping[str, Numbers], b: Mapping[str, Numbers]) -> dict[str, Numbers]:
    """Return the sums of two sets of numbers."""
    return {**a, **{name: a[name] + more if name in a else more for name, more in b.items()}}
