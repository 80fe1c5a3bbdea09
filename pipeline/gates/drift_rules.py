"""Judge a night by what it looks like: beside earlier nights, and in itself. Pure.

The PSI bands of 0.1 and 0.25 are a convention, and the world may change overnight; so drift only
warns unless the job says otherwise. A fifth of the usual rows, or all predictions alike, is hardly
ever the world's doing, so these refuse.
"""

from __future__ import annotations

from statistics import median

from pipeline.core.histograms import Distribution, Shift, compare_labels, compare_numbers
from pipeline.gates.history import Past
from pipeline.gates.verdicts import Level, Verdict, not_judged, ruled
from pipeline.job.gates import Drift, Gates, Mode

_FIRST_NIGHT = "there is nothing earlier to compare with; this night is recorded"


def judge_nights(
    gates: Gates,
    past: Past,
    now: Distribution,
    *,
    num_rows: int,
    num_predicted: int,
    is_limited: bool,
) -> list[Verdict]:
    """Judge rows, likeness and drift.

    Args:
        gates: The job's limits.
        past: What was published before.
        now: Tonight's predictions.
        num_rows: Rows of the plan.
        num_predicted: Rows with a prediction.
        is_limited: Only the first rows were asked for.
    """
    return [
        _volume(gates, past, num_rows, is_limited=is_limited),
        _constant(gates, now, num_predicted),
        _label_drift(gates, past, now),
        _score_drift(gates, past, now),
    ]


def _volume(gates: Gates, past: Past, num_rows: int, *, is_limited: bool) -> Verdict:
    name, rule = "volume", gates.volume
    if off := _is_off(name, rule.mode):
        return off
    if is_limited:
        return not_judged(name, "not judged with run.limit_rows")
    if not past.rows:
        return not_judged(name, f"{num_rows} rows; {_FIRST_NIGHT}")
    usual = median(past.rows)
    if max(usual, num_rows) < gates.min_rows:
        why = f"{num_rows} rows, median {usual:.10g}; not judged below {gates.min_rows} rows"
        return not_judged(name, why)
    if not usual:
        return not_judged(name, f"{num_rows} rows; earlier nights were empty")
    change_pct = 100.0 * (num_rows - usual) / usual
    message = (
        f"{num_rows} rows, {change_pct:+.1f}% beside the median {usual:.10g} of {len(past.rows)} "
        "earlier nights"
    )
    limit = -rule.max_drop_pct if change_pct < 0 else rule.max_growth_pct
    level: Level = "warn" if abs(change_pct) > rule.warn_pct else "pass"
    if abs(change_pct) > abs(limit):
        level = "fail"
    message = f"{message}; limit {limit:+g}%, warns beyond {rule.warn_pct:g}%"
    return ruled(name, rule.mode, level, change_pct, limit, message)


def _constant(gates: Gates, now: Distribution, num_predicted: int) -> Verdict:
    name, rule = "constant", gates.constant
    if off := _is_off(name, rule.mode):
        return off
    if not now.numbers:
        return not_judged(name, "no label or number was counted")
    if num_predicted < max(2, gates.min_rows):
        return not_judged(name, f"{num_predicted} predictions; not judged below {gates.min_rows}")
    if not now.is_constant(rule.tolerance):
        return Verdict(name, "pass", None, None, f"{num_predicted} predictions are not all alike")
    seen = [f"label {label!r}" for label, rows in now.labels.items() if rows]
    seen += [f"{key} {numbers.lowest:.6g}" for key, numbers in now.numbers.items()]
    message = f"all {num_predicted} predictions are alike: {', '.join(seen[:3])}"
    return ruled(name, rule.mode, "fail", None, None, message)


def _label_drift(gates: Gates, past: Past, now: Distribution) -> Verdict:
    name, rule = "label_drift", gates.label_drift
    if off := _is_off(name, rule.mode):
        return off
    if not now.labels:
        return not_judged(name, "there are no labels")
    if not past.distribution.num_labelled:
        return not_judged(name, _FIRST_NIGHT)
    return _drift(name, rule, compare_labels(past.distribution, now), "labels", past.basis)


def _score_drift(gates: Gates, past: Past, now: Distribution) -> Verdict:
    name, rule = "score_drift", gates.score_drift
    if off := _is_off(name, rule.mode):
        return off
    counted = {key: numbers for key, numbers in now.numbers.items() if numbers.counts}
    if not counted:
        return not_judged(name, "no number was counted")
    before = past.distribution.numbers
    shifts = {
        key: compare_numbers(before[key], numbers)
        for key, numbers in counted.items()
        if key in before and before[key].counts
    }
    if not shifts:
        return not_judged(name, _FIRST_NIGHT)
    worst = max(shifts, key=lambda key: shifts[key].psi)
    return _drift(name, rule, shifts[worst], worst, past.basis)


def _drift(name: str, rule: Drift, shift: Shift, what: str, basis: str) -> Verdict:
    psi = round(shift.psi, 6)
    beside = f"{what}, {shift.num_now} predictions beside {shift.num_before} of {basis}"
    if min(shift.num_now, shift.num_before) < rule.min_rows:
        return not_judged(name, f"{beside}; not judged below {rule.min_rows}")
    most = f"; most: {shift.most}" if shift.most else ""
    level: Level = "warn" if psi > rule.warn_psi else "pass"
    if psi > rule.fail_psi:
        level = "fail"
    message = (
        f"PSI {psi:.3f} of {beside}{most}; limit {rule.fail_psi:g}, warns above {rule.warn_psi:g}"
    )
    return ruled(name, rule.mode, level, psi, rule.fail_psi, message)


def _is_off(name: str, mode: Mode) -> Verdict | None:
    return not_judged(name, f"gates.{name}.mode is off") if mode == "off" else None
