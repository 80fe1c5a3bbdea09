"""Run functions as Ray tasks, and translate the errors of Ray."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import Any, TypeVar

from pipeline.core.errors import InfraError, PipelineError, find_cause
from pipeline.core.printable import clean_message
from pipeline.core.private_files import first_of
from pipeline.core.user_code import SHOW_ALL, describe_remote_error
from pipeline.execution.environment import no_gpus
from pipeline.execution.isolation.crash_marks import CrashMarks
from pipeline.execution.versions import known_errors, session_folder
from pipeline.process.liveness import note_progress

T = TypeVar("T")
MAX_TASK_RETRIES = 20
"""Preempted tasks are retried; Ray's default is unlimited."""
_TASK_CPUS = 0.25
_TASKS_PER_CPU = 2
_LOST = (
    "RayActorError",
    "LocalRayletDiedError",
    "RpcError",
    "GetTimeoutError",
    "RuntimeEnvSetupError",
    "ActorUnschedulableError",
    "TaskUnschedulableError",
    "WorkerCrashedError",
    "ObjectLostError",
    "NodeDiedError",
    "OutOfMemoryError",
    "RaySystemError",
)
"""Errors of Ray for workers, nodes or objects lost beyond its retries."""


@contextlib.contextmanager
def ray_errors() -> Iterator[None]:
    """Translate errors of Ray in the body into our own.

    Raises:
        PipelineError: One of ours that a worker raised, unwrapped.
        InfraError: Workers, nodes or objects were lost beyond Ray's retries, or Ray has no room
            for more objects.
        PipelineError: Any other error of a task, in one line: type, message and place.
    """
    from ray import exceptions

    try:
        yield
    except (exceptions.RayError, OSError) as error:
        ours = find_cause(error)
        if ours is not None:
            raise ours from (None if ours is error else error)  # --debug shows both
        reason = clean_message(str(error), 300)
        if isinstance(error, known_errors("OutOfDiskError", "ObjectStoreFullError")):
            raise InfraError(
                "Ray has no room left for objects: free shared memory (/dev/shm) and the disk of "
                f"its temporary files, then run again ({reason})"
            ) from error
        lost = known_errors(*_LOST)
        if isinstance(error, lost):
            raise InfraError(
                f"Ray lost workers more often than it may ({type(error).__name__}: {reason}); "
                "finished slices are kept, run again to continue"
            ) from error
        if isinstance(error, exceptions.RayTaskError):
            raise PipelineError(f"{describe_remote_error(error)}{SHOW_ALL}") from error
        raise


@contextlib.contextmanager
def lost_nodes_blamed() -> Iterator[None]:
    """Turn any error in the body into an InfraError if a node was lost meanwhile.

    Not all such errors are errors of Ray: if a node is preempted at the wrong moment, its
    bookkeeping may raise anything.

    Raises:
        InfraError: An error was raised, and a node is gone.
    """
    import ray
    from ray import exceptions

    before = _live_nodes()
    try:
        yield
    except (PipelineError, exceptions.RayError, OSError):
        raise
    except Exception as error:
        live = _live_nodes() if ray.is_initialized() else before
        if not (lost := sorted(before[node] for node in before.keys() - live.keys())):
            raise
        reason = clean_message(f"{type(error).__name__}: {error}", 300)
        raise InfraError(
            f"Ray lost {', '.join(lost)} and failed ({reason}); finished slices are kept, run "
            "again to go on"
        ) from error


def _live_nodes() -> dict[str, str]:
    """Return id -> host name of each live node."""
    import ray

    return {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}


def crash_marks_of(run_id: str) -> CrashMarks:
    """Return the marks of a run on this worker's node, in a folder of Ray's session.

    On a cluster that is not ours everybody can write there, so the marks have a private folder; if
    another user has taken its name, it is a folder among the system's temporary files.

    Raises:
        InfraError: Neither folder can be this user's alone.
    """
    return crash_marks_in((session_folder(), Path(gettempdir())), run_id)


def crash_marks_in(folders: Sequence[Path], run_id: str) -> CrashMarks:
    """Return the marks of a run below the first folder that can hold a private folder.

    Raises:
        InfraError: There is no such folder.
    """
    name = f"pipeline-attempts-{os.geteuid()}"
    return CrashMarks(first_of(folder / name for folder in folders) / run_id)


def run_tasks(function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> list[T]:
    """Run a function for each tuple of arguments as a Ray task; return results in order."""
    import ray

    remote = ray.remote(num_cpus=_TASK_CPUS, max_retries=MAX_TASK_RETRIES)(_call)
    limit = max(_TASKS_PER_CPU, int(_TASKS_PER_CPU * ray.cluster_resources().get("CPU", 1)))
    results: dict[int, T] = {}
    pending: dict[Any, int] = {}
    with ray_errors(), _ended_with(pending):
        for index, arguments in enumerate(calls):
            pending[remote.remote(function, arguments)] = index
            if len(pending) >= limit or index == len(calls) - 1:
                wanted = 1 if index < len(calls) - 1 else len(pending)
                ready, _ = ray.wait(list(pending), num_returns=wanted)
                for reference in ready:
                    results[pending.pop(reference)] = ray.get(reference)
                    note_progress(f"{function.__name__}: {len(results)} of {len(calls)} tasks")
    return [results[index] for index in range(len(calls))]


@contextlib.contextmanager
def _ended_with(pending: Mapping[Any, int]) -> Iterator[None]:
    """End pending tasks if the body fails."""
    try:
        yield
    except BaseException:
        for reference in pending:
            with contextlib.suppress(Exception):  # Ray itself may be gone
                give_up(reference)
        raise


class TaskLost(Exception):
    """The result of a task is lost; the text is the type of Ray's error."""


class TaskLate(TaskLost):
    """A task took too long and was ended."""


def start(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Start a task with options of `ray.remote`; return Ray's reference to its result."""
    import ray

    return ray.remote(**options)(function).remote(*arguments)


def value_of(reference: Any, limit_s: float | None = None) -> Any:
    """Wait for the result of a task, at most `limit_s`.

    Raises:
        TaskLate: The task takes longer.
        PipelineError: As `ray_errors`.
    """
    import ray
    from ray.exceptions import GetTimeoutError

    with ray_errors():
        try:
            return ray.get(reference, timeout=limit_s)
        except GetTimeoutError:
            give_up(reference)
            raise TaskLate(f"no result after {limit_s:g} s") from None


def value_if_kept(reference: Any, limit_s: float | None = None) -> Any:
    """Wait for the result of a task whose failure does not matter to the run.

    Raises:
        TaskLate: The task takes longer.
        TaskLost: It raised an error, its process ended, or its node is gone.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        return ray.get(reference, timeout=limit_s)
    except GetTimeoutError:
        give_up(reference)
        raise TaskLate(f"no result after {limit_s:g} s") from None
    except RayError as error:
        raise TaskLost(type(error).__name__) from error


def are_done(
    references: Sequence[Any], timeout_s: float | None = None
) -> tuple[list[Any], list[Any]]:
    """Wait for tasks, at most `timeout_s`; return finished and unfinished tasks."""
    import ray

    done, late = ray.wait([*references], num_returns=len(references), timeout=timeout_s)
    return done, late


def give_up(reference: Any) -> None:
    """End a task and its process."""
    import ray

    ray.cancel(reference, force=True)


def _call(function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    with no_gpus():
        return function(*arguments)
