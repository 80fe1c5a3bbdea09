"""What held a run back, and the one change that would help most: words for the best forecast.

In: what `limits` needs. Out: one sentence and its figures.
"""

from __future__ import annotations

from pipeline.report.sections.limits import (
    CORES,
    LIMIT_BUSY_PCT,
    GroupLimit,
    Load,
    binding_limit,
    busiest_group,
    find_limits,
    utilisation_pct,
)
from pipeline.report.sections.outcome import Section
from pipeline.report.showing.number_format import format_rate
from pipeline.report.speed.forecast import LEAST_STREAM_S, make_forecasts

STARTUP_DOMINATES_PCT = 50.0


class BottleneckSection(Section):
    """What held the run back, and the one change that would help most."""

    limit: str = "unknown"
    """`reader`, `decoder`, `actor`, `writer`, `cores`, `startup`, `waiting` (no stage), or
    `unknown`."""
    stage: str | None = None
    """The stage (or start-up part) that takes most of it."""
    utilisation_pct: float | None = None
    advice: str = ""
    """One sentence."""
    predicted_rows_per_s: float | None = None
    """Rate after the change that the advice names first."""
    limit_rows_per_s: float | None = None
    """Upper bound after that change: the next limit."""


def find_bottleneck(load: Load) -> BottleneckSection:
    """Name what held the run back and the one change that would help most.

    Start-up comes first (nothing inside the stream matters when most of the run was outside it),
    then the cores (a group is no limit of its own when all groups wait for the same cores), then
    the busiest group.
    """
    limits = find_limits(load)
    top, binding = busiest_group(limits), binding_limit(limits)
    if top is None or not load.streaming_wall_s:
        return BottleneckSection(advice="No stage was measured in this run, so there is no advice.")
    startup_s = sum(load.startup.values())
    idle_s = load.streaming_wall_s * (1 - top.utilisation_pct / 100)
    is_idle = top.utilisation_pct < LIMIT_BUSY_PCT
    startup_pct = utilisation_pct(startup_s, 1, load.wall_s) or 0.0
    if startup_pct >= STARTUP_DOMINATES_PCT or (is_idle and 0 < idle_s <= startup_s):
        return _startup_bound(load, top, startup_s, startup_pct)
    if binding is None:
        return _waiting(load, top)
    return _bound(load, binding)


def _startup_bound(
    load: Load, top: GroupLimit, startup_s: float, startup_pct: float
) -> BottleneckSection:
    """Say that starting up took most of the time, and what would help."""
    part = max(load.startup, key=lambda name: load.startup[name])
    took = (
        f"start-up took {startup_s:.1f} s, {startup_pct:.0f}% of the run (most of it "
        f"{part.replace('_', ' ')}, {load.startup[part]:.1f} s)"
    )
    return BottleneckSection(
        limit="startup",
        advice=_unless_short(load, took, f"{took}: more rows per run would help most."),
        stage=part,
        utilisation_pct=top.utilisation_pct,
    )


def _waiting(load: Load, top: GroupLimit) -> BottleneckSection:
    """Say that no stage was busy enough to be the limit, and what would help."""
    busy = f"the busiest group ({top.group}) was busy {top.utilisation_pct:.0f}% of the time"
    advice = (
        f"No stage was the limit: {busy}, the rest was waiting for work: more slices per actor (a "
        "smaller run.slice_rows) would help most."
    )
    return BottleneckSection(
        limit="waiting",
        advice=_unless_short(load, busy, advice),
        stage=top.top_stage,
        utilisation_pct=top.utilisation_pct,
    )


def _unless_short(load: Load, facts: str, advice: str) -> str:
    """Return the advice; of a stream that was too short for one, what is known."""
    stream_s = load.streaming_wall_s or 0.0
    if stream_s < LEAST_STREAM_S:
        return f"Too short a run to say: the rows took {stream_s:.1f} s; {facts}."
    return advice[0].upper() + advice[1:]


def _bound(load: Load, binding: GroupLimit) -> BottleneckSection:
    """Name the limit, and the change that gives most; of equals the one that is easiest to do."""
    known = [forecast for forecast in make_forecasts(load) if forecast[0].gain_pct]
    best, ceiling = max(known, key=lambda known: known[0].rows_per_s or 0.0, default=(None, None))
    rate = load.rows_per_s
    helps = "none of the changes that were looked at would help"
    if (load.streaming_wall_s or 0.0) < LEAST_STREAM_S:
        helps = f"the rows took {load.streaming_wall_s:.1f} s, too short for a forecast"
    if best is not None:
        helps = (
            f"{best.change} ({best.note}) would give about {format_rate(best.rows_per_s)} rows/s "
            f"instead of {format_rate(rate)}"
        )
        if best.limited_by not in (None, binding.group):
            helps += f", where {_NAMED[best.limited_by or '']} become the limit"
    return BottleneckSection(
        limit=binding.group,
        advice=f"{_what_binds(binding)}; {helps}.",
        stage=binding.top_stage,
        utilisation_pct=binding.utilisation_pct,
        predicted_rows_per_s=best.rows_per_s if best else rate,
        limit_rows_per_s=ceiling if best else rate,
    )


def _what_binds(binding: GroupLimit) -> str:
    busy, share = f"{binding.utilisation_pct:.0f}%", f"{binding.top_share_pct:.0f}%"
    if binding.group == CORES:
        return (
            f"The cores are the limit: the stages wanted {busy} of the {binding.slots:g} there "
            f"are, so more actors on the same cores would not help; {binding.top_stage} takes "
            f"{share} of the core time"
        )
    named = _NAMED[binding.group].capitalize()
    return f"{named} are the limit: busy {busy} of the time, {share} of it in {binding.top_stage}"


_NAMED = {
    "reader": "the readers",
    "decoder": "the decoders",
    "actor": "the actors",
    "writer": "the writers",
    CORES: "the cores",
}
