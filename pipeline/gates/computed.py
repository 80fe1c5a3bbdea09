"""Judge the rows that a run computed itself alone, beside the whole partition.

Nine carried rows of ten hide a broken model: it moves the histogram of the partition by a tenth
only. So each gate whose `judges_computed` is set gives a second result, named `<gate>_computed`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.core.figures.histograms import Distribution
from pipeline.gates.gate import Figures, Gate
from pipeline.gates.history import Past
from pipeline.gates.results import COMPUTED, GateResult, skipped

LEAST_ROWS = 100
"""Of fewer computed rows no share is known to within ten percent; they are not judged alone."""


def computed_alone(
    whole: Figures, num_rows: int, distribution: Distribution, num_failed_before: int
) -> Figures:
    """Return the figures of the computed rows alone.

    Carried are predictions only: all rows of the quarantine are computed, each time again. Those
    that had failed before say nothing of this run; as many of each reason as there were in all are
    left out.

    Args:
        whole: The figures of the partition.
        num_rows: Computed rows, failed ones included.
        distribution: Of their predictions.
        num_failed_before: Rows that are not carried because they have no prediction in the versions
            that rows are carried from.
    """
    reasons = {why: max(0, rows - num_failed_before) for why, rows in whole.reasons.items()}
    num_new = max(0, whole.num_quarantined - num_failed_before)
    return replace(
        whole,
        num_planned=num_rows - (whole.num_quarantined - num_new),
        num_predicted=num_rows - whole.num_quarantined,
        num_quarantined=num_new,
        reasons=reasons,
        distribution=distribution,
        computed=None,
        is_sample=True,
    )


def judge_computed(
    gate: Gate, options: Any, least: int, figures: Figures, past: Past
) -> GateResult:
    """Judge the computed rows alone by a gate.

    Args:
        gate: Its `judges_computed` is set.
        least: Of fewer rows nothing is said; at least `LEAST_ROWS`.
        figures: Those of `computed_alone`.
        past: What was published before.
    """
    name, num_rows = gate.name + COMPUTED, figures.num_planned
    least = max(LEAST_ROWS, least)
    if num_rows < least:
        return skipped(name, f"{num_rows} computed rows; not judged alone below {least}")
    result = gate.judge(options, figures, past)
    told = f"of {num_rows} computed rows alone: {result.message}"
    return replace(result, name=name, message=told)
