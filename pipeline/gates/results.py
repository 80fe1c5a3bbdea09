"""The result of a gate, and how a person accepts a failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from pipeline.core.errors import GateRefused, JobError
from pipeline.core.registry import GATES, get, names

Status = Literal["pass", "warn", "fail", "off", "accepted"]
Level = Literal["pass", "warn", "fail"]

CONSERVATION: Final = "conservation"
"""Rows that are not accounted for are never accepted."""
COMPUTED: Final = "_computed"
"""Ends the name of a result about the computed rows alone; the gate's name stands before it."""


@dataclass(frozen=True)
class GateResult:
    """What one gate found."""

    name: str
    status: Status
    value: float | None
    limit: float | None
    message: str
    reason: str | None = None
    """Why the failure was accepted; null unless `accepted`."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def apply_mode(
    name: str,
    mode: Literal["off", "warn", "fail"],
    level: Level,
    value: float | None,
    limit: float | None,
    message: str,
) -> GateResult:
    """Return a result that is no worse than the mode allows."""
    if mode == "off":
        return GateResult(name, "off", value, limit, f"{message}; not judged: the gate is off")
    is_softened = level == "fail" and mode == "warn"
    return GateResult(name, "warn" if is_softened else level, value, limit, message)


def skipped(name: str, why: str) -> GateResult:
    """Say that there is nothing to judge, and why."""
    return GateResult(name, "off", None, None, why)


def parse_accepted(texts: Sequence[str]) -> dict[str, str]:
    """Read the `GATE=REASON` of the command line.

    Raises:
        JobError: There is no such gate, it cannot be accepted, or there is no reason.
    """
    accepted = {}
    for text in texts:
        name, _, reason = text.partition("=")
        if name == CONSERVATION:
            raise JobError(f"--accept {name}: rows that are not accounted for cannot be accepted")
        known = [each for each in names(GATES) if each != CONSERVATION]
        gate = name.removesuffix(COMPUTED)
        if gate not in known or (gate != name and not get(GATES, gate).judges_computed):
            raise JobError(f"--accept {name}: no such gate; there are {', '.join(known)}")
        if not reason.strip():
            raise JobError(f"--accept {name}: write {name}=REASON; the reason is recorded")
        accepted[name] = reason.strip()
    return accepted


def accept(results: Sequence[GateResult], accepted: Mapping[str, str]) -> list[GateResult]:
    """Turn the failures of accepted gates into `accepted`, with the reason."""
    return [
        replace(result, status="accepted", reason=accepted[result.name])
        if result.status == "fail" and result.name in accepted and result.name != CONSERVATION
        else result
        for result in results
    ]


def failures(results: Sequence[GateResult]) -> str:
    """Name the gates that failed, with their figures; '' if none did."""
    failed = [result for result in results if result.status == "fail"]
    return "; ".join(f"{result.name}: {result.message}" for result in failed)


def how_to_accept(results: Sequence[GateResult]) -> str:
    """Say how to publish in spite of the gates that failed; '' if one of them is never accepted."""
    failed = [result.name for result in results if result.status == "fail"]
    if not failed or CONSERVATION in failed:
        return ""
    return f"; if that is right: {' '.join(f'--accept {name}=REASON' for name in failed)}"


def require_pass(results: Sequence[GateResult], quarantined: str = "") -> None:
    """Refuse if any gate failed.

    Args:
        results: Of all gates.
        quarantined: Why rows are in quarantine; said if no gate that failed has said it.

    Raises:
        GateRefused: Names the gates that failed, with their figures.
    """
    if reasons := failures(results):
        told = f"; quarantined: {quarantined}" if quarantined and quarantined not in reasons else ""
        raise GateRefused(f"nothing was published; {reasons}{told}{how_to_accept(results)}")
