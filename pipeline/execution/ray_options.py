"""The options of each stage as Ray takes them, by the division of the cluster."""

from __future__ import annotations

from typing import Any

from pipeline.execution.versions import actor_pool, read_options, set_known, with_calls_at_once
from pipeline.planning.allocation import TASK_CPUS, Allocation

# Preempted tasks are retried, and a slice that crashes its workers is given up earlier
# (isolation/crash_guard.py): more restarts than these end the run, which can be resumed. Ray's
# defaults are unlimited.
MAX_ACTOR_RESTARTS = 50
MAX_TASK_RETRIES = 20
CALLS_AT_ONCE = 2
"""Slices that an actor with a GPU has in flight: a card that waits for the next slice is idle."""
# Ray would fuse readers and decoders of equal options into one task.
_MAX_READ_RETRIES = MAX_TASK_RETRIES + 1
# A row of the dataset is a slice, so whole blocks and batches of one row are the same thing;
# with GPUs Ray requires a batch size.
_SLICE_BLOCKS: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
_ONE_SLICE: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
READ_AHEAD = "pipeline.read_ahead"
READ_AHEAD_SLICES, READ_AHEAD_SLICES_PER_ACTOR = 32, 8
"""How far a stage may be ahead of the next one. Ray Data bounds what lies between stages by bytes:
a quarter of the object store and more. Small slices are then thousands, and the driver keeps some
40 KiB for each, whole slices below 100 KiB."""
_RESERVED_SHARE = 0.2
"""Of the CPUs, for tasks of any stage. By Ray Data's half, of 24 cores with a GPU 14 to 20 would
decode instead of 23; with this 20 to 22 do."""


def read(allocation: Allocation, num_units: int) -> dict[str, Any]:
    """Return the options of `read_datasource`."""
    return read_options(
        {
            "override_num_blocks": num_units,
            "concurrency": allocation.num_readers,
            "num_cpus": allocation.reader_cpus,
            "ray_remote_args": {"max_retries": _MAX_READ_RETRIES},
        }
    )


def preprocess(allocation: Allocation) -> dict[str, Any]:
    """Return the options of the decoding stage."""
    return _tasks(allocation.num_decoders, allocation.decoder_cpus)


def predict(allocation: Allocation, *, are_long: bool = False) -> dict[str, Any]:
    """Return the options of the actor pool.

    Args:
        are_long: A slice takes many seconds, as texts that are written do. None is given to an
            actor then before it can begin it: it would wait there while another actor is idle.
    """
    given = (CALLS_AT_ONCE if allocation.actor_gpus else 1) if are_long else None
    options = {
        **_ONE_SLICE,
        "compute": actor_pool(allocation.min_actors, allocation.max_actors, given),
        "num_cpus": allocation.actor_cpus,
        "num_gpus": allocation.actor_gpus or None,
        "max_restarts": MAX_ACTOR_RESTARTS,
        "max_task_retries": MAX_TASK_RETRIES,
    }
    return with_calls_at_once(options, CALLS_AT_ONCE) if allocation.actor_gpus else options


def write(allocation: Allocation) -> dict[str, Any]:
    """Return the options of the writing stage."""
    return _tasks(allocation.num_writers, TASK_CPUS)


def _tasks(number: int, cpus: float) -> dict[str, Any]:
    from ray.data import TaskPoolStrategy

    return {
        **_SLICE_BLOCKS,
        "compute": TaskPoolStrategy(number),
        "num_cpus": cpus,
        "max_retries": MAX_TASK_RETRIES,
    }


def limit_read_ahead(num_actors: int) -> None:
    """Let executions from now on read no more than the actors will soon take."""
    from ray.data import DataContext

    DataContext.get_current().set_config(
        READ_AHEAD, READ_AHEAD_SLICES + READ_AHEAD_SLICES_PER_ACTOR * num_actors
    )


def reserve_less() -> None:
    """Let Ray Data keep fewer CPUs for each stage, where decoders reserve whole ones."""
    from ray.data import DataContext

    set_known(DataContext.get_current(), {"op_resource_reservation_ratio": _RESERVED_SHARE})
