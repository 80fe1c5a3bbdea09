"""Execute the stages of a run with Ray Data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, NamedTuple

from pipeline.commit.parts.compaction import RunTasks
from pipeline.commit.staging import StagedSlice
from pipeline.execution import ray_options
from pipeline.execution.caller import is_started
from pipeline.execution.cluster.connect import connect
from pipeline.execution.cluster.hardware import (
    hardware_of,
    ray_versions,
    require_one_version,
)
from pipeline.execution.cluster.in_flight import Share, note_shares
from pipeline.execution.predictor_actor import PredictorActor
from pipeline.execution.progress_channel import listening
from pipeline.execution.stages import Preprocess, Read, Write
from pipeline.execution.stream_parts import StreamParts
from pipeline.execution.tasks import lost_nodes_blamed, ray_errors, run_tasks
from pipeline.execution.versions import connected_ray
from pipeline.planning.allocation import Allocation, Hardware


class Executor(NamedTuple):
    """What a run is executed with."""

    hardware: Hardware
    start_s: float
    """What its start took."""
    on_cluster: bool
    """It is not one on this machine that was started for these runs alone."""
    stream: Callable[[StreamParts, Allocation], Generator[StagedSlice, None, None]]
    """Computes slices, and yields each one when it is committed."""
    run_tasks: RunTasks
    look: Callable[[], Hardware]
    """Tells what hardware there is now."""
    measures: bool = True
    """It has processes in which runtimes can be measured."""


@contextlib.contextmanager
def start_executor(address: str | None, say: Callable[[str], None]) -> Iterator[Executor]:
    """Start or connect to what executes a run, for the body.

    Args:
        address: Of the Ray cluster; None: this machine.
        say: Shows what is being done.

    Raises:
        JobError: As `connect`.
        InfraError: As `connect`; or nodes of the cluster run several versions of Ray.
    """
    if not is_started():
        say("starting Ray" if address is None else f"connecting to Ray at {address}")
    with connect(address) as connection:
        if connection.on_cluster:
            require_one_version(ray_versions())
        yield Executor(*connection, _ray_stream, run_tasks, partial(hardware_of, connected_ray()))


def _ray_stream(parts: StreamParts, allocation: Allocation) -> Generator[StagedSlice, None, None]:
    """Read, decode, transform, predict and stage slices; yield each one when it is committed."""
    import ray

    ray_options.limit_read_ahead(allocation.max_actors)
    are_long = parts.actor.predictor.spec.task.generation is not None
    with ray_errors(), lost_nodes_blamed(), listening(parts.actor.predictor.run_id):
        num_units, deadline = len(parts.units), parts.actor.deadline_at_s
        units = [ray.put(unit) for unit in parts.units]
        stages: list[tuple[type, list[Any], Callable[..., dict[str, Any]]]] = [
            (
                Read,
                [parts.read, units, ray.get, deadline],
                partial(ray_options.read, num_units=num_units),
            ),
            (Preprocess, [parts.preprocess, deadline], ray_options.preprocess),
            (PredictorActor, [parts.actor], partial(ray_options.predict, are_long=are_long)),
            (Write, [parts.write, deadline], ray_options.write),
        ]
        dataset = ray.data.from_items(list(range(num_units)), override_num_blocks=num_units)
        # A row of what follows is a slice (slices.pack): Ray cannot cut or merge slices.
        shares = dict[str, Share]()
        for actor, arguments, options_of in stages:
            if arguments[0] is not None:
                options = options_of(allocation)
                shares[actor.__name__] = Share(options["num_cpus"], options.get("num_gpus") or 0.0)
                dataset = dataset.map_batches(actor, fn_constructor_args=arguments, **options)
        note_shares(shares)
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for text in block.column("staged").to_pylist():
                yield StagedSlice.from_json(text)
