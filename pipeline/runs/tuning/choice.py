"""What runs the model of a plan, and why. Pure: figures in, a choice and its sentence out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.core.documents import known_fields
from pipeline.inference.runtimes import runtime_of
from pipeline.models.spec import EAGER, FP32, ModelSpec
from pipeline.planning.allocation import Allocation
from pipeline.runs.tuning.profile import Profile
from pipeline.runs.tuning.selection import (
    LEAST_GAIN_PCT,
    LEAST_RUN_S,
    expected_s,
    fastest_known,
    is_usable,
)
from pipeline.runs.tuning.trial import Trial

Reason = Literal["job", "measured", "known", "unknown", "begun"]
PLAIN = Trial(EAGER, FP32)


@dataclass(frozen=True)
class Choice:
    """How a model is run."""

    way: Trial
    reason: Reason
    """`job`: the job says it; `measured`: this run did, before it started; `known`: it was measured
    earlier; `unknown`: nothing was; `begun`: the work was begun so."""
    text: str
    """The choice and its reason in one line."""
    gain: float | None = None
    """Rows/s beside those of eager fp32, of one actor and the model alone."""

    def to_dict(self) -> dict[str, Any]:
        """Return the form that is stored."""
        return {**self.way.to_dict(), "reason": self.reason, "text": self.text, "gain": self.gain}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Choice:
        """Undo `to_dict`.

        Raises:
            KeyError, TypeError: It is something else.
        """
        way = Trial(**known_fields(Trial, document))
        return cls(way, document["reason"], document["text"], document["gain"])

    def facts(self) -> dict[str, Any]:
        """Return what reports and manifests say of it: the fields of `sections.Choice`."""
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
    """Return the choice of a job that says what runs its model."""
    name = f"{model.runtime} {model.precision}"
    return Choice(Trial(model.runtime, model.precision), "job", f"{name}, as the job says")


def begun(runtime: str, precision: str, artefact_sha256: str = "") -> Choice:
    """Return the choice of rows that are published."""
    way = Trial(runtime, precision, artefact_sha256=artefact_sha256)
    return Choice(way, "begun", f"{runtime} {precision}, as the work was begun")


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
    """Return the choice of a job that says neither runtime nor precision.

    Args:
        min_agreement_pct: `gates.min_agreement_pct`.
        num_rows: Rows of the run; None if unknown.
        allocation: How many actors share the rows.
        others: Names of the runtimes, beside eager, that are installed and could run the model.
    """
    ways = [way for way in profile.ways if way.runtime in (EAGER, *others)]
    way = fastest_known(ways, min_agreement_pct, num_rows, allocation)
    rivals = [each for each in ways if each.precision == FP32 and each.runtime != EAGER]
    if not others:
        text = "no other runtime that is installed can run it (openvino and onnxruntime are extras)"
    elif way is None or not rivals or all(each.was_given_up for each in rivals):
        given_up = [each for each in rivals if each.was_given_up]
        text = _unknown(None if way is None else expected_s(way, num_rows, allocation), given_up)
    elif way.runtime != EAGER:
        by = "" if not way.measured_by else f" by {_by(way)}"
        head = f"{way.runtime} {way.precision}, as measured on {way.measured_at}{by}"
        text = head + _figures(profile, way, ": ") + _left_out(profile, others)
        return Choice(way, "known", text, profile.gain(way))
    else:
        told = [
            f"{each.runtime} {verdict(profile, each, min_agreement_pct)}"
            for each in rivals
            if not each.was_given_up
        ]
        text = f"no other ends such a run {LEAST_GAIN_PCT:g}% earlier here: {', '.join(told)}"
        text += _left_out(profile, others)
        return Choice(way, "known", f"{EAGER} {FP32}: {text}", 1.0)
    return Choice(PLAIN, "unknown", f"{EAGER} {FP32}: {text}")


def _unknown(run_s: float | None, given_up: Sequence[Trial]) -> str:
    """Say why nothing but eager is known.

    Args:
        run_s: What the run is expected to take; 0 if its rows are unknown, None if its rate is.
        given_up: What took too long.
    """
    if run_s and run_s < LEAST_RUN_S:
        return (
            f"such a run takes about {run_s:.0f} s, too short to measure other runtimes first; "
            "`pipeline tune JOB` does"
        )
    if given_up:
        told = ", ".join(f"{each.runtime} {each.problem}" for each in given_up)
        return f"nothing else was measured in time ({told}); `pipeline tune JOB` measures all"
    return (
        "nothing else is known of this model here yet; on CPUs longer runs measure first, for a "
        "tenth of their time, and `pipeline tune JOB` measures all"
    )


def _left_out(profile: Profile, others: Sequence[str]) -> str:
    """Say which runtimes there was no time for."""
    known = {name: profile.of(name, FP32) for name in others if runtime_of(name).exports}
    left = [name for name, way in known.items() if way is None or way.was_given_up]
    return f"; not measured: {', '.join(left)}" if left else ""


def _by(way: Trial) -> str:
    return "`pipeline tune`" if way.measured_by == "tune" else f"run {way.measured_by}"


def verdict(profile: Profile, way: Trial, min_agreement_pct: float) -> str:
    """Say what trying a way gave."""
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
