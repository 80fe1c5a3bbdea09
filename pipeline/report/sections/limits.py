"""The limits of a run: how fast each group of stages could go if it alone mattered.

In: the sums of the counters, and the slots of each stage. Out: a limit for each group, and which of
them binds. Nothing here knows Ray, storage or the look of a report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.core.figures import LAUNCH, PREPARED, SliceFigures
from pipeline.report.sections import Section

# Stages of one group run one after the other in the same slot, so they are judged together.
GROUPS: dict[str, tuple[str, ...]] = {
    "reader": ("read",),
    "decoder": PREPARED,
    "actor": ("transfer", "predict"),
    "writer": ("write",),
}
"""The groups of a run over images; `Load.all_groups` has those of any run."""
CORES = "cores"
_OVERLAPPING = ("transfer", "predict")
"""On a GPU copying and computing overlap, so the longer of the two counts."""

CORES_BUSY_PCT = 90.0
LIMIT_BUSY_PCT = 50.0
LAUNCH_BOUND_PCT = 80.0
"""A GPU waits for its host if launching takes so large a share of the time that it computes."""

Slots = dict[str, float]
"""Stage -> number of it that could work at the same time."""


@dataclass(frozen=True)
class Load:
    """The measured load of a run, from which limits and forecasts follow; None if unknown."""

    figures: SliceFigures = field(default_factory=SliceFigures)
    slots: Slots = field(default_factory=dict)
    streaming_wall_s: float | None = None
    """From the first read to the last write."""
    wall_s: float | None = None
    """Of the whole run."""
    startup: dict[str, float] = field(default_factory=dict)
    """Wall seconds lost to each start-up part; of parallel processes the mean."""
    cpus: float | None = None
    gpus: float | None = None
    is_on_gpu: bool = False
    in_actors: frozenset[str] = frozenset()
    """Groups without slots, because the actors do their work: `decoder`, `writer`."""
    prepared: tuple[str, ...] = PREPARED
    """The stages that prepare the run's input, in order."""

    @property
    def rows(self) -> int:
        """Rows that went through, including quarantined ones: the common base of all limits."""
        stages = [self.figures.stage(name) for name in self.streaming]
        return max(max(stage.rows_in, stage.rows_out) for stage in stages)

    @property
    def rows_per_s(self) -> float:
        """Rows over the streaming wall; 0 if unknown."""
        return self.rows / self.streaming_wall_s if self.streaming_wall_s else 0.0

    @property
    def tokens_per_row(self) -> float | None:
        """Tokens of a predicted text, without padding; None if rows are no texts."""
        tokens, rows = self.figures.tokens, self.figures.stage("predict").rows_out
        if self.figures.tokenised is None or tokens is None or not rows:
            return None
        return tokens.num_tokens / rows if tokens.num_tokens else None

    @property
    def launch_pct(self) -> float:
        """The host's time to launch batches as a share of the GPU's; 0 if unknown."""
        computed_s = self.busy_s("predict") if self.is_on_gpu else 0.0
        return 100 * self.busy_s(LAUNCH) / computed_s if computed_s else 0.0

    @property
    def all_groups(self) -> dict[str, tuple[str, ...]]:
        """Group -> its stages, in tasks or in actors."""
        return {**GROUPS, "decoder": self.prepared}

    @property
    def streaming(self) -> tuple[str, ...]:
        """All stages between the first read and the last write, in order."""
        return tuple(stage for stages in self.all_groups.values() for stage in stages)

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Group -> the stages that share its slots, in this run."""
        of_actors = {"actor", *self.in_actors}
        every = self.all_groups
        theirs = (stage for group in every if group in of_actors for stage in every[group])
        with_slots = {
            group: stages for group, stages in every.items() if group not in self.in_actors
        }
        return {**with_slots, "actor": tuple(theirs)}

    @property
    def fused(self) -> bool:
        """Whether the actors decode and transform, so that there are no decoders."""
        return "decoder" in self.in_actors

    def group_slots(self, group: str) -> float:
        """Slots that the stages of a group share; 0 if none or unknown."""
        if group not in self.groups:
            return 0.0
        # The number of actors is that of their own stages, also if they do more.
        return max((self.slots.get(stage, 0.0) for stage in self.all_groups[group]), default=0.0)

    def stage_slots(self, stage: str) -> float | None:
        """Slots of a stage; those of the actors if they do its work."""
        if any(stage in self.all_groups[group] for group in self.in_actors):
            return self.group_slots("actor") or None
        return self.slots.get(stage)

    def busy_s(self, stage: str) -> float:
        """Busy seconds of a stage, summed over its slots; 0 if it was not measured."""
        return self.figures.stage(stage).busy_s


class GroupLimit(Section):
    """How fast the stages that share slots (or all cores) could go if they alone mattered."""

    group: str
    """`reader`, `decoder`, `actor`, `writer` or `cores`."""
    slots: float
    busy_s: float
    utilisation_pct: float
    limit_rows_per_s: float
    top_stage: str
    top_share_pct: float
    """Share of `busy_s` that `top_stage` takes."""


def utilisation_pct(busy_s: float, slots: float | None, wall_s: float | None) -> float | None:
    """Return the busy share of the slot time; above 100 only if busy really exceeds it."""
    if not slots or not wall_s:
        return None
    return round(100.0 * busy_s / (slots * wall_s), 2)


def find_limits(load: Load) -> list[GroupLimit]:
    """Return the limit of every group with a measure and known slots, the cores last."""
    limits = []
    for group, stages in load.groups.items():
        limits.append(_limit(load, group, stages, load.group_slots(group)))
    limits.append(_limit(load, CORES, core_stages(load), load.cpus or 0.0))
    return [limit for limit in limits if limit is not None]


def core_stages(load: Load) -> tuple[str, ...]:
    """Return the stages whose busy seconds are spent on a core, or in waiting for one."""
    # Reading mostly waits for storage, and on a GPU the model waits for the device: neither
    # keeps a core busy, so counting them would blame the cores for slow storage.
    excluded = {*GROUPS["reader"], *(GROUPS["actor"] if load.is_on_gpu else ())}
    return tuple(stage for stage in load.streaming if stage not in excluded)


def group_busy_s(load: Load, stages: Sequence[str]) -> float:
    """Return the seconds for which stages kept the slots that they share busy."""
    busy_s = sum(load.busy_s(stage) for stage in stages)
    if load.is_on_gpu and set(_OVERLAPPING) <= set(stages):
        busy_s -= min(load.busy_s(stage) for stage in _OVERLAPPING)
    return busy_s


def _limit(load: Load, group: str, stages: tuple[str, ...], slots: float) -> GroupLimit | None:
    busy_s = group_busy_s(load, stages)
    busy_pct = utilisation_pct(busy_s, slots, load.streaming_wall_s)
    if busy_pct is None or busy_s <= 0 or load.rows == 0:
        return None
    top_stage = max(stages, key=load.busy_s)
    return GroupLimit(
        group=group,
        slots=slots,
        busy_s=busy_s,
        utilisation_pct=busy_pct,
        limit_rows_per_s=load.rows * slots / busy_s,
        top_stage=top_stage,
        top_share_pct=round(100.0 * load.busy_s(top_stage) / busy_s, 2),
    )


def busiest_group(limits: Sequence[GroupLimit]) -> GroupLimit | None:
    """Return the group with the highest utilisation; None if none was measured."""
    groups = [limit for limit in limits if limit.group != CORES]
    return max(groups, key=lambda limit: limit.utilisation_pct, default=None)


def binding_limit(limits: Sequence[GroupLimit]) -> GroupLimit | None:
    """Return the limit that held the stream back; None if no group was busy enough.

    The cores come first: a group is no limit of its own when all groups wait for the same cores.
    """
    top = busiest_group(limits)
    cores = next((limit for limit in limits if limit.group == CORES), None)
    if top is not None and cores is not None and cores.utilisation_pct >= CORES_BUSY_PCT:
        return cores
    return top if top is not None and top.utilisation_pct >= LIMIT_BUSY_PCT else None
