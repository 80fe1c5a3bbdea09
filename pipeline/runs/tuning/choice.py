"""The choice of a runtime and precision, with its reason in a sentence. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.models.spec import EAGER, FP32, ModelSpec
from pipeline.planning.allocation import Allocation
from pipeline.runs.tuning.profile import Profile
from pipeline.runs.tuning.selection import LEAST_GAIN_PCT, Trial, fastest_known, is_usable

Reason = Literal["job", "measured", "known", "unknown", "begun"]
PLAIN = Trial(EAGER, FP32)


@dataclass(frozen=True)
class Choice:
    """How a model is run."""

    way: Trial
    reason: Reason
    """As in the section `Choice` of the report."""
    text: str
    """The choice and its reason in one line."""
    gain: float | None = None
    """Rows/s as a multiple of those of eager fp32, for one actor and the model alone."""

    def to_dict(self) -> dict[str, Any]:
        """Return the form that is stored."""
        return {**self.way.to_dict(), "reason": self.reason, "text": self.text, "gain": self.gain}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Choice:
        """Undo `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        way = Trial.from_dict(document)
        return cls(way, document["reason"], document["text"], document["gain"])

    def facts(self) -> dict[str, Any]:
        """Return the fields of the section `Choice`, for reports and manifests."""
        way = {name: value for name, value in asdict(self.way).items() if value}
        return {
            "reason": self.reason,
            "text": self.text,
            "gain": self.gain,
            "num_compared": way.get("num_compared"),
            "measured_by": way.get("measured_by"),
            "measured_at": way.get("measured_at"),
        }


def by_job(model: ModelSpec) -> Choice:
    """Return the choice that the job makes."""
    name = f"{model.runtime} {model.precision}"
    return Choice(Trial(model.runtime, model.precision), "job", f"{name}, as the job says")


def begun(runtime: str, precision: str, artefact_sha256: str = "") -> Choice:
    """Return the choice by which published rows were made."""
    way = Trial(runtime, precision, artefact_sha256=artefact_sha256)
    return Choice(way, "begun", f"{runtime} {precision}, as for the published rows")


def measured(profile: Profile, way: Trial) -> Choice:
    """Return the choice of a run with `auto`."""
    text = f"auto chose {way.runtime} {way.precision}{_figures(profile, way, ': ')}"
    return Choice(way, "measured", text, profile.gain(way))


def settled(
    profile: Profile,
    min_agreement_pct: float,
    num_rows: int | None,
    allocation: Allocation,
    others: Sequence[str],
) -> Choice:
    """Return the choice for a job that sets neither runtime nor precision.

    Args:
        min_agreement_pct: `gates.min_agreement_pct`.
        num_rows: Rows of the run; None if unknown.
        allocation: How many actors share the rows.
        others: Names of the installed runtimes, other than eager, that could run the model.
    """
    ways = [way for way in profile.ways if way.runtime in (EAGER, *others)]
    way = fastest_known(ways, min_agreement_pct, num_rows, allocation)
    rivals = {name: profile.of(name, FP32) for name in others}
    if way is not None and way.runtime != EAGER:
        left = [name for name, rival in rivals.items() if rival is None or rival.was_given_up]
        text = f"{way.runtime} {way.precision}, as measured on {way.measured_at}"
        by = "`pipeline tune`" if way.measured_by == "tune" else f"run {way.measured_by}"
        text += f" by {by}" if way.measured_by else ""
        text += _figures(profile, way, ": ")
        text += f"; not measured: {', '.join(left)}" if left else ""
        return Choice(way, "known", text, profile.gain(way))
    if not others:
        why = "no other runtime that is installed can run it (`pipeline doctor` lists extras)"
        return Choice(PLAIN, "unknown", f"{EAGER} {FP32}: {why}")
    verdicts = [
        f"{name} {verdict(profile, rival, min_agreement_pct)}" for name, rival in rivals.items()
    ]
    text = f"{EAGER} {FP32}: no other is known to end such a run {LEAST_GAIN_PCT:g}% earlier here: "
    text += ", ".join(verdicts)
    if way is not None and all(rival and not rival.was_given_up for rival in rivals.values()):
        return Choice(way, "known", text, 1.0)
    text += (
        "; on CPUs runs of a minute or more measure first, for a tenth of their time, and "
        "`pipeline tune JOB` measures all"
    )
    return Choice(way or PLAIN, "unknown", text)


def verdict(profile: Profile, way: Trial | None, min_agreement_pct: float) -> str:
    """Return the result of a trial in words."""
    if way is None:
        return "is not measured"
    if way.problem:
        return way.problem if way.was_given_up else f"cannot be used: {way.problem}"
    if not is_usable(way, min_agreement_pct):
        return f"agrees on {way.agreement_pct:.1f}% of the rows"
    return f"is {_figures(profile, way, '')}"


def _figures(profile: Profile, way: Trial, before: str) -> str:
    if (way.runtime, way.precision) == (EAGER, FP32) and not way.num_compared:
        return ""
    gain, agreed = profile.gain(way), f"agreement {way.agreement_pct:.4g}%"
    parts = [] if gain is None else [f"{gain:.2g} times eager fp32"]
    parts += [f"{agreed} of {way.num_compared} rows" if way.num_compared else agreed]
    return before + ", ".join(parts)
