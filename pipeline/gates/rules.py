"""Judge the staged predictions before anything is published. Pure: figures in, verdicts out.

A limit that is reached exactly is kept. What compares with earlier nights is in drift_rules.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.core.causes import Cause, in_words
from pipeline.core.errors import GateRefused
from pipeline.core.histograms import Distribution
from pipeline.gates.drift_rules import judge_nights
from pipeline.gates.history import Past
from pipeline.gates.verdicts import (
    CONSERVATION,
    Level,
    Verdict,
    accept,
    failures,
    how_to_accept,
    not_judged,
    ruled,
)
from pipeline.job.gates import Gates


@dataclass(frozen=True)
class Figures:
    """What a run knows of its rows when it is judged."""

    num_planned: int
    """Rows of the plan."""
    num_predicted: int
    """Rows with a prediction."""
    num_quarantined: int
    """Rows with a reason (duplicate ids included)."""
    num_shards: int
    """Input files."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Quarantined rows by reason."""
    causes: Sequence[Cause] = ()
    """Why most of them are there."""
    num_compared: int = 0
    """Rows that eager fp32 predicted once more."""
    num_agreed: int = 0
    """Those of them that agreed."""
    golden_compared: int = 0
    """Golden rows, once for every actor."""
    golden_agreed: int = 0
    golden_actors: int = 0
    distribution: Distribution = field(default_factory=Distribution)
    num_skipped: int = 0
    """Files below the source that are no input and should perhaps be."""
    why_empty: str = ""
    """Why there is no input, where there is none."""
    is_limited: bool = False
    """Only the first rows were asked for (`run.limit_rows`)."""


def judge(
    gates: Gates, figures: Figures, past: Past, accepted: Mapping[str, str] | None = None
) -> list[Verdict]:
    """Judge a run.

    Args:
        gates: The job's limits.
        figures: What is staged.
        past: What was published before.
        accepted: Gate -> why its failure is accepted.
    """
    verdicts = [
        _conservation(figures),
        _not_empty(gates, figures),
        *_shares(
            gates,
            figures.num_planned,
            figures.num_quarantined,
            figures.reasons,
            figures.causes,
        ),
        _skipped(gates, figures.num_shards, figures.num_skipped),
        *judge_nights(
            gates,
            past,
            figures.distribution,
            num_rows=figures.num_planned,
            num_predicted=figures.num_predicted,
            is_limited=figures.is_limited,
        ),
        _golden(gates, figures),
        _agreement(gates, figures.num_compared, figures.num_agreed),
    ]
    return accept(verdicts, accepted or {})


def certain_failures(
    gates: Gates,
    num_planned: int | None,
    num_quarantined: int,
    reasons: Mapping[str, int],
    accepted: Mapping[str, str],
    causes: Sequence[Cause] = (),
) -> list[Verdict]:
    """Judge what can only become worse: what fails now fails in the end, whatever the rest gives.

    Args:
        gates: The job's limits.
        num_planned: Rows of the plan; None where nobody knows yet: nothing is certain then.
        num_quarantined: Rows quarantined so far.
        reasons: The same by reason.
        accepted: Gate -> why its failure is accepted.
        causes: Why most of them are quarantined.
    """
    if num_planned is None:
        return []
    verdicts = accept(_shares(gates, num_planned, num_quarantined, reasons, causes), accepted)
    return [verdict for verdict in verdicts if verdict.status == "fail"]


def early_refusal(failed: list[Verdict], num_done: int, num_planned: int) -> GateRefused:
    """Say why a run stops reading."""
    return GateRefused(
        f"nothing was published; {failures(failed)}; certain after {num_done} of {num_planned} "
        f"rows, so reading stopped there; finished slices are kept{how_to_accept(failed)}"
    )


def _conservation(figures: Figures) -> Verdict:
    planned, accounted = figures.num_planned, figures.num_predicted + figures.num_quarantined
    message = f"{accounted} of {planned} planned rows are predicted or quarantined"
    level: Level = "pass" if planned == accounted else "fail"
    return Verdict(CONSERVATION, level, float(accounted), float(planned), message)


def _not_empty(gates: Gates, figures: Figures) -> Verdict:
    found = f"{figures.num_shards} shards with {figures.num_planned} rows"
    message = figures.why_empty if figures.why_empty and not figures.num_shards else found
    if figures.num_planned:
        return Verdict("not_empty", "pass", float(figures.num_planned), 1.0, message)
    if gates.allow_empty:
        return Verdict("not_empty", "off", 0.0, 1.0, f"{message}; gates.allow_empty is true")
    hint = "check source.uri and source.format, or set gates.allow_empty to true"
    return Verdict("not_empty", "fail", 0.0, 1.0, f"{message}; {hint}")


