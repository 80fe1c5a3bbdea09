"""The result of a gate, and how a failure is accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from pipeline.core.errors import GateRefused, JobError
from pipeline.core.registry import GATES, names

Status = Literal["pass", "warn", "fail", "off", "accepted"]

CONSERVATION: Final = "conservation"
"""The gate whose failure is never accepted."""


@dataclass(frozen=True)
class Finding:
    """The finding of a gate, before its mode applies."""

    level: Literal["pass", "warn", "fail", "off"]
    """`off`: there was nothing to judge."""
    message: str
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class GateResult:
    """The result of a gate, no worse than its mode."""

    name: str
    status: Status
    value: float | None
    limit: float | None
    message: str
    reason: str | None = None
    """Why the failure was accepted; null unless `accepted`."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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
        known = [gate for gate in names(GATES) if gate != CONSERVATION]
        if name not in known:
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
    """Say how to publish despite the failed gates; '' if one of them is never accepted."""
    failed = [result.name for result in results if result.status == "fail"]
    if not failed or CONSERVATION in failed:
        return ""
    return f"; to publish anyway: {' '.join(f'--accept {name}=REASON' for name in failed)}"


def require_pass(results: Sequence[GateResult], quarantined: str = "") -> None:
    """Refuse if any gate failed.

    Args:
        results: Of all gates.
        quarantined: Why rows are in quarantine; added unless a failed gate has it.

    Raises:
        GateRefused: The message has the failed gates with their figures.
    """
    if reasons := failures(results):
        quarantine = (
            f"; quarantined: {quarantined}" if quarantined and quarantined not in reasons else ""
        )
        raise GateRefused(f"nothing was published; {reasons}{quarantine}{how_to_accept(results)}")
