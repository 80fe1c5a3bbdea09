"""The options of each stage as Ray takes them, by the division of the cluster."""

from __future__ import annotations

from typing import Any

from pipeline.execution.versions import actor_pool, with_calls_at_once
from pipeline.planning.allocation import TASK_CPUS, Allocation

# Preempted tasks are retried, and a slice that crashes its workers is given up earlier
# (isolation/crash_guard.py): more restarts than these end the run, which can be resumed. Ray's
# defaults are unlimited.
MAX_ACTOR_RESTARTS = 50
MAX_TASK_RETRIES = 20
CALLS_AT_ONCE = 2
"""Slices that an actor with a GPU has in flight: a card that waits for the next slice is idle."""
# A row of the dataset is a unit or a slice.
_ONE: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
READ_AHEAD = "pipeline.read_ahead"
READ_AHEAD_SLICES, READ_AHEAD_SLICES_PER_ACTOR = 32, 8
"""How far a stage may be ahead of the next one. Ray Data bounds what lies between stages by bytes:
a quarter of the object store and more. Small slices are then thousands, and the driver keeps some
40 KiB for each, whole slices below 100 KiB."""


def read(allocation: Allocation, num_units: int) -> dict[str, Any]:
    """Return the options of the reading stage. A reader gets no unit before it can begin it."""
    return _stage(min(allocation.num_readers, num_units), allocation.reader_cpus, 1)


def preprocess(allocation: Allocation) -> dict[str, Any]:
    """Return the options of the decoding stage."""
    return _stage(allocation.num_decoders, allocation.decoder_cpus)


def predict(allocation: Allocation, *, are_long: bool = False) -> dict[str, Any]:
    """Return the options of the actor pool.

    Args:
        are_long: A slice takes many seconds, as texts that are written do. None is given to an
            actor then before it can begin it: it would wait there while another actor is idle.
    """
    given = (CALLS_AT_ONCE if allocation.actor_gpus else 1) if are_long else None
    options = {
        **_ONE,
        "compute": actor_pool(allocation.min_actors, allocation.max_actors, given),
        "num_cpus": allocation.actor_cpus,
        "num_gpus": allocation.actor_gpus or None,
        "max_restarts": MAX_ACTOR_RESTARTS,
        "max_task_retries": MAX_TASK_RETRIES,
    }
    return with_calls_at_once(options, CALLS_AT_ONCE) if allocation.actor_gpus else options


def write(allocation: Allocation) -> dict[str, Any]:
    """Return the options of the writing stage."""
    return _stage(allocation.num_writers, TASK_CPUS)


def _stage(number: int, cpus: float, given: int | None = None) -> dict[str, Any]:
    return {
        **_ONE,
        "compute": actor_pool(number, number, given),
        "num_cpus": cpus,
        # As many as there are slices that end a process: each is given up by itself.
        "max_restarts": -1,
        "max_task_retries": MAX_TASK_RETRIES,
    }


def limit_read_ahead(num_actors: int) -> None:
    """Let executions from now on read no more than the actors will soon take."""
    from ray.data import DataContext

    DataContext.get_current().set_config(
        READ_AHEAD, READ_AHEAD_SLICES + READ_AHEAD_SLICES_PER_ACTOR * num_actors
    )
