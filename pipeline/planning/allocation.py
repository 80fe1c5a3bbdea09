"""Divide the CPUs and GPUs of a cluster among model actors, readers, decoders and writers.

The division is checked before the run starts, because Ray Data waits forever for missing resources.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.core.errors import JobError

if TYPE_CHECKING:  # workers need no pydantic: a sixth of a second each
    from pipeline.job.job import Resources
    from pipeline.preprocessing.model_input import Cost

# Logical CPUs of a reader, decoder or writer. Their number limits them, not their reservation: a
# task that waits for the next stage keeps its share, and could starve that stage. Not 0: Ray runs
# such tasks anywhere, even on a head node that must not run tasks.
TASK_CPUS = 0.05
CLUSTER_READER_CPUS = 0.2
"""Logical CPUs of a reader on several machines, or where an autoscaler adds some. The first machine
that is up must not get all tasks, so a decoder reserves its share of a core there, and no machine
gets more decoders than cores."""
_CPUS_PER_READER = 4
_CPUS_PER_TABLE_READER = 2
"""A core reads 170,000 rows/s of 1,000 columns, and a small network predicts 300,000."""
_CPUS_PER_DECODER = 2
_MAX_WRITERS = 16


@dataclass(frozen=True)
class Hardware:
    """The resources of the cluster; with autoscaling, the most that it may have."""

    num_nodes: int
    """Running nodes with CPUs, at least one; a head may have none."""
    cpus: float
    gpus: float
    gpu_names: tuple[str, ...] = ()
    """One name per type."""
    node_cpus: tuple[float, ...] = ()
    """CPUs per running node; the rest of `cpus` may be added by autoscaling."""
    node_gpus: tuple[float, ...] = ()
    num_without_cpus: int = 0
    """Further running nodes, which compute nothing but cost as much."""
    node_labels: tuple[frozenset[str], ...] = ()
    """The values of Ray's labels per running node, including those without CPUs."""

    @property
    def is_one_machine(self) -> bool:
        """Tell whether there is one node with CPUs, and none can be added."""
        return self.num_nodes == 1 and self.cpus <= (sum(self.node_cpus) or self.cpus)

    @property
    def all_nodes(self) -> int:
        """Return the number of running nodes, including those without CPUs."""
        return self.num_nodes + self.num_without_cpus

    @property
    def gpu_name(self) -> str | None:
        """Return the names of all types of GPUs; None if unknown."""
        return ", ".join(self.gpu_names) or None


