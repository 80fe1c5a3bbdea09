"""What a change would make of the streaming rate: each group's limit, after the change.

A change alters slots or busy seconds. What binds today scales the rate that was really reached;
every other limit is hard. A forecast is never below today's rate, never above the next limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.report.speed.limits import (
    CORES,
    GroupLimit,
    Load,
    binding_limit,
    core_stages,
    find_limits,
)

WAITING = "waiting"
MORE_DATA = {"reader": "one more reader", "writer": "one more writer"}


@dataclass(frozen=True)
class Forecast:
    """What one change would give; None if what it takes to say so was not measured."""

    change: str
    note: str
    """What the change means here, or why there is no figure."""
    rows_per_s: float | None = None
    """Streaming rate after the change."""
    gain_pct: float | None = None
    """By how much that is more than today's."""
    limited_by: str | None = None
    """What is the limit then: a group, `cores`, or `waiting` (no stage is)."""
    ceiling_rows_per_s: float | None = None
    """The lowest limit then: what no tuning of the rest could exceed."""


@dataclass(frozen=True)
class _Change:
    name: str
    note: str
    load: Load | None
    """As it would be; None if that is unknown, and the note says why."""


def make_forecasts(load: Load) -> list[Forecast]:
    """Say what each change that a person can make would give; nothing measured, no forecasts."""
    limits = find_limits(load)
    if not limits or not load.rows_per_s:
        return []
    return [_forecast(load, limits, change) for change in _changes(load, limits)]


def _forecast(load: Load, limits: list[GroupLimit], change: _Change) -> Forecast:
    """Return what one change gives: the limit of its group scaled, until the next limit."""
    if change.load is None:
        return Forecast(change.name, change.note)
    rate, binding = load.rows_per_s, binding_limit(limits)
    after = {limit.group: limit.limit_rows_per_s for limit in find_limits(change.load)}
    if binding is None:
        ceiling = max(rate, min(after.values()))
        return Forecast(change.name, change.note, rate, 0.0, WAITING, ceiling)
    own = after.pop(binding.group)
    scaled = rate * own / binding.limit_rows_per_s
    for group in after:
        after[group] *= _crowding(load, binding, group)
    following = min(after, key=lambda group: after[group], default=None)
    next_limit = after[following] if following else math.inf
    predicted = max(rate, min(scaled, next_limit))
    is_next = following is not None and rate < scaled and next_limit <= scaled
    return Forecast(
        change.name,
        change.note,
        predicted,
        round(100 * (predicted / rate - 1), 2),
        following if is_next else binding.group,
        max(predicted, min(own, next_limit)),
    )


def _crowding(load: Load, binding: GroupLimit, group: str) -> float:
    """Say by how much busy seconds of a group are too many, because they include waiting.

    On crowded cores a stage that waits for one is busy: more work than cores by a half means that
    a third of the seconds is waiting, and a group's own limit is higher by that.
    """
    waits = set(load.groups[group]) <= set(core_stages(load)) if group != CORES else False
    return max(1.0, binding.utilisation_pct / 100) if binding.group == CORES and waits else 1.0


def _changes(load: Load, limits: list[GroupLimit]) -> Iterator[_Change]:
    if load.is_on_gpu or not load.fused:
        yield _one_more_decoder(load)
    else:
        yield _one_more_actor(load, "one more core with its actor", more_cores=1)
    yield (
        _one_more_gpu(load)
        if load.is_on_gpu
        else _one_more_actor(load, "one more actor on the same cores", more_cores=0)
    )
    yield _twice_the_batch(load)
    if load.tokens_per_row:
        yield _half_the_tokens(load, load.tokens_per_row)
    elif load.prepared:
        yield _half(load, load.prepared[0], "smaller input images")
    yield _half(load, "predict", "a lower precision or a faster runtime")
    binding = binding_limit(limits)
    if binding is not None and binding.group in MORE_DATA:
        now = binding.slots
        more = _with_slots(load, binding.group, now + 1)
        yield _Change(MORE_DATA[binding.group], f"{now + 1:g} instead of {now:g}", more)


def _one_more_decoder(load: Load) -> _Change:
    if load.fused:
        note = "the actors decode, and each needs a GPU"
        more = replace(load, cpus=load.cpus + 1) if load.cpus else None
        return _Change("one more core", note if more else "the cores are not known", more)
    name, now = "one more decoder core", load.group_slots("decoder")
    if not now or not any(map(load.busy_s, load.prepared[:1])):
        return _Change(name, "no decoding was measured", None)
    more = replace(_with_slots(load, "decoder", now + 1), cpus=load.cpus + 1 if load.cpus else None)
    return _Change(name, f"{now + 1:g} decoders instead of {now:g}", more)


def _one_more_actor(load: Load, name: str, *, more_cores: int) -> _Change:
    now = load.group_slots("actor")
    if not now:
        return _Change(name, "the number of actors is not known", None)
    more = _with_slots(load, "actor", now + 1)
    more = replace(more, cpus=load.cpus + more_cores if load.cpus else None)
    return _Change(name, f"{now + 1:g} instead of {now:g}", more)


def _one_more_gpu(load: Load) -> _Change:
    now, gpus = load.group_slots("actor"), load.gpus
    if not now or not gpus:
        return _Change("one more GPU with its actor", "the number of GPUs is not known", None)
    if now < gpus:
        name, then = "one more actor on a GPU that is free", now + 1
    else:  # several actors may share a card
        name, then = "one more GPU with its actor", now * (gpus + 1) / gpus
    note = f"{then:g} actors instead of {now:g}"
    return _Change(name, note, _with_slots(load, "actor", then))


def _twice_the_batch(load: Load) -> _Change:
    name, size = "twice the batch", load.batch_tokens or load.batch_size
    unit = "tokens" if load.batch_tokens else "rows"
    if size is None:
        return _Change(name, "the batch size is not known", None)
    now, then = load.batch_rates.get(size), load.batch_rates.get(2 * size)
    if not now or not then or not load.busy_s("predict"):
        return _Change(
            name, f"batches of {size} and {2 * size} {unit} were not both measured", None
        )
    note = f"{2 * size} {unit} instead of {size}"
    return _Change(name, note, _faster(load, "predict", then / now))


def _half_the_tokens(load: Load, tokens_per_row: float) -> _Change:
    """Say what shorter texts give, whose model time is at least in proportion to their tokens."""
    name = "half the tokens per row"
    if not load.busy_s("predict"):
        return _Change(name, "predict was not measured", None)
    note = f"{tokens_per_row / 2:.0f} instead of {tokens_per_row:.0f}, by text.max_tokens"
    less = load
    for stage in (*load.prepared, "transfer", "predict"):
        less = _faster(less, stage, 2) if load.busy_s(stage) else less
    return _Change(name, note, less)


def _half(load: Load, stage: str, how: str) -> _Change:
    name = f"half the {stage} time"
    if not load.busy_s(stage):
        return _Change(name, f"{stage} was not measured", None)
    return _Change(name, how, _faster(load, stage, 2))


def _faster(load: Load, stage: str, times: float) -> Load:
    did = load.figures.stage(stage)
    stages = {**load.figures.stages, stage: replace(did, busy_s=did.busy_s / times)}
    return replace(load, figures=replace(load.figures, stages=stages))


def _with_slots(load: Load, group: str, number: float) -> Load:
    return replace(load, slots={**load.slots, **dict.fromkeys(load.own_groups[group], number)})
