"""What held a run back, and the one change that would help most: words for the best forecast.

In: what `limits` needs. Out: one sentence and its figures.
"""

from __future__ import annotations

from pipeline.report.sections import Section
from pipeline.report.speed.forecast import Forecast, make_forecasts
from pipeline.report.speed.limits import (
    CORES,
    LAUNCH_BOUND_PCT,
    LIMIT_BUSY_PCT,
    GroupLimit,
    Load,
    binding_limit,
    busiest_group,
    find_limits,
    utilisation_pct,
)

STARTUP_DOMINATES_PCT = 50.0
LEAST_STREAM_S = 30.0
"""Of a stream that was shorter, start-up and waiting say nothing of a longer one."""
FEW_SLICES_PER_SLOT = 4
"""With fewer the last ones leave slots without work for a good part of the time."""


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
        return _waiting(load, top, startup_pct)
    return _bound(load, binding)


def _startup_bound(
    load: Load, top: GroupLimit, startup_s: float, startup_pct: float
) -> BottleneckSection:
    """Say that starting up took most of the time, and what would help."""
    part = max(load.startup, key=lambda name: load.startup[name])
    part_s, stream_s = load.startup[part], load.streaming_wall_s or 0.0
    took = f"start-up took {startup_s:.1f} s, {startup_pct:.0f}% of the run"
    most = f"most of it {_PARTS.get(part, part)}, {part_s:.1f} s"
    if stream_s < LEAST_STREAM_S:
        advice = f"Too short a run to say: {took} ({most}), the rows {stream_s:.1f} s."
    elif load.on_cluster and part == "workers":
        advice = (
            f"Start-up dominated: {took}; {part_s:.1f} s went into starting workers on nodes "
            "without them: more rows per run would help most."
        )
    else:
        way = (
            "more rows per run" if load.on_cluster else "more rows per run or a cluster that is up"
        )
        advice = (
            f"Start-up dominated: {took} ({most}), while the busiest stage group ({top.group}) was "
            f"busy {top.utilisation_pct:.0f}% of the streaming time: {way} would help most."
        )
    return BottleneckSection(
        limit="startup", advice=advice, stage=part, utilisation_pct=top.utilisation_pct
    )


def _waiting(load: Load, top: GroupLimit, startup_pct: float) -> BottleneckSection:
    """Say that no stage was busy enough to be the limit, and what would help."""
    stream_s, slots = load.streaming_wall_s or 0.0, max(1.0, load.group_slots("actor"))
    busy = f"the busiest group ({top.group}) was busy {top.utilisation_pct:.0f}% of the time"
    idle = (
        f"No stage was the limit: {busy} and start-up took {startup_pct:.0f}% of the run, the "
        "rest was waiting for work"
    )
    if stream_s < LEAST_STREAM_S:
        advice = f"Too short a run to say: the rows took {stream_s:.1f} s, and {busy}."
    elif load.slices is not None and load.slices < FEW_SLICES_PER_SLOT * slots:
        advice = (
            f"{idle}: more slices than the {load.slices} there were for {slots:g} actors (a "
            "smaller run.slice_rows) would help most."
        )
    else:
        advice = f"{idle}; none of the changes that were looked at would help."
    return BottleneckSection(
        limit="waiting", advice=advice, stage=top.top_stage, utilisation_pct=top.utilisation_pct
    )


def _bound(load: Load, binding: GroupLimit) -> BottleneckSection:
    if binding.group == "actor" and load.launch_pct >= LAUNCH_BOUND_PCT:
        advice = (
            f"{_what_binds(binding)}, but the host takes {load.launch_pct:.0f}% of the GPU's time "
            "to launch its batches, so that the GPU waits for the host: a compiled model "
            "(model.runtime compile-quick or compile) or larger batches would help more than "
            "another GPU."
        )
        return BottleneckSection(
            limit=binding.group,
            advice=advice,
            stage=binding.top_stage,
            utilisation_pct=binding.utilisation_pct,
        )
    known = [forecast for forecast in make_forecasts(load) if forecast.gain_pct]
    # The list begins with what is easiest to do: of equals the first.
    known.sort(key=lambda forecast: -(forecast.rows_per_s or 0.0))
    best = known[0] if known else None
    return BottleneckSection(
        limit=binding.group,
        advice=f"{_what_binds(binding)}; {_words(known, load.rows_per_s, binding)}.",
        stage=binding.top_stage,
        utilisation_pct=binding.utilisation_pct,
        predicted_rows_per_s=best.rows_per_s if best else load.rows_per_s,
        limit_rows_per_s=best.ceiling_rows_per_s if best else load.rows_per_s,
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


def _words(known: list[Forecast], rate: float, binding: GroupLimit) -> str:
    if not known:
        return "none of the changes that were looked at would help"
    best, others = known[0], known[1:2]
    until = ""
    if best.limited_by is not None and best.limited_by != binding.group:
        until = f", where {_NAMED[best.limited_by]} become the limit"
    second = "".join(f"; {o.change} ({o.note}) about {o.rows_per_s:,.0f}" for o in others)
    return (
        f"{best.change} ({best.note}) would give about {best.rows_per_s:,.0f} rows/s instead of "
        f"{rate:,.0f}{until}{second}"
    )


_PARTS = {
    "ray_start": "starting Ray",
    "workers": "starting workers",
    "imports": "importing",
    "model_load": "loading the model",
}
_NAMED = {
    "reader": "the readers",
    "decoder": "the decoders",
    "actor": "the actors",
    "writer": "the writers",
    CORES: "the cores",
}