@dataclass(frozen=True)
class Allocation:
    """The number of actors and tasks of each stage, and their reservations."""

    min_actors: int
    max_actors: int
    actor_cpus: float
    """Logical CPUs that an actor reserves; the tasks of other stages share the same cores."""
    actor_gpus: float
    actor_threads: int
    num_readers: int
    num_decoders: int
    """0: the actors decode."""
    num_writers: int
    """0: the actors write."""
    num_nodes: int = 1
    decoder_cpus: float = TASK_CPUS
    """Logical CPUs that a decoder reserves."""
    reader_cpus: float = TASK_CPUS
    """Logical CPUs that a reader reserves."""

    @property
    def actors_per_node(self) -> int:
        """Return the most actors of a node, if they are spread evenly."""
        return -(-self.max_actors // self.num_nodes)

    @property
    def decodes_in_actors(self) -> bool:
        """Tell whether the actors decode."""
        return self.num_decoders == 0

    @property
    def writes_in_actors(self) -> bool:
        """Tell whether the actors write."""
        return self.num_writers == 0

    @property
    def in_actors(self) -> frozenset[str]:
        """Return the groups of stages (`limits.GROUPS`) that run in the actors."""
        by_group = {"decoder": self.decodes_in_actors, "writer": self.writes_in_actors}
        return frozenset(group for group, is_theirs in by_group.items() if is_theirs)

    def for_local_disk(self, hardware: Hardware) -> Allocation:
        """Return the allocation for output on local disk: if the actors have all cores, they write.

        Writing a slice to local disk takes milliseconds, no more than the overhead of a task. With
        a remote store the actors, and their GPUs, would wait.
        """
        idle_cpus = hardware.cpus - self.max_actors * self.actor_threads
        is_theirs = self.decodes_in_actors and not self.actor_gpus and idle_cpus < 1
        return replace(self, num_writers=0) if is_theirs else self

    def for_slices(self, num_slices: int | None) -> Allocation:
        """Return the allocation for a number of slices; None if it is unknown.

        An actor without a slice would start, and load the model, for nothing.
        """
        if num_slices is None:
            return self
        num_slices = max(1, num_slices)
        most = min(self.max_actors, num_slices)
        return replace(
            self,
            max_actors=most,
            min_actors=min(self.min_actors, most),
            num_decoders=min(self.num_decoders, num_slices),
            num_writers=min(self.num_writers, num_slices),
        )

    @property
    def decoder_threads(self) -> int:
        """Return the number of images that one decoder decodes at once."""
        return self.actor_threads if self.decodes_in_actors else 1


def allocate(resources: Resources, hardware: Hardware, *, cost: Cost) -> Allocation:
    """Divide the cluster between actors and the tasks of the other stages.

    Args:
        cost: The expensive part of a row.

    Raises:
        JobError: The job asks for more than the cluster has; the message names both numbers.
    """
    threads = resources.num_cpus or 1.0
    if resources.actors_per_gpu:
        share = gpu_share(resources.actors_per_gpu)
        resources = resources.model_copy(update={"num_gpus": share, "actors_per_gpu": None})
    fit_cpus = _fit(threads, hardware.cpus, hardware.node_cpus)
    fit_gpus = _fit_gpus(resources, hardware) if resources.num_gpus > 0 else fit_cpus
    # With GPUs, the default thread count does not limit the number of actors.
    are_cpus_asked_for = bool(resources.num_cpus) or resources.num_gpus == 0
    fit = min(fit_cpus, fit_gpus) if are_cpus_asked_for else fit_gpus
    wanted = resources.max_actors or max(fit, resources.min_actors or 1)
    needed = resources.min_actors or wanted
    if needed > fit_gpus and resources.num_gpus > 0:
        raise JobError(
            f"resources: {needed} actors x {resources.num_gpus:g} GPUs do not fit, the cluster "
            f"has {hardware.gpus:g} GPUs for {fit_gpus} such actors{_on_nodes(hardware.node_gpus)}"
        )
    if needed > fit_cpus and are_cpus_asked_for:
        raise JobError(
            f"resources: {needed} actors x {threads:g} CPUs do not fit, the cluster has "
            f"{hardware.cpus:g} CPUs for {fit_cpus} such actors{_on_nodes(hardware.node_cpus)}"
        )
    max_actors = min(wanted, fit)
    cpus = int(hardware.cpus)
    num_readers = max(1, cpus // _CPUS_PER_READER)
    if cost == "row":
        num_readers = max(num_readers, min(2, cpus), cpus // _CPUS_PER_TABLE_READER)
    num_decoders = _num_decoders(resources, cpus, max_actors * threads)
    num_writers = max(1, min(_MAX_WRITERS, cpus // _CPUS_PER_READER))
    reader_cpus = TASK_CPUS if hardware.is_one_machine else CLUSTER_READER_CPUS
    # A task runs on one node, and each node may have a remainder too small for a task. So room for
    # one reader and one writer per node, less one, is left free in addition.
    others = hardware.num_nodes - 1
    taken = reader_cpus * (num_readers + others) + TASK_CPUS * (num_writers + others)
    decoder_cpus = TASK_CPUS
    if not hardware.is_one_machine:
        share = (hardware.cpus - taken) / (num_decoders + max_actors * threads)
        decoder_cpus = min(1.0, _round_down(share))
    taken += decoder_cpus * num_decoders
    actor_cpus = min(threads, _actor_cpus(max_actors, taken, hardware, resources.num_gpus > 0))
    if not hardware.is_one_machine:
        # Readers and writers keep their shares while they live: an actor whose node is lost must
        # fit beside those of another node.
        left = max(1, others)
        beside = reader_cpus * math.ceil(num_readers / left)
        beside += TASK_CPUS * math.ceil(num_writers / left)
        room = _round_down(max(hardware.node_cpus, default=hardware.cpus) - beside)
        actor_cpus = min(actor_cpus, room) if room > 0 else actor_cpus
    if min(actor_cpus, decoder_cpus) <= 0:
        raise JobError(
            f"resources: {max_actors} actors beside readers, decoders and writers do not fit the "
            f"cluster's {hardware.cpus:g} CPUs"
        )
    return Allocation(
        min_actors=needed,
        max_actors=max_actors,
        actor_cpus=actor_cpus,
        actor_gpus=resources.num_gpus,
        actor_threads=max(1, int(threads)),
        num_readers=num_readers,
        num_decoders=num_decoders,
        num_writers=num_writers,
        num_nodes=hardware.num_nodes,
        decoder_cpus=decoder_cpus,
        reader_cpus=reader_cpus,
    )


def _actor_cpus(num_actors: int, taken_cpus: float, hardware: Hardware, on_gpus: bool) -> float:
    """Return the CPUs that an actor may reserve beside all tasks, wherever it is placed."""
    shares = [(hardware.cpus - taken_cpus) / num_actors]
    if on_gpus:  # nodes with few cores may have many cards
        pairs = zip(hardware.node_cpus, hardware.node_gpus, strict=False)
        shares += [
            cpus / math.ceil(num_actors * gpus / hardware.gpus) for cpus, gpus in pairs if gpus
        ]
    return _round_down(min(shares))


def _round_down(cpus: float) -> float:
    return math.floor(1000 * cpus) / 1000


def gpu_share(num_actors: int) -> float:
    """Return the share of a GPU per actor; Ray counts in ten-thousandths."""
    return math.floor(10_000 / num_actors) / 10_000


def _num_decoders(resources: Resources, cpus: int, taken_cpus: float) -> int:
    """Return the number of decoders; 0 if the actors decode.

    If the actors have all cores, they decode as well: each keeps its core busy and imports torch
    once, and only encoded bytes are moved. Cores without an actor, and those beside GPUs, run
    decoders.
    """
    free = math.floor(cpus - taken_cpus)
    if resources.num_gpus:
        free = max(1, free)  # the actor of a GPU mostly waits for its device
    if resources.decode_in == "actors" or (resources.decode_in == "auto" and free < 1):
        return 0
    return max(1, free if free >= 1 else cpus // _CPUS_PER_DECODER)


def _fit_gpus(resources: Resources, hardware: Hardware) -> int:
    if hardware.gpus < resources.num_gpus:
        raise JobError(
            f"resources.num_gpus = {resources.num_gpus:g}: the cluster has {hardware.gpus:g} GPUs; "
            "set it to 0 to run on the CPU, or connect to a cluster with GPUs (--address)"
        )
    # An actor uses one GPU: three of 0.3 fit, and the remaining 0.1 fits none.
    return math.floor(hardware.gpus) * math.floor(1 / resources.num_gpus + 1e-9)


def _fit(share: float, total: float, nodes: tuple[float, ...]) -> int:
    """Return how many shares fit if no share spans two nodes."""
    to_come = max(0.0, total - sum(nodes))
    return sum(math.floor(part / share + 1e-9) for part in (*nodes, to_come))


def _on_nodes(nodes: tuple[float, ...]) -> str:
    has_one = len([part for part in nodes if part]) < 2
    return "" if has_one else f", on nodes of {', '.join(f'{part:g}' for part in nodes if part)}"
