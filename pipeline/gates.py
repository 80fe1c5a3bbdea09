"""Judge the staged predictions before anything is published. Pure: figures in, verdicts out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.errors import GateRefused
from pipeline.job import Gates


@dataclass(frozen=True)
class Verdict:
    """What one gate says."""

    name: str
    status: Literal["pass", "warn", "fail", "off"]
    value: float | None
    limit: float | None
    message: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge(
    gates: Gates,
    *,
    num_planned: int,
    num_predicted: int,
    num_quarantined: int,
    num_shards: int,
    num_compared: int = 0,
    num_agreed: int = 0,
) -> list[Verdict]:
    """Judge a run.

    Args:
        gates: The job's limits.
        num_planned: Rows of the plan.
        num_predicted: Rows with a prediction.
        num_quarantined: Rows with a reason (duplicate ids included).
        num_shards: Input files.
        num_compared: Rows that eager fp32 predicted once more.
        num_agreed: Those of them that agreed.
    """
    return [
        _conservation(num_planned, num_predicted + num_quarantined),
        _not_empty(gates, num_shards, num_planned),
        _error_share(gates, num_planned, num_quarantined),
        _agreement(gates, num_compared, num_agreed),
    ]


def require_pass(verdicts: list[Verdict]) -> None:
    """Refuse if any gate failed.

    Raises:
        GateRefused: Names the gates that failed, with their figures.
    """
    failed = [verdict for verdict in verdicts if verdict.status == "fail"]
    if failed:
        reasons = "; ".join(f"{verdict.name}: {verdict.message}" for verdict in failed)
        raise GateRefused(f"nothing was published; {reasons}")


def _conservation(planned: int, accounted: int) -> Verdict:
    message = f"{accounted} of {planned} planned rows are predicted or quarantined"
    status: Literal["pass", "fail"] = "pass" if planned == accounted else "fail"
    return Verdict("conservation", status, float(accounted), float(planned), message)


def _not_empty(gates: Gates, num_shards: int, num_rows: int) -> Verdict:
    message = f"{num_shards} shards with {num_rows} rows"
    if num_rows:
        return Verdict("not_empty", "pass", float(num_rows), 1.0, message)
    if gates.allow_empty:
        return Verdict("not_empty", "off", 0.0, 1.0, f"{message}; gates.allow_empty is true")
    hint = "check source.uri, or set gates.allow_empty to true"
    return Verdict("not_empty", "fail", 0.0, 1.0, f"{message}; {hint}")


def _agreement(gates: Gates, num_compared: int, num_agreed: int) -> Verdict:
    limit = gates.min_agreement_pct
    if num_compared == 0:
        return Verdict("min_agreement_pct", "off", None, limit, "nothing was to be compared")
    share = 100.0 * num_agreed / num_compared
    message = f"{num_agreed} of {num_compared} rows agree with eager fp32; limit {limit:g}%"
    # One row of a small sample is no proof of slipping.
    num_off = num_compared - num_agreed
    is_fine = share >= limit or (num_off == 1 and num_compared > 1)
    return Verdict("min_agreement_pct", "pass" if is_fine else "fail", share, limit, message)


def _error_share(gates: Gates, num_rows: int, num_quarantined: int) -> Verdict:
    limit = gates.max_error_pct
    if num_rows == 0:
        return Verdict("max_error_pct", "off", None, limit, "no rows to judge")
    share = 100.0 * num_quarantined / num_rows
    message = f"{num_quarantined} of {num_rows} rows quarantined, {share:.2f}%; limit {limit:g}%"
    if num_quarantined == num_rows and limit < 100:
        return Verdict("max_error_pct", "fail", share, limit, message)
    if num_rows < gates.min_rows:
        return Verdict(
            "max_error_pct",
            "off",
            share,
            limit,
            f"{message}; not judged below {gates.min_rows} rows",
        )
    return Verdict("max_error_pct", "fail" if share > limit else "pass", share, limit, message)
