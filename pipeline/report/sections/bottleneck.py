"""The bottleneck of a run, the advice that follows from it, and a forecast for each change.

In: the load of a run. Out: one sentence of advice with its figures, and the forecasts. A change
alters slots or busy seconds of the limit that binds; the time in which that limit was idle stays
the same. Every other limit is hard. A forecast is never below today's rate and never above the next
limit. A short stream has none: it mostly shows how the run started and ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.report.sections import Section
from pipeline.report.sections.limits import (
    CORES,
    LAUNCH_BOUND_PCT,
    LIMIT_BUSY_PCT,
    GroupLimit,
    Load,
    binding_limit,
    busiest_group,
    core_stages,
    find_limits,
    utilisation_pct,
)
from pipeline.report.sections.outcome import BROKEN
from pipeline.report.sections.stages import slower_lines
from pipeline.report.showing.blocks import Bar, Block, format_rate, table_of

if TYPE_CHECKING:
    from pipeline.report.document import Report

STARTUP_DOMINATES_PCT = 50.0
WAITING = "waiting"
LEAST_STREAM_S = 30.0
"""The idle time of a shorter stream says nothing about a longer one."""
_Change = tuple[str, str, Load]
"""Name, meaning for this run, and the load after the change."""


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


class Forecast(Section):
    """The streaming rate after one change, by the measured service times."""

    change: str
    note: str
    """What the change means for this run."""
    rows_per_s: float | None
    """Streaming rate: never below today's, never above the next limit."""
    gain_pct: float | None
    """How much higher that is than today's."""
    limited_by: str | None
    """The limit then: a group as in `limits`, `cores`, or `waiting` (no stage)."""


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
    """Return the section of a run that start-up dominates."""
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
    """Return the section of a run in which no stage was busy enough to be the limit."""
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
    """Return the advice, or only the facts if the stream was too short for advice."""
    stream_s = load.streaming_wall_s or 0.0
    if stream_s < LEAST_STREAM_S:
        return f"Too short a run to say: the rows took {stream_s:.1f} s; {facts}."
    return advice[0].upper() + advice[1:]


def _bound(load: Load, binding: GroupLimit) -> BottleneckSection:
    """Return the section of a run with a limit: the best change, of equals the easiest."""
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


def bottleneck_block(report: Report) -> Block:
    """Return the advice, and the limits beside the rate of this run."""
    rate, neck, limits = report.rows_per_s or 0.0, report.bottleneck, report.limits
    full = (
        max(3 * rate, 1.2 * min((limit.limit_rows_per_s for limit in limits), default=0.0)) or 1.0
    )
    advice = [] if report.status in BROKEN else [neck.advice]
    return Block(
        "What held it back",
        [*advice, *slower_lines(report)],
        table=table_of(
            limits,
            lambda limit: Bar(100 * limit.limit_rows_per_s / full, 100 * rate / full),
            neck.limit,
        ),
        note=f"What a group could do alone; dark line: this run, {format_rate(rate)} rows/s."
        if limits
        else "",
    )


def changes_block(report: Report) -> Block:
    """Return the forecasts."""
    return Block(
        "What a change would bring",
        table=table_of(() if report.status in BROKEN else report.predictions),
        note="Each alone, by the service times of this run: never less than today, never more "
        "than the next limit.",
    )


def make_forecasts(load: Load) -> list[tuple[Forecast, float]]:
    """Return a forecast for each change that a person can make; none if the stream was too short.

    Returns:
        Each with the lowest limit after the change, in rows/s, which no other tuning can exceed.
    """
    limits = find_limits(load)
    if not limits or not load.rows or (load.streaming_wall_s or 0.0) < LEAST_STREAM_S:
        return []
    return [_forecast(load, limits, change) for change in _changes(load, limits)]


