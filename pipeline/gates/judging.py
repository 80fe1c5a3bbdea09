"""Judge the staged predictions before anything is published. Pure: figures in, results out.

What a run computed itself is judged alone, too. Nine carried rows of ten hide a broken model: it
moves the histogram of the partition by a tenth only. So each gate whose `judges_computed` is set
gives a second result, named `<gate>_computed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pipeline.core.causes import Cause
from pipeline.core.errors import GateRefused
from pipeline.core.figures.histograms import Distribution
from pipeline.core.registry import GATES, get, names
from pipeline.gates.gate import Figures, Gate, Need
from pipeline.gates.history import Past
from pipeline.gates.results import COMPUTED, GateResult, accept, failures, how_to_accept, skipped
from pipeline.job.gates import Gates

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


def judge_computed(gate: Gate, options: Gates, figures: Figures, past: Past) -> GateResult:
    """Judge the computed rows alone by a gate.

    Args:
        gate: Its `judges_computed` is set.
        options: Of fewer rows than its `min_rows` nothing is said, nor of fewer than `LEAST_ROWS`.
        figures: Those of `computed_alone`.
        past: What was published before.
    """
    name, num_rows = gate.name + COMPUTED, figures.num_planned
    least = max(LEAST_ROWS, options.min_rows)
    if num_rows < least:
        return skipped(name, f"{num_rows} computed rows; not judged alone below {least}")
    result = gate.judge(options, figures, past)
    told = f"of {num_rows} computed rows alone: {result.message}"
    return replace(result, name=name, message=told)


def all_gates() -> list[Gate]:
    """Return the gates, in the order in which they are shown."""
    return [get(GATES, name) for name in names(GATES)]


def needs_of(section: Gates) -> set[Need]:
    """Return what the gates that are on need a run to do."""
    return {need for gate in all_gates() if gate.is_on(section) for need in gate.needs}


def judge(
    section: Gates, figures: Figures, past: Past, accepted: Mapping[str, str] | None = None
) -> list[GateResult]:
    """Judge a run by all gates, some of them twice: see `judge_computed`.

    Args:
        figures: What is to be published.
        past: What was published before.
        accepted: Gate -> why its failure is accepted.
    """
    results = [*_results(all_gates(), section, figures, past)]
    return accept(results, accepted or {})


def certain_failures(
    section: Gates,
    num_planned: int | None,
    num_quarantined: int,
    reasons: Mapping[str, int],
    accepted: Mapping[str, str],
    causes: Sequence[Cause] = (),
) -> list[GateResult]:
    """Judge what can only become worse: what fails now fails in the end, whatever the rest gives.

    Args:
        num_planned: Rows of the plan; None if that is unknown: nothing is certain then.
        num_quarantined: Rows quarantined so far.
        reasons: The same by reason.
        accepted: Gate -> why its failure is accepted.
        causes: Why most of them are quarantined.
    """
    if num_planned is None:
        return []
    figures = Figures(num_planned, 0, num_quarantined, 0, reasons=reasons, causes=causes)
    gates = [gate for gate in all_gates() if gate.only_worsens]
    results = accept([*_results(gates, section, figures, Past())], accepted)
    return [result for result in results if result.status == "fail"]


def early_refusal(failed: list[GateResult], num_done: int, num_planned: int) -> GateRefused:
    """Say why a run stops reading."""
    return GateRefused(
        f"nothing was published; {failures(failed)}; certain after {num_done} of {num_planned} "
        f"rows, so reading stopped there; finished slices are kept{how_to_accept(failed)}"
    )


def _results(
    gates: Sequence[Gate], section: Gates, figures: Figures, past: Past
) -> Iterator[GateResult]:
    for gate in gates:
        yield gate.judge(section, figures, past)
        if gate.judges_computed and figures.computed is not None:
            yield judge_computed(gate, section, figures.computed, past)
