"""What a gate says, and what a person may say against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from pipeline.core.errors import GateRefused, JobError

Status = Literal["pass", "warn", "fail", "off", "accepted"]
Level = Literal["pass", "warn", "fail"]

CONSERVATION: Final = "conservation"
GATES = (
    CONSERVATION,
    "not_empty",
    "max_error_pct",
    "max_reason_pct",
    "max_skipped_pct",
    "volume",
    "constant",
    "label_drift",
    "score_drift",
    "golden",
    "min_agreement_pct",
)
"""All gates, in the order in which they are shown."""


@dataclass(frozen=True)
class Verdict:
    """What one gate says."""

    name: str
    status: Status
    value: float | None
    limit: float | None
    message: str
    reason: str | None = None
    """Why somebody accepted the failure; null unless `accepted`."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def ruled(
    name: str,
    mode: Literal["off", "warn", "fail"],
    level: Level,
    value: float | None,
    limit: float | None,
    message: str,
) -> Verdict:
    """Say no worse than the mode allows."""
    if mode == "off":
        return Verdict(name, "off", value, limit, f"{message}; not judged: the gate is off")
    is_softened = level == "fail" and mode == "warn"
    return Verdict(name, "warn" if is_softened else level, value, limit, message)


def not_judged(name: str, why: str, value: float | None = None) -> Verdict:
    """Say that there is nothing to judge, and why."""
    return Verdict(name, "off", value, None, why)


def read_accepted(texts: Sequence[str]) -> dict[str, str]:
    """Read the `GATE=REASON` of the command line.

    Raises:
        JobError: There is no such gate, it cannot be accepted, or there is no reason.
    """
    accepted = {}
    for text in texts:
        name, _, reason = text.partition("=")
        if name == CONSERVATION:
            raise JobError(f"--accept {name}: rows that are not accounted for cannot be accepted")
        if name not in GATES:
            raise JobError(f"--accept {name}: no such gate; there are {', '.join(GATES[1:])}")
        if not reason.strip():
            raise JobError(f"--accept {name}: write {name}=REASON; the reason is recorded")
        accepted[name] = reason.strip()
    return accepted


def accept(verdicts: Sequence[Verdict], accepted: Mapping[str, str]) -> list[Verdict]:
    """Turn the failures of accepted gates into `accepted`, with the reason."""
    return [
        replace(verdict, status="accepted", reason=accepted[verdict.name])
        if verdict.status == "fail" and verdict.name in accepted and verdict.name != CONSERVATION
        else verdict
        for verdict in verdicts
    ]


def failures(verdicts: Sequence[Verdict]) -> str:
    """Name the gates that failed, with their figures; '' if none did."""
    failed = [verdict for verdict in verdicts if verdict.status == "fail"]
    return "; ".join(f"{verdict.name}: {verdict.message}" for verdict in failed)


def how_to_accept(verdicts: Sequence[Verdict]) -> str:
    """Say how to publish in spite of the gates that failed; '' if one of them is never accepted."""
    names = [verdict.name for verdict in verdicts if verdict.status == "fail"]
    if not names or CONSERVATION in names:
        return ""
    return f"; if that is right: {' '.join(f'--accept {name}=REASON' for name in names)}"


def require_pass(verdicts: Sequence[Verdict], quarantined: str = "") -> None:
    """Refuse if any gate failed.

    Args:
        verdicts: Of all gates.
        quarantined: Why rows are in quarantine; said where no gate that failed has said it.

    Raises:
        GateRefused: Names the gates that failed, with their figures.
    """
    if reasons := failures(verdicts):
        told = f"; quarantined: {quarantined}" if quarantined and quarantined not in reasons else ""
        raise GateRefused(f"nothing was published; {reasons}{told}{how_to_accept(verdicts)}")
