"""Execute the stages of a run with Ray Data: what each stage is given, and its options."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.commit.parts.compaction import RunTasks
from pipeline.commit.staging import StagedSlice
from pipeline.execution.caller import is_started
from pipeline.execution.cluster.connect import connect
from pipeline.execution.cluster.hardware import (
    hardware_of,
    ray_versions,
    require_one_version,
)
from pipeline.execution.cluster.in_flight import Share, note_shares
from pipeline.execution.embedded.short_loop import limit_read_ahead
from pipeline.execution.environment import no_gpus
from pipeline.execution.isolation.guarded_reader import read_guarded
from pipeline.execution.predictor_actor import ActorConfig, PredictorActor
from pipeline.execution.progress_channel import listening
from pipeline.execution.stages import Preprocess, Read, Stage, Write
from pipeline.execution.tasks import (
    MAX_TASK_RETRIES,
    crash_marks_of,
    lost_nodes_blamed,
    ray_errors,
    run_tasks,
)
from pipeline.execution.versions import actor_pool, connected_ray, with_calls_at_once
from pipeline.planning.allocation import TASK_CPUS, Allocation, Hardware
from pipeline.reuse.dividing import Known
from pipeline.reuse.filling import Filler
from pipeline.sources.rows import Reader
from pipeline.sources.units import Unit


class UnitRead(NamedTuple):
    """The slices of a unit to read; picklable for Ray."""

    unit: Unit
    starts: frozenset[int]
    """First rows of the wanted slices; empty if the rows are counted only by reading."""
    known: Known | None
    """Sets rows aside that need no model; None: all rows are computed."""


class StreamParts(NamedTuple):
    """The stages in order; each takes and returns a block of packed slices."""

    units: Sequence[UnitRead]
    read: Callable[[UnitRead], Iterable[pa.Table]]
    """Yields a packed row per slice."""
    preprocess: Stage | None
    """Runs in its own actors; None: the model's actors do it, or it is not needed."""
    actor: ActorConfig
    """Configuration of the PredictorActors."""
    write: Stage | None
    """Runs in its own actors; None: the model's actors write."""


def unit_reads(units: Mapping[Unit, Sequence[int]], known: Known | None) -> list[UnitRead]:
    """Return the slices to read: those without a staged part.

    Args:
        units: Each unit with the first rows of its wanted slices, if known.
        known: Sets rows aside that need no model; None: all rows are computed.
    """
    return [
        UnitRead(unit, frozenset(starts), known and known.of_unit(unit.index))
        for unit, starts in units.items()
    ]


def read_unit(
    reader: Reader, run_id: str, row_timeout_s: float, wanted: UnitRead
) -> Iterator[pa.Table]:
    """Yield the wanted slices of a unit, packed.

    Args:
        row_timeout_s: Time limit for reading a row.
    """

    def read(some: Unit, starts: frozenset[int]) -> Iterable[pa.Table]:
        return read_guarded(reader, some, starts, crash_marks_of(run_id), row_timeout_s)

    with no_gpus():
        if wanted.known is None:
            yield from read(wanted.unit, wanted.starts)
        else:
            yield from Filler(wanted.known).slices(reader, wanted.unit, wanted.starts, read)


MAX_ACTOR_RESTARTS = 50
"""A slice that crashes its workers is given up earlier (isolation/crash_guard.py); Ray's default is
unlimited. More restarts than this end the run, which can be resumed."""
CALLS_AT_ONCE = 2
"""Slices that an actor with a GPU has in flight, so that the card never waits for the next one."""
# A row of the dataset is a unit or a slice.
_ONE: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}


def read_options(allocation: Allocation, num_units: int) -> dict[str, Any]:
    """Return the options of the reading stage; a reader gets a unit only when it can begin it."""
    return _stage_options(min(allocation.num_readers, num_units), allocation.reader_cpus, 1)


def preprocess_options(allocation: Allocation) -> dict[str, Any]:
    """Return the options of the decoding stage."""
    return _stage_options(allocation.num_decoders, allocation.decoder_cpus)


def predict_options(allocation: Allocation, *, are_long: bool = False) -> dict[str, Any]:
    """Return the options of the actor pool.

    Args:
        are_long: A slice takes many seconds, as generated texts do. An actor then gets a slice only
            when it can begin it: otherwise the slice would wait while another actor is idle.
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


def write_options(allocation: Allocation) -> dict[str, Any]:
    """Return the options of the writing stage."""
    return _stage_options(allocation.num_writers, TASK_CPUS)


def _stage_options(number: int, cpus: float, given: int | None = None) -> dict[str, Any]:
    return {
        **_ONE,
        "compute": actor_pool(number, number, given),
        "num_cpus": cpus,
        # One restart per slice that ends a process: each such slice is given up by itself.
        "max_restarts": -1,
        "max_task_retries": MAX_TASK_RETRIES,
    }


class Executor(NamedTuple):
    """Executes the stages and tasks of a run."""

    hardware: Hardware
    start_s: float
    """Seconds that its start took."""
    on_cluster: bool
    """Ray was not started on this machine for these runs alone."""
    stream: Callable[[StreamParts, Allocation], Generator[StagedSlice, None, None]]
    """Computes slices, and yields each slice when it is committed."""
    run_tasks: RunTasks
    look: Callable[[], Hardware]
    """Returns the current hardware."""
    measures: bool = True
    """Runtimes can be measured in its processes."""


@contextlib.contextmanager
def start_executor(address: str | None, say: Callable[[str], None]) -> Iterator[Executor]:
    """Start Ray, or connect to it, for the body.

    Args:
        address: The address of the Ray cluster; None: this machine.
        say: Shows the current step.

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
    """Read, decode, transform, predict and stage slices; yield each slice when it is committed."""
    import ray

    limit_read_ahead(allocation.max_actors)
    are_long = parts.actor.predictor.spec.task.generation is not None
    with ray_errors(), lost_nodes_blamed(), listening(parts.actor.predictor.run_id):
        num_units, deadline = len(parts.units), parts.actor.deadline_at_s
        units = [ray.put(unit) for unit in parts.units]
        stages: list[tuple[type, list[Any], Callable[..., dict[str, Any]]]] = [
            (
                Read,
                [parts.read, units, ray.get, deadline],
                partial(read_options, num_units=num_units),
            ),
            (Preprocess, [parts.preprocess, deadline], preprocess_options),
            (PredictorActor, [parts.actor], partial(predict_options, are_long=are_long)),
            (Write, [parts.write, deadline], write_options),
        ]
        dataset = ray.data.from_items(list(range(num_units)), override_num_blocks=num_units)
        # From here on a row is a slice (slices.pack): Ray cannot cut or merge slices.
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
