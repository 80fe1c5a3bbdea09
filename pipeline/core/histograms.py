"""How predictions are distributed: counted slice by slice, summed exactly, compared between nights.

Scores are counted in 20 bins of [0, 1]. Other numbers have no natural bins, so they are counted by
the upper half of their rounded float32 bits (within 0.8% of each other), which adds up exactly
whatever the order; bins of near equal weight are made of that when two nights are compared.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.schema import SCORE, as_array

NORM = "norm"
DIRECTIONS = tuple(f"direction_{i}" for i in range(4))
"""Of an embedding: its length, and its cosines to fixed vectors of ones and minus ones. Another
space may look like the old one from one side, hardly from four."""
SCORE_BINS = 20
MAX_LABELS = 1000
MAX_BINS = 500
MAX_COUNTED_TARGETS = 8
_MAX_LABEL_BINS = 100
_NOISE_PSI = 0.025
"""There are so many bins that chance alone gives a PSI of about this: (bins - 1)(1/n + 1/m)."""
_SMOOTHING = 0.5
"""Rows added to every bin of both sides, so that an empty one has a logarithm."""

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Numbers:
    """How one number of the predictions is distributed."""

    lowest: float
    highest: float
    counts: Mapping[int, int] = field(default_factory=dict)
    """Bin -> rows; empty where only the range is kept."""
    shift: int | None = None
    """How many more bits bins leave out; None: bins are those of scores."""

    def __add__(self, other: Numbers) -> Numbers:
        """Sum two; the bins are the coarser ones of both."""
        shift = self.shift
        if shift is not None and other.shift is not None:
            shift = max(shift, other.shift)
        counts = Counter(self.shifted(shift))
        counts.update(other.shifted(shift))
        low, high = min(self.lowest, other.lowest), max(self.highest, other.highest)
        return Numbers(low, high, dict(counts), shift)

    def is_constant(self, tolerance: float, scale: float | None = None) -> bool:
        """Tell whether the range is at most a share of the largest value, or of `scale`."""
        scale = max(abs(self.lowest), abs(self.highest)) if scale is None else scale
        return self.highest - self.lowest <= tolerance * scale

    def shifted(self, shift: int | None) -> dict[int, int]:
        """Return the counts with coarser bins; those of scores stay as they are."""
        if shift is None or shift == self.shift:
            return dict(self.counts)
        counts: Counter[int] = Counter()
        for key, rows in self.counts.items():
            counts[key >> (shift - (self.shift or 0))] += rows
        return dict(counts)

    def bounded(self) -> Numbers:
        """Return this with no more than `MAX_BINS` bins."""
        found = self
        while found.shift is not None and len(found.counts) > MAX_BINS:
            shift = found.shift + 1
            found = Numbers(found.lowest, found.highest, found.shifted(shift), shift)
        return found

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
    """How the predictions of a night are distributed; rows that failed are not among them."""

    labels: Mapping[str, int] = field(default_factory=dict)
    num_other: int = 0
    """Rows with a label that is not in `labels`."""
    numbers: Mapping[str, Numbers] = field(default_factory=dict)

    @property
    def num_labelled(self) -> int:
        return sum(self.labels.values()) + self.num_other

    def __add__(self, other: Distribution) -> Distribution:
        """Sum two nights, or parts of one."""
        labels = Counter(self.labels)
        labels.update(other.labels)
        numbers = sum_numbers(self.numbers, other.numbers)
        return Distribution(dict(labels), self.num_other + other.num_other, numbers)

    def is_constant(self, tolerance: float) -> bool:
        """Tell whether all predictions are alike; no numbers at all say nothing."""
        labels = [label for label, rows in self.labels.items() if rows]
        return bool(self.numbers) and len(labels) <= 1 and not self.num_other and all(
            numbers.is_constant(tolerance, 1.0 if name in DIRECTIONS else None)
            for name, numbers in self.numbers.items()
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: the most frequent labels, no number with too many bins."""
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
    """Count the numbers of the rows that have a prediction.

    Args:
        rows: A staged slice; rows without a prediction are null in these columns.
        columns: What `measured_columns` names.
    """
    found: dict[str, Numbers] = {}
    for place, name in enumerate(columns):
        column = as_array(rows.column(name).drop_null())
        if not len(column):
            continue
        if pa.types.is_fixed_size_list(column.type):
            found |= {part: _counted(values) for part, values in _vectors(column)}
            continue
        values = np.asarray(column.to_numpy(zero_copy_only=False), np.float32)
        if name == SCORE:
            bins = np.minimum((values * SCORE_BINS).astype(np.int64), SCORE_BINS - 1)
            found[name] = Numbers(float(values.min()), float(values.max()), _counts(bins))
        else:
            found[name] = _counted(values, with_bins=place < MAX_COUNTED_TARGETS)
    return found


