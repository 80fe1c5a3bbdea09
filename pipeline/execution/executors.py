"""What executes the stages of a run: Ray, or a loop in this process where a caller wants no Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from pipeline.commit.parts.compaction import RunTasks
from pipeline.commit.staging import StagedSlice
from pipeline.execution import local, ray_stream
from pipeline.execution.caller import is_started
from pipeline.execution.cluster.connect import connect
from pipeline.execution.cluster.hardware import ray_versions, require_one_version, this_machine
from pipeline.execution.stream_parts import StreamParts
from pipeline.execution.tasks import run_tasks
from pipeline.execution.without_ray import is_without_ray
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
    if is_without_ray() and address is None:
        yield Executor(this_machine(), 0.0, False, local.stream, local.run_tasks)
        return
    if not is_started():
        say("starting Ray" if address is None else f"connecting to Ray at {address}")
    with connect(address) as connection:
        if connection.on_cluster:
            require_one_version(ray_versions())
        yield Executor(*connection, ray_stream.stream, run_tasks)
