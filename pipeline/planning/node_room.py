"""Whether the nodes of a cluster have room for what a run holds: object store, disk, memory.

Ray spills objects that its store has no room for to the disk, and fails once that is full, hours
after the start. What it then loses is no fault of a row, so it is said before the first one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.planning.allocation import Allocation
from pipeline.planning.plan import Plan
from pipeline.preprocessing.model_input import BatchLimits, Input

GIB = 2**30
FULL_DISK_SHARE = 0.05
"""Ray takes a disk with less free for full, and spills nothing there."""
_ROOM_FOR = 4
"""Slices that a slot may have in the store: one goes in, one comes out, and as many wait."""
_CALLS_AT_ONCE = 2
"""Slices in flight of an actor with a GPU."""
_UNITS = 1_000


@dataclass(frozen=True)
class NodeFacts:
    """What a node has, as a process on it sees it."""

    host: str
    cpus: float
    gpus: float
    store_bytes: int
    """Of Ray's object store there."""
    shared_bytes: int | None
    """Size of /dev/shm; None without one."""
    spill_folder: str
    """Where Ray spills."""
    disk_bytes: int
    free_bytes: int
    """Of the disk of that folder."""
    ray_version: str


@dataclass(frozen=True)
class Shortage:
    """Something that a cluster has too little of, in one line with what would do."""

    text: str
    is_certain: bool = False
    """A run would fail, or spill from its first slices on; otherwise it may be slow."""


@dataclass(frozen=True)
class Held:
    """What a run holds in the object stores at once."""

    slice_bytes: int
    """Of the largest slice, as it crosses the store."""
    num_tasks: int
    """Readers and decoders, on all nodes together."""
    num_actor_slices: int
    """Slices that all actors together have in flight."""

    @classmethod
    def of(cls, plan: Plan, seen: Input, allocation: Allocation) -> Held:
        """Return what a plan holds, divided as `allocation` says.

        Args:
            seen: What the model sees of a row.
            allocation: Who decodes, and how many there are.
        """
        calls = _CALLS_AT_ONCE if allocation.actor_gpus else 1
        decoded = 0 if allocation.decodes_in_actors else _prepared_row_bytes(seen)
        return cls(
            _largest_slice_bytes(plan, decoded),
            allocation.num_readers + allocation.num_decoders,
            allocation.max_actors * calls,
        )

    def slots(self, node: NodeFacts, nodes: Sequence[NodeFacts]) -> int:
        """Return the slices that are in work on a node at once, if work goes where cores are."""
        cpus = node.cpus / max(1.0, sum(each.cpus for each in nodes))
        gpus = sum(each.gpus for each in nodes)
        actors = node.gpus / gpus if gpus else cpus
        return max(1, math.ceil(self.num_tasks * cpus + self.num_actor_slices * actors - 1e-6))


def find_shortages(nodes: Sequence[NodeFacts], held: Held | None) -> Iterator[Shortage]:
    """Yield what nodes have too little of, and versions that differ.

    Args:
        nodes: Those that compute.
        held: What a run holds there; None: no job is known.
    """
    by_version: dict[str, list[str]] = {}
    for node in nodes:
        by_version.setdefault(node.ray_version, []).append(node.host)
    if len(by_version) > 1:
        found = ", ".join(f"{name} on {' '.join(by_version[name])}" for name in sorted(by_version))
        yield Shortage(f"nodes run several versions of Ray ({found}): install one", True)
    for node in nodes:
        if held is not None:
            yield from _of_store(node, held, held.slots(node, nodes))
        yield from _of_disk(node)
        if node.shared_bytes is not None and node.shared_bytes < node.store_bytes:
            yield Shortage(
                f"{node.host}: /dev/shm has {gib(node.shared_bytes)}, so Ray's object store of "
                f"{gib(node.store_bytes)} lies on disk and is slow; give the container "
                f"{gib(node.store_bytes)} of it (docker run --shm-size)"
            )


def _of_store(node: NodeFacts, held: Held, slots: int) -> Iterator[Shortage]:
    least_bytes = slots * held.slice_bytes
    enough_bytes = _ROOM_FOR * least_bytes
    if node.store_bytes < enough_bytes:
        needs = f"{slots} slices at once of up to {gib(held.slice_bytes)}"
        yield Shortage(
            f"{node.host}: Ray's object store has {gib(node.store_bytes)}, {needs} need "
            f"{gib(enough_bytes)}: start Ray there with --object-store-memory={enough_bytes}",
            node.store_bytes < least_bytes,
        )


def _of_disk(node: NodeFacts) -> Iterator[Shortage]:
    free_pct = 100 * node.free_bytes / max(1, node.disk_bytes)
    full_bytes = int(FULL_DISK_SHARE * node.disk_bytes)
    where = f"{node.host}: {gib(node.free_bytes)} of {node.spill_folder} are free"
    if node.free_bytes < full_bytes:
        yield Shortage(
            f"{where} ({free_pct:.1f}%), where Ray spills: below {gib(full_bytes)} (5%) it takes "
            "the disk for full; free some, or give Ray another folder (--temp-dir)",
            True,
        )
    elif node.free_bytes - full_bytes < node.store_bytes:
        yield Shortage(
            f"{where}, where Ray spills: {gib(node.store_bytes + full_bytes)} would take what its "
            "object store holds"
        )


def gib(num_bytes: int) -> str:
    """Return bytes in the unit that suits them, GiB or MiB."""
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:.1f} GiB"
    return f"{num_bytes / 2**20:.1f} MiB"


def _largest_slice_bytes(plan: Plan, prepared_row_bytes: int) -> int:
    """Return the bytes of the largest slice; slices become smaller towards the end."""
    most = 1
    for unit in plan.units[:_UNITS]:
        rows = unit.num_rows
        if rows:
            of_row = sum(e.row_bytes * e.num_rows for e in unit.extents) / rows
            most_rows = max(key.num_rows for key in unit.slices())
        else:
            of_row = max((e.row_bytes for e in unit.extents), default=0.0)
            most_rows = unit.cut.slice_rows if unit.cut else 0
        most = max(most, int(most_rows * max(of_row, prepared_row_bytes)))
    return most


def _prepared_row_bytes(seen: Input) -> int:
    """Return the bytes of a row that tasks have prepared, 0 if rows differ in size."""
    slots = seen.slots(BatchLimits(1, 1, 1)).values()
    if any(slot.varying for slot in slots):
        return 0
    sizes = {"uint8": 1, "float16": 2, "int64": 8, "float64": 8}
    return sum(math.prod(slot.shape[1:]) * sizes.get(slot.dtype, 4) for slot in slots)
