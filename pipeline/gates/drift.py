"""Gates on labels and numbers: constant predictions, and drift from earlier partitions by PSI.

The PSI bands of 0.1 and 0.25 are a convention, and the world may change from one partition to the
next, so drift only warns by default.

PSI = sum of (q - p) ln(q / p), where p and q are the shares of a bin before and now. Without drift
n * m / (n + m) * PSI is about chi-squared with bins - 1 degrees of freedom (Yurdakul and Naranjo,
"Statistical properties of the population stability index", Journal of Risk Model Validation 14,
2020), so E[PSI] = (bins - 1)(1/n + 1/m). The number of bins is chosen so that this noise stays near
0.025, far below the conventional limits of 0.1 and 0.25, whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log

from pipeline.core.histograms import SCORE_BINS, Distribution, Numbers
from pipeline.gates.earlier_partitions import NOTHING_EARLIER, Past
from pipeline.gates.gate import Figures, Gate, Need
from pipeline.gates.results import Finding
from pipeline.job.gates import Drift, Gates, Mode

_MAX_LABEL_BINS = 100
_NOISE_PSI = 0.025
"""Bins are chosen so that E[PSI] without drift, (bins - 1)(1/n + 1/m), is about this."""
_SMOOTHING = 0.5
"""Rows added to every bin of both sides, so that an empty bin has a logarithm."""


class LabelDrift(Gate):
    """Drift of the labels."""

    name = "label_drift"
    needs: frozenset[Need] = frozenset(["history"])
    judges_computed = True

    def mode(self, options: Gates) -> Mode:
        return options.label_drift.mode

    def judge(self, options: Gates, figures: Figures, past: Past) -> Finding:
        now = figures.distribution
        if not now.labels:
            return Finding("off", "there are no labels")
        if not past.distribution.num_labelled:
            return Finding("off", NOTHING_EARLIER)
        shift = compare_labels(past.distribution, now)
        return _drift(options.label_drift, shift, "labels", past.basis)


class ScoreDrift(Gate):
    """Drift of scores or other numbers; the worst one counts."""

    name = "score_drift"
    needs: frozenset[Need] = frozenset(["history"])
    judges_computed = True

    def mode(self, options: Gates) -> Mode:
        return options.score_drift.mode

    def judge(self, options: Gates, figures: Figures, past: Past) -> Finding:
        counted = {
            key: numbers for key, numbers in figures.distribution.numbers.items() if numbers.counts
        }
        if not counted:
            return Finding("off", "no number was counted")
        before = past.distribution.numbers
        shifts = {
            key: compare_numbers(before[key], numbers)
            for key, numbers in counted.items()
            if key in before
            and before[key].counts
            # Both are probabilities, or neither: their bins differ.
            and (before[key].shift is None) == (numbers.shift is None)
        }
        if not shifts:
            return Finding("off", NOTHING_EARLIER)
        worst = max(shifts, key=lambda key: shifts[key].psi)
        return _drift(options.score_drift, shifts[worst], worst, past.basis)


class Constant(Gate):
    """The same label and score, the same vector, or the same numbers for all rows."""

    name = "constant"
    judges_computed = True

    def mode(self, options: Gates) -> Mode:
        return options.constant.mode

    def judge(self, options: Gates, figures: Figures, past: Past) -> Finding:
        now, num_predicted = figures.distribution, figures.num_predicted
        if not now.numbers:
            return Finding("off", "no label or number was counted")
        if num_predicted < max(2, options.min_rows):
            few = f"{num_predicted} predictions; not judged below {options.min_rows}"
            return Finding("off", few)
        if not now.is_constant(options.constant.tolerance):
            return Finding("pass", f"{num_predicted} predictions are not all alike")
        seen = [f"label {label!r}" for label, rows in now.labels.items() if rows]
        seen += [f"{key} {numbers.lowest:.6g}" for key, numbers in now.numbers.items()]
        return Finding("fail", f"all {num_predicted} predictions are alike: {', '.join(seen[:3])}")


def _drift(rule: Drift, shift: Shift, name: str, basis: str) -> Finding:
    psi = round(shift.psi, 6)
    beside = f"{name}, {shift.num_now} predictions against {shift.num_before} of {basis}"
    if min(shift.num_now, shift.num_before) < rule.min_rows:
        return Finding("off", f"{beside}; not judged below {rule.min_rows}")
    most = f"; most: {shift.most}" if shift.most else ""
    message = (
        f"PSI {psi:.3f} of {beside}{most}; limit {rule.fail_psi:g}, warns above {rule.warn_psi:g}"
    )
    if psi > rule.fail_psi:
        return Finding("fail", message, psi, rule.fail_psi)
    return Finding("warn" if psi > rule.warn_psi else "pass", message, psi, rule.fail_psi)


@dataclass(frozen=True)
class Bin:
    """One bin of two distributions; the name is that of its label, '' for several labels."""

    name: str
    before: int
    now: int


@dataclass(frozen=True)
class Shift:
    """The distance of two distributions."""

    psi: float
    num_before: int
    num_now: int
    most: str = ""
    """The label that contributes most, with both shares; '' if a bin of several labels does."""


def compare_labels(before: Distribution, now: Distribution) -> Shift:
    """Compare the labels of two partitions.

    A label with the weight of a bin, on either side, is a bin of its own. The others, including
    those of one side only, are joined in order of their names until they have that weight: of a
    thousand labels in a thousand rows, many are missing by chance. Labels that were too rare to be
    kept are one more bin.
    """
    weight = _BinWeight.of(before.num_labelled, now.num_labelled, _MAX_LABEL_BINS)
    names = {*before.labels, *(() if before.num_other else now.labels)}
    triples = [(name, before.labels.get(name, 0), now.labels.get(name, 0)) for name in names]
    triples.sort(key=lambda triple: (weight.is_reached(*triple[1:]), triple[0]))
    others = now.num_labelled - sum(rows for _, _, rows in triples)
    return _shift([*_join(triples, weight), Bin("", before.num_other, others)])


def compare_numbers(before: Numbers, now: Numbers) -> Shift:
    """Compare one number of two partitions."""
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
    """The number of rows of each side that make a bin."""

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
    """Join neighbours until they have the weight of a bin; one with that weight stays alone."""
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
    used = [bin_ for bin_ in bins if bin_.before or bin_.now]
    num_before, num_now = sum(bin_.before for bin_ in used), sum(bin_.now for bin_ in used)
    all_before = num_before + _SMOOTHING * len(used)
    all_now = num_now + _SMOOTHING * len(used)
    psi, worst, most = 0.0, 0.0, ""
    for bin_ in used:
        p, q = (bin_.before + _SMOOTHING) / all_before, (bin_.now + _SMOOTHING) / all_now
        part = (q - p) * log(q / p)
        psi += part
        if part > worst:
            worst = part
            shares = f"{100 * bin_.before / max(1, num_before):.1f}%, "
            shares += f"now {100 * bin_.now / max(1, num_now):.1f}%"
            most = f"{bin_.name!r} was {shares}" if bin_.name else ""
    return Shift(psi, num_before, num_now, most)


CONSTANT, LABELS, SCORES = Constant(), LabelDrift(), ScoreDrift()
