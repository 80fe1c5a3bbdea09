"""What the counters say about the limit of a run: each group's limit, and one advice.

In: the sums of the counters, and how many slots each stage had. Out: the limit of each group of
stages, and the bottleneck. Nothing here knows Ray, storage or how a report looks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pipeline.stats import Counters, StageCounters

# Stages of one group run one after the other in the same slot, so they are judged together.
GROUPS: dict[str, tuple[str, ...]] = {
    "reader": ("read",),
    "decoder": ("decode", "transform"),
    "actor": ("transfer", "predict"),
    "writer": ("write",),
}
STREAMING_STAGES = tuple(stage for stages in GROUPS.values() for stage in stages)
CORES = "cores"

CORES_BUSY_PCT = 90.0
LIMIT_BUSY_PCT = 50.0
STARTUP_DOMINATES_PCT = 50.0

Slots = dict[str, float]
"""Stage -> how many of it could work at the same time."""


@dataclass(frozen=True)
class Load:
    """All that the search for the bottleneck looks at; None is unknown."""

    counters: Counters = field(default_factory=dict)
    slots: Slots = field(default_factory=dict)
    streaming_wall_s: float | None = None
    """From the first read to the last write."""
    wall_s: float | None = None
    """Of the whole run."""
    startup: dict[str, float] = field(default_factory=dict)
    """Wall seconds lost to each start-up part; of parallel processes the slowest counts."""
    cpus: float | None = None
    gpus: float | None = None
    is_on_gpu: bool = False

    @property
    def rows(self) -> int:
        """Rows that went through, quarantined ones included: the common base of all limits."""
        stages = [StageCounters.from_dict(self.counters.get(s, {})) for s in STREAMING_STAGES]
        return max(max(stage.rows_in, stage.rows_out) for stage in stages)

    @property
    def rows_per_s(self) -> float:
        """Rows over the streaming wall; 0 where that is unknown."""
        return self.rows / self.streaming_wall_s if self.streaming_wall_s else 0.0

    def group_slots(self, group: str) -> float:
        """Slots of a group: its stages share them."""
        return max(self.slots.get(stage, 0.0) for stage in GROUPS[group])

    def busy_s(self, stage: str) -> float:
        """Busy seconds of a stage, summed over its slots; 0 where it was not measured."""
        return self.counters.get(stage, {}).get("busy_s", 0.0)


@dataclass(frozen=True)
class Limit:
    """How fast one group of stages (or all cores together) could go if it alone mattered."""

    group: str
    slots: float
    busy_s: float
    utilisation_pct: float
    limit_rows_per_s: float
    top_stage: str
    """The stage of the group with the most busy seconds."""
    top_share_pct: float
    """Its share of the busy seconds of the group."""


@dataclass(frozen=True)
class Bottleneck:
    """What held the run back, and the one change that would help most."""

    limit: str
    """A group of stages, `cores`, `startup`, `waiting` (no stage), or `unknown`."""
    advice: str
    """One sentence."""
    stage: str | None = None
    """The stage or start-up part that takes most of it."""
    utilisation_pct: float | None = None
    predicted_rows_per_s: float | None = None
    """Rate after the change that the advice names first."""
    limit_rows_per_s: float | None = None
    """Upper bound after that change: the next limit."""


def utilisation_pct(busy_s: float, slots: float | None, wall_s: float | None) -> float | None:
    """Return the busy share of the slot time; above 100 only where busy really exceeds it."""
    if not slots or not wall_s:
        return None
    return round(100.0 * busy_s / (slots * wall_s), 2)


def find_limits(load: Load) -> list[Limit]:
    """Return the limit of every group that was measured and whose slots are known, cores last."""
    limits = []
    for group, stages in GROUPS.items():
        limits.append(_limit(load, group, stages, load.group_slots(group)))
    limits.append(_limit(load, CORES, _core_stages(load), load.cpus or 0.0))
    return [limit for limit in limits if limit is not None]


def _core_stages(load: Load) -> tuple[str, ...]:
    # Reading mostly waits for storage, and on a GPU the actor waits for the device: neither
    # keeps a core busy, so counting them would blame the cores for slow storage.
    excluded = {"read", *(GROUPS["actor"] if load.is_on_gpu else ())}
    return tuple(stage for stage in STREAMING_STAGES if stage not in excluded)


def _limit(load: Load, group: str, stages: tuple[str, ...], slots: float) -> Limit | None:
    busy_s = sum(load.busy_s(stage) for stage in stages)
    busy_pct = utilisation_pct(busy_s, slots, load.streaming_wall_s)
    if busy_pct is None or busy_s <= 0 or load.rows == 0:
        return None
    top_stage = max(stages, key=load.busy_s)
    return Limit(
        group=group,
        slots=slots,
        busy_s=busy_s,
        utilisation_pct=busy_pct,
        limit_rows_per_s=load.rows * slots / busy_s,
        top_stage=top_stage,
        top_share_pct=round(100.0 * load.busy_s(top_stage) / busy_s, 2),
    )


def find_bottleneck(load: Load) -> Bottleneck:
    """Name what held the run back and the one change that would help most.

    Start-up comes first (nothing inside the stream matters when most of the run was outside it),
    then the cores (a group is no limit of its own when all groups wait for the same cores), then
    the busiest group.
    """
    limits = find_limits(load)
    groups = [limit for limit in limits if limit.group != CORES]
    if not groups or not load.streaming_wall_s:
        return Bottleneck("unknown", "No stage was measured in this run, so there is no advice.")
    top = max(groups, key=lambda limit: limit.utilisation_pct)
    startup_s = sum(load.startup.values())
    idle_s = load.streaming_wall_s * (1 - top.utilisation_pct / 100)
    is_idle = top.utilisation_pct < LIMIT_BUSY_PCT
    startup_pct = utilisation_pct(startup_s, 1, load.wall_s) or 0.0
    if startup_pct >= STARTUP_DOMINATES_PCT or (is_idle and 0 < idle_s <= startup_s):
        return _startup_bound(load, top, startup_s, startup_pct)
    cores = next((limit for limit in limits if limit.group == CORES), None)
    if cores and cores.utilisation_pct >= CORES_BUSY_PCT:
        return _cores_bound(load, cores)
    if is_idle:
        return _waiting(top, startup_pct)
    return _group_bound(load, limits, top)


def _startup_bound(load: Load, top: Limit, startup_s: float, startup_pct: float) -> Bottleneck:
    part = max(load.startup, key=lambda name: load.startup[name])
    return Bottleneck(
        "startup",
        f"Start-up dominated: {startup_s:.1f} s, {startup_pct:.0f}% of the run (most of it "
        f"{part}, {load.startup[part]:.1f} s), while the busiest stage group ({top.group}) was "
        f"busy {top.utilisation_pct:.0f}% of the streaming time: more rows a run, or a cluster "
        "that is already up, would help most.",
        stage=part,
        utilisation_pct=top.utilisation_pct,
    )


def _waiting(top: Limit, startup_pct: float) -> Bottleneck:
    return Bottleneck(
        "waiting",
        f"No stage was the limit: the busiest group ({top.group}) was busy "
        f"{top.utilisation_pct:.0f}% of the time and start-up took {startup_pct:.0f}% of the run, "
        "the rest was waiting for work: more slices than slots (a smaller run.slice_rows) "
        "would help most.",
        stage=top.top_stage,
        utilisation_pct=top.utilisation_pct,
    )


_CHEAPER = {
    "decode": "smaller input images",
    "transform": "smaller input images",
    "transfer": "a smaller model input",
    "predict": "a lower precision or a faster runtime",
    "write": "a cheaper compression",
}


def _cores_bound(load: Load, cores: Limit) -> Bottleneck:
    rate = load.rows_per_s
    halved = rate / (1 - cores.top_share_pct / 200)
    one_core = rate * (cores.slots + 1) / cores.slots
    cheaper = f"halving that ({_CHEAPER[cores.top_stage]})"
    changes = sorted([(halved, cheaper), (one_core, "one more core")], reverse=True)
    (best, first), (second, other) = changes
    return Bottleneck(
        CORES,
        f"The cores are the limit: the stages wanted {cores.utilisation_pct:.0f}% of the "
        f"{cores.slots:g} there are, so more actors on the same cores would not help; "
        f"{cores.top_stage} takes {cores.top_share_pct:.0f}% of the core time, and {first} would "
        f"give about {best:,.0f} rows/s instead of {rate:,.0f}, {other} about {second:,.0f}.",
        stage=cores.top_stage,
        utilisation_pct=cores.utilisation_pct,
        predicted_rows_per_s=best,
        limit_rows_per_s=max(best, cores.limit_rows_per_s * best / rate),
    )


def _group_bound(load: Load, limits: list[Limit], top: Limit) -> Bottleneck:
    rate = load.rows_per_s
    change, cores_after = _one_more(load, top)
    gain = (top.slots + 1) / top.slots
    after = {
        limit.group: limit.limit_rows_per_s * (cores_after if limit.group == CORES else 1.0)
        for limit in limits
        if limit is not top
    }
    following = min(after, key=lambda group: after[group], default=None)
    next_limit = after[following] if following else math.inf
    # Own slots scale what was really reached; the next limit is hard, but never below today.
    predicted = max(rate, min(rate * gain, next_limit))
    until = f", where {_NAMED[following]} become the limit" if following else ""
    return Bottleneck(
        top.group,
        f"{_NAMED[top.group].capitalize()} are the limit: busy {top.utilisation_pct:.0f}% of the "
        f"time, {top.top_share_pct:.0f}% of it in {top.top_stage}; {change} "
        f"({top.slots + 1:g} instead of {top.slots:g}) would give about {predicted:,.0f} rows/s "
        f"instead of {rate:,.0f}{until if next_limit <= rate * gain else ''}.",
        stage=top.top_stage,
        utilisation_pct=top.utilisation_pct,
        predicted_rows_per_s=predicted,
        limit_rows_per_s=max(predicted, min(top.limit_rows_per_s * gain, next_limit)),
    )


_NAMED = {
    "reader": "the readers",
    "decoder": "the decoders",
    "actor": "the actors",
    "writer": "the writers",
    CORES: "the cores",
}


def _one_more(load: Load, top: Limit) -> tuple[str, float]:
    """Say what one more slot of a group takes, and by how much it raises the limit of the cores."""
    actor_slots = load.group_slots("actor")
    if top.group == "actor" and load.is_on_gpu:
        is_full = load.gpus is not None and actor_slots >= load.gpus
        return ("one more GPU with its actor" if is_full else "one more actor"), 1.0
    taken = load.group_slots("decoder") + (0.0 if load.is_on_gpu else actor_slots)
    if load.cpus is None or taken + 1 <= load.cpus:
        return f"one more {top.group}", 1.0
    return f"one more {top.group} on one more core", (load.cpus + 1) / load.cpus
