"""Gates on drift: labels and numbers beside what was published before, by their PSI.

The PSI bands of 0.1 and 0.25 are a convention, and the world may change from one partition to the
next; so drift only warns unless the job says otherwise.
"""

from __future__ import annotations

from pipeline.core.figures.histograms import Numbers
from pipeline.gates.gate import Figures, Gate, Need
from pipeline.gates.history import NOTHING_EARLIER, Past
from pipeline.gates.psi import Shift, compare_labels, compare_numbers
from pipeline.gates.results import GateResult, Level, apply_mode, skipped
from pipeline.job.gates import Drift, Gates


class LabelDrift(Gate):
    """Other labels than before."""

    name = "label_drift"
    needs: frozenset[Need] = frozenset(["history"])
    judges_computed = True

    def is_on(self, options: Gates) -> bool:
        return options.label_drift.mode != "off"

    def judge(self, options: Gates, figures: Figures, past: Past) -> GateResult:
        name, rule, now = self.name, options.label_drift, figures.distribution
        if rule.mode == "off":
            return skipped(name, f"gates.{name}.mode is off")
        if not now.labels:
            return skipped(name, "there are no labels")
        if not past.distribution.num_labelled:
            return skipped(name, NOTHING_EARLIER)
        return _drift(name, rule, compare_labels(past.distribution, now), "labels", past.basis)


class ScoreDrift(Gate):
    """Other scores or numbers than before; the worst of them counts."""

    name = "score_drift"
    needs: frozenset[Need] = frozenset(["history"])
    judges_computed = True

    def is_on(self, options: Gates) -> bool:
        return options.score_drift.mode != "off"

    def judge(self, options: Gates, figures: Figures, past: Past) -> GateResult:
        name, rule = self.name, options.score_drift
        if rule.mode == "off":
            return skipped(name, f"gates.{name}.mode is off")
        counted = {
            key: numbers for key, numbers in figures.distribution.numbers.items() if numbers.counts
        }
        if not counted:
            return skipped(name, "no number was counted")
        before = past.distribution.numbers
        shifts = {
            key: compare_numbers(before[key], numbers)
            for key, numbers in counted.items()
            if key in before and before[key].counts and _same_bins(before[key], numbers)
        }
        if not shifts:
            return skipped(name, NOTHING_EARLIER)
        worst = max(shifts, key=lambda key: shifts[key].psi)
        return _drift(name, rule, shifts[worst], worst, past.basis)


def _same_bins(before: Numbers, now: Numbers) -> bool:
    """Tell whether both are probabilities, or neither: other bins cannot be compared."""
    return (before.shift is None) == (now.shift is None)


def _drift(name: str, rule: Drift, shift: Shift, what: str, basis: str) -> GateResult:
    psi = round(shift.psi, 6)
    beside = f"{what}, {shift.num_now} predictions beside {shift.num_before} of {basis}"
    if min(shift.num_now, shift.num_before) < rule.min_rows:
        return skipped(name, f"{beside}; not judged below {rule.min_rows}")
    most = f"; most: {shift.most}" if shift.most else ""
    level: Level = "warn" if psi > rule.warn_psi else "pass"
    if psi > rule.fail_psi:
        level = "fail"
    message = (
        f"PSI {psi:.3f} of {beside}{most}; limit {rule.fail_psi:g}, warns above {rule.warn_psi:g}"
    )
    return apply_mode(name, rule.mode, level, psi, rule.fail_psi, message)


LABELS, SCORES = LabelDrift(), ScoreDrift()