def _shares(
    gates: Gates,
    num_rows: int,
    num_quarantined: int,
    reasons: Mapping[str, int],
    causes: Sequence[Cause],
) -> list[Verdict]:
    return [
        _error_share(gates, num_rows, num_quarantined, causes),
        _reason_shares(gates, num_rows, reasons, causes),
    ]


def _error_share(
    gates: Gates, num_rows: int, num_quarantined: int, causes: Sequence[Cause]
) -> Verdict:
    name, limit = "max_error_pct", gates.max_error_pct
    if num_rows == 0:
        return Verdict(name, "off", None, limit, "no rows to judge")
    share = 100.0 * num_quarantined / num_rows
    message = f"{num_quarantined} of {num_rows} rows quarantined, {share:.2f}%; limit {limit:g}%"
    if words := in_words(causes, num_quarantined):
        message += f" ({words})"
    all_failed = num_quarantined == num_rows and limit < 100
    if num_rows < gates.min_rows and not all_failed:
        few = f"{message}; not judged below {gates.min_rows} rows"
        return Verdict(name, "off", share, limit, few)
    level: Level = "fail" if all_failed or share > limit else "pass"
    return ruled(name, gates.error_mode, level, share, limit, message)


def _reason_shares(
    gates: Gates, num_rows: int, reasons: Mapping[str, int], causes: Sequence[Cause]
) -> Verdict:
    name, caps = "max_reason_pct", gates.max_reason_pct
    if not caps or num_rows == 0:
        return not_judged(name, "no reason has a limit" if num_rows else "no rows to judge")
    shares = {reason: 100.0 * reasons.get(reason, 0) / num_rows for reason in caps}
    worst = max(caps, key=lambda reason: shares[reason] - caps[reason])
    over = [reason for reason in caps if shares[reason] > caps[reason]]
    message = ", ".join(
        f"{reason}: {reasons.get(reason, 0)} of {num_rows} rows, {shares[reason]:.2f}%; "
        f"limit {caps[reason]:g}%"
        for reason in over or [worst]
    )
    found = [cause for cause in causes if cause.reason in over]
    if words := in_words(found, sum(reasons.get(reason, 0) for reason in over)):
        message += f" ({words})"
    value, limit = shares[worst], caps[worst]
    if num_rows < gates.min_rows:
        few = f"{message}; not judged below {gates.min_rows} rows"
        return Verdict(name, "off", value, limit, few)
    return ruled(name, gates.reason_mode, "fail" if over else "pass", value, limit, message)


def _skipped(gates: Gates, num_shards: int, num_skipped: int) -> Verdict:
    name, limit = "max_skipped_pct", gates.max_skipped_pct
    num_files = num_shards + num_skipped
    if num_files == 0:
        return Verdict(name, "off", None, limit, "no files to judge")
    share = 100.0 * num_skipped / num_files
    message = f"{num_skipped} of {num_files} files are not read, {share:.2f}%; limit {limit:g}%"
    level: Level = "fail" if share > limit else "pass"
    return ruled(name, gates.skipped_mode, level, share, limit, message)


def _golden(gates: Gates, figures: Figures) -> Verdict:
    if gates.golden is None or gates.golden.mode == "off":
        return not_judged("golden", "no golden rows were asked for")
    compared, agreed = figures.golden_compared, figures.golden_agreed
    if compared == 0:
        if figures.num_predicted == 0:
            return not_judged("golden", "nothing was predicted")
        why = "all slices are of earlier runs, whose actors were not compared"
        return ruled("golden", gates.golden.mode, "warn", None, 100.0, why)
    share = 100.0 * agreed / compared
    message = f"{agreed} of {compared} golden rows agree, on {figures.golden_actors} actors"
    level: Level = "pass" if agreed == compared else "fail"
    return ruled("golden", gates.golden.mode, level, share, 100.0, message)


def _agreement(gates: Gates, num_compared: int, num_agreed: int) -> Verdict:
    name, limit = "min_agreement_pct", gates.min_agreement_pct
    if num_compared == 0:
        return Verdict(name, "off", None, limit, "nothing was to be compared")
    share = 100.0 * num_agreed / num_compared
    message = f"{num_agreed} of {num_compared} rows agree with eager fp32; limit {limit:g}%"
    # One row of a small sample is no proof of slipping.
    num_off = num_compared - num_agreed
    is_fine = share >= limit or (num_off == 1 and num_compared > 1)
    level: Level = "pass" if is_fine else "fail"
    return ruled(name, gates.agreement_mode, level, share, limit, message)
