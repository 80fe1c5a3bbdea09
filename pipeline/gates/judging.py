"""Judge the staged predictions before anything is published. Pure: figures in, results out.

If rows are carried, some gates judge only the computed ones: a broken model moves the histogram of
a partition with nine carried rows of ten by only a tenth. Carried rows were judged when they were
computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.core.errors import GateRefused
from pipeline.core.failures import Cause
from pipeline.core.histograms import Distribution
from pipeline.core.registry import GATES, get, names
from pipeline.gates.earlier_partitions import Past
from pipeline.gates.gate import NONE_UNREADABLE, Figures, Gate, Need, UnreadableShards
from pipeline.gates.results import Finding, GateResult, accept, failures, how_to_accept
from pipeline.job.gates import Gates

LEAST_ROWS = 100
"""Fewer computed rows are not judged: no share of them is known to within ten percent."""


def all_gates() -> list[Gate]:
    """Return the gates, in the order in which they are shown."""
    return [get(GATES, name) for name in names(GATES)]


def needs_of(section: Gates) -> set[Need]:
    """Return the needs of the gates that are on."""
    return {need for gate in all_gates() if gate.is_on(section) for need in gate.needs}


def judge(
    section: Gates, figures: Figures, past: Past, accepted: Mapping[str, str] | None = None
) -> list[GateResult]:
    """Judge a run by all gates.

    Args:
        figures: Of the rows to be published.
        past: Of earlier publications.
        accepted: Gate -> why its failure is accepted.
    """
    results = [_result(gate, section, figures, past) for gate in all_gates()]
    return accept(results, accepted or {})


def certain_failures(
    section: Gates,
    num_planned: int | None,
    num_quarantined: int,
    reasons: Mapping[str, int],
    accepted: Mapping[str, str],
    causes: Sequence[Cause] = (),
    unreadable: UnreadableShards = NONE_UNREADABLE,
) -> list[GateResult]:
    """Return the failures that no remaining row can undo.

    Args:
        num_planned: Rows of the plan; None if unknown, so that no failure is certain.
        num_quarantined: Rows quarantined so far.
        reasons: The same by reason.
        accepted: Gate -> why its failure is accepted.
        causes: The most frequent causes.
        unreadable: The unreadable shards so far.
    """
    if num_planned is None:
        return []
    figures = Figures(
        num_planned, 0, num_quarantined, 0, reasons=reasons, causes=causes, unreadable=unreadable
    )
    gates = [gate for gate in all_gates() if gate.only_worsens]
    results = [_result(gate, section, figures, Past()) for gate in gates]
    return [result for result in accept(results, accepted) if result.status == "fail"]


def early_refusal(failed: list[GateResult], num_done: int, num_planned: int) -> GateRefused:
    """Return the error of a run that stops reading."""
    return GateRefused(
        f"nothing was published; {failures(failed)}; certain after {num_done} of {num_planned} "
        f"rows, so reading stopped there; finished slices are kept{how_to_accept(failed)}"
    )


def _result(gate: Gate, section: Gates, figures: Figures, past: Past) -> GateResult:
    """Return the result of a gate, no worse than its mode allows."""
    mode = gate.mode(section)
    if mode == "off":
        finding = Finding("off", "not judged: the gate is off")
    elif gate.judges_computed and figures.computed is not None:
        finding = _judge_computed(gate, section, figures, figures.computed, past)
    else:
        finding = gate.judge(section, figures, past)
    status = "warn" if finding.level == "fail" and mode == "warn" else finding.level
    return GateResult(gate.name, status, finding.value, finding.limit, finding.message)


def _judge_computed(
    gate: Gate, section: Gates, figures: Figures, computed: Distribution, past: Past
) -> Finding:
    num_rows, least = figures.num_computed, max(LEAST_ROWS, section.min_rows)
    if num_rows < least:
        return Finding("off", f"{num_rows} computed predictions; not judged below {least}")
    alone = replace(figures, distribution=computed, num_predicted=num_rows)
    finding = gate.judge(section, alone, past)
    return replace(finding, message=f"of the computed rows: {finding.message}")