def _vectors(column: pa.Array) -> Iterable[tuple[str, Floats]]:
    """Yield what is measured of embeddings, each (N,)."""
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
    # Minus zero becomes zero. Rounded, so that numbers that should be one (lengths that are scaled
    # to 1) lie in the middle of a bin. Of a negative number a larger magnitude is a smaller key.
    bits = (np.asarray(values, np.float32) + np.float32(0)).view(np.uint32)
    upper = (bits + np.uint32(0x8000)) >> 16
    magnitude = (upper & 0x7FFF).astype(np.int64)
    keys = np.where(upper >> 15 == 1, -magnitude - 1, magnitude)
    counts = _counts(keys) if with_bins else {}
    return Numbers(float(values.min()), float(values.max()), counts, shift=0)


def _counts(keys: npt.NDArray[np.int64]) -> dict[int, int]:
    found, rows = np.unique(keys, return_counts=True)
    return dict(zip(found.tolist(), rows.tolist(), strict=True))


def sum_numbers(a: Mapping[str, Numbers], b: Mapping[str, Numbers]) -> dict[str, Numbers]:
    """Return the sums of two sets of numbers."""
    return {**a, **{name: a[name] + more if name in a else more for name, more in b.items()}}


@dataclass(frozen=True)
class Bin:
    """One bin of two nights; the name is a label's, or empty for several."""

    name: str
    before: int
    now: int


@dataclass(frozen=True)
class Shift:
    """How far two nights are apart."""

    psi: float
    num_before: int
    num_now: int
    most: str = ""
    """The label that contributes most, with both shares; empty if it is none alone."""


def compare_labels(before: Distribution, now: Distribution) -> Shift:
    """Compare the labels of two nights.

    A label with the weight of a bin, on either night, is one. The others, also those that only one
    night has, are joined in order of their names until they weigh as much: of a thousand labels
    in a thousand rows, many are missing by chance. What was too rare to be kept is one more bin.
    """
    weight = _BinWeight.of(before.num_labelled, now.num_labelled, _MAX_LABEL_BINS)
    names = {*before.labels, *(() if before.num_other else now.labels)}
    triples = [(name, before.labels.get(name, 0), now.labels.get(name, 0)) for name in names]
    triples.sort(key=lambda triple: (weight.is_reached(*triple[1:]), triple[0]))
    others = now.num_labelled - sum(rows for _, _, rows in triples)
    return _shift([*_join(triples, weight), Bin("", before.num_other, others)])


def compare_numbers(before: Numbers, now: Numbers) -> Shift:
    """Compare one number of two nights."""
    if before.shift is None or now.shift is None:
        old, new = before.counts, now.counts
        return _shift([Bin("", old.get(i, 0), new.get(i, 0)) for i in range(SCORE_BINS)])
    shift = max(before.shift, now.shift)
    old, new = before.shifted(shift), now.shifted(shift)
    weight = _BinWeight.of(sum(old.values()), sum(new.values()), SCORE_BINS)
    keys = sorted({*old, *new})
    return _shift(_join([("", old.get(key, 0), new.get(key, 0)) for key in keys], weight))


@dataclass(frozen=True)
class _BinWeight:
    """How many rows of each night make a bin."""

    before: float
    now: float

    @classmethod
    def of(cls, before: int, now: int, most_bins: int) -> _BinWeight:
        if not before or not now:
            return cls(1.0, 1.0)
        bins = max(2.0, min(float(most_bins), 1 + _NOISE_PSI / (1 / before + 1 / now)))
        return cls(before / bins, now / bins)

    def is_reached(self, before: int, now: int) -> bool:
        return before >= self.before or now >= self.now


def _join(triples: Iterable[tuple[str, int, int]], weight: _BinWeight) -> list[Bin]:
    """Join neighbours until they weigh as much as a bin; what weighs that alone stays alone."""
    bins, before, now = [], 0, 0
    for name, old, new in triples:
        if weight.is_reached(old, new):
            bins += [Bin("", before, now), Bin(name, old, new)]
            before = now = 0
            continue
        before, now = before + old, now + new
        if before >= weight.before:
            bins.append(Bin("", before, now))
            before = now = 0
    return [*bins, Bin("", before, now)]


def _shift(bins: Sequence[Bin]) -> Shift:
    """Sum (q - p) ln(q / p), where p and q are the shares of a bin before and now."""
    used = [one for one in bins if one.before or one.now]
    num_before, num_now = sum(one.before for one in used), sum(one.now for one in used)
    all_before = num_before + _SMOOTHING * len(used)
    all_now = num_now + _SMOOTHING * len(used)
    psi, worst, most = 0.0, 0.0, ""
    for one in used:
        p, q = (one.before + _SMOOTHING) / all_before, (one.now + _SMOOTHING) / all_now
        part = (q - p) * log(q / p)
        psi += part
        if part > worst:
            worst = part
            shares = f"{100 * one.before / max(1, num_before):.1f}%, "
            shares += f"now {100 * one.now / max(1, num_now):.1f}%"
            most = f"{one.name!r} was {shares}" if one.name else ""
    return Shift(psi, num_before, num_now, most)