def _forecast(load: Load, limits: list[GroupLimit], change: _Change) -> tuple[Forecast, float]:
    """Return the forecast of one change, with the lowest limit after it."""
    name, note, changed = change
    rate, binding = load.rows_per_s, binding_limit(limits)
    after = {limit.group: limit.limit_rows_per_s for limit in find_limits(changed)}
    if binding is None:
        predicted, limited_by, ceiling = rate, WAITING, max(rate, min(after.values()))
    else:
        group_limit = after.pop(binding.group)
        busy = min(1.0, rate / binding.limit_rows_per_s)
        scaled = rate / (busy * binding.limit_rows_per_s / group_limit + 1 - busy)
        for group in after:
            after[group] *= _crowding(load, binding, group)
        following = min(after, key=lambda group: after[group], default=None)
        next_limit = after[following] if following else math.inf
        predicted = max(rate, min(scaled, next_limit))
        is_next = following is not None and rate < scaled and next_limit <= scaled
        limited_by = following if following and is_next else binding.group
        ceiling = max(predicted, min(group_limit, next_limit))
    forecast = Forecast(
        change=name,
        note=note,
        rows_per_s=predicted,
        gain_pct=round(100 * (predicted / rate - 1), 2),
        limited_by=limited_by,
    )
    return forecast, ceiling


def _crowding(load: Load, binding: GroupLimit, group: str) -> float:
    """Return the factor by which busy seconds of a group are too many, as they include waiting.

    On crowded cores a stage that waits for a core is busy: half more work than cores means that a
    third of the seconds is waiting, and the group's own limit is higher by that.
    """
    waits = set(load.groups[group]) <= set(core_stages(load)) if group != CORES else False
    return max(1.0, binding.utilisation_pct / 100) if binding.group == CORES and waits else 1.0


def _changes(load: Load, limits: list[GroupLimit]) -> Iterator[_Change]:
    """Yield the changes whose parts were measured, the easiest first."""
    binding = binding_limit(limits)
    if load.fused and load.is_on_gpu and load.cpus:
        more = replace(load, cpus=load.cpus + 1)
        yield "one more core", "the actors decode, and each needs a GPU", more
    elif not load.fused and any(map(load.busy_s, load.prepared[:1])):
        yield _one_more(load, "decoder", "one more decoder core", more_cores=1)
    if load.group_slots("actor"):
        yield from _more_actors_on_gpus(load) if load.is_on_gpu else _more_actors(load)
    for stage in filter(load.busy_s, load.prepared[:1]):
        yield f"half the {stage} time", "smaller inputs", _faster(load, stage, 2)
    if load.busy_s("predict"):
        how = "a lower precision or a faster runtime"
        if load.launch_pct >= LAUNCH_BOUND_PCT:
            how = (
                "model.runtime compile-quick or compile, or larger batches: launching them takes "
                f"the host {load.launch_pct:.0f}% of the GPU's time"
            )
        yield "half the predict time", how, _faster(load, "predict", 2)
    if binding is not None and binding.group in ("reader", "writer"):
        yield _one_more(load, binding.group, f"one more {binding.group}")


def _more_actors(load: Load) -> Iterator[_Change]:
    if load.fused:
        yield _one_more(load, "actor", "one more core with its actor", more_cores=1)
    yield _one_more(load, "actor", "one more actor on the same cores")


def _more_actors_on_gpus(load: Load) -> Iterator[_Change]:
    """Yield one more GPU, unless the GPUs wait for their host to launch work."""
    actors, gpus = load.group_slots("actor"), load.gpus or 0
    if actors < gpus:
        yield _one_more(load, "actor", "one more actor on a GPU that is free")
    elif gpus and load.launch_pct < LAUNCH_BOUND_PCT:
        then = actors * (gpus + 1) / gpus  # several actors may share a card
        more = _with_slots(load, "actor", then)
        yield "one more GPU with its actor", f"{then:g} instead of {actors:g}", more


def _one_more(load: Load, group: str, change: str, *, more_cores: int = 0) -> _Change:
    now = load.group_slots(group)
    cpus = load.cpus + more_cores if load.cpus else None
    more = replace(_with_slots(load, group, now + 1), cpus=cpus)
    return change, f"{now + 1:g} instead of {now:g}", more


def _faster(load: Load, stage: str, times: float) -> Load:
    did = load.figures.stage(stage)
    stages = {**load.figures.stages, stage: replace(did, busy_s=did.busy_s / times)}
    return replace(load, figures=replace(load.figures, stages=stages))


def _with_slots(load: Load, group: str, number: float) -> Load:
    return replace(load, slots={**load.slots, **dict.fromkeys(load.all_groups[group], number)})
