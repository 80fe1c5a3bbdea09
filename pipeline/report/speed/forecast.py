"""What a change would make of the streaming rate: each group's limit, after the change.

A change alters slots or busy seconds of the limit that binds; the time in which that limit did not
work stays as it was. Every other limit is hard. A forecast is never below today's rate, never above
the next limit. A short stream has none: it mostly shows how the run started and ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from pipeline.report.sections.limits import (
    CORES,
    LAUNCH_BOUND_PCT,
    GroupLimit,
    Load,
    binding_limit,
    core_stages,
    find_limits,
)
from pipeline.report.sections.outcome import Section

WAITING = "waiting"
LEAST_STREAM_S = 30.0
"""Of a stream that was shorter, idle time says nothing of a longer one."""
_Change = tuple[str, str, Load]
"""Its name, what it means here, and the load as it would be."""


class Forecast(Section):
    """What one change would make of the streaming rate, by the measured service times."""

    change: str
    note: str
    """What the change means for this run."""
    rows_per_s: float | None
    """Streaming rate after it: never below today's, never above the next limit."""
    gain_pct: float | None
    """By how much that is more than today's."""
    limited_by: str | None
    """What is the limit then: a group as in `limits`, `cores`, or `waiting` (no stage is)."""


def make_forecasts(load: Load) -> list[tuple[Forecast, float]]:
    """Say what each change that a person can make would give; none if the stream was too short.

    Returns:
        Each with the lowest limit then, in rows/s: what no tuning of the rest could exceed.
    """
    limits = find_limits(load)
    if not limits or not load.rows or (load.streaming_wall_s or 0.0) < LEAST_STREAM_S:
        return []
    return [_forecast(load, limits, change) for change in _changes(load, limits)]


def _forecast(load: Load, limits: list[GroupLimit], change: _Change) -> tuple[Forecast, float]:
    """Return what one change gives: its group's time of a row, with what was idle, or the next."""
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
    """Say by how much busy seconds of a group are too many, because they include waiting.

    On crowded cores a stage that waits for one is busy: more work than cores by a half means that
    a third of the seconds is waiting, and a group's own limit is higher by that.
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
