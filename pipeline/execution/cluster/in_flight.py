"""Work in flight: operators of Ray Data, actors of Ray, stacks of the driver's threads.

This is for diagnosing a run that hangs, so nothing here waits, except `actors`, which asks Ray.
Stacks show places in code, never values.
"""

from __future__ import annotations

import sys
import threading
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.core.printable import clean_message
from pipeline.execution.private_names import read
from pipeline.execution.versions import connected_ray
from pipeline.process.run_scope import current_scope

_COUNTS = {
    "running": "num_tasks_running",
    "finished": "num_tasks_finished",
    "failed": "num_tasks_failed",
    "blocks waiting": "num_external_inqueue_blocks",
}
_ACTORS = {
    "alive": "num_alive_actors",
    "pending": "num_pending_actors",
    "restarting": "num_restarting_actors",
}
_MAX_ACTORS, _MAX_JOBS = 200, 3
_NOISE = 0.01
"""Smaller amounts of resources count as none: tasks may hold some for an instant."""


class Share(NamedTuple):
    """The resources that an actor reserves."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        gpus = f"{self.gpus:g} GPU" if self.gpus else ""
        return " and ".join(filter(None, (f"{self.cpus:g} CPU", gpus)))


@dataclass
class _Executing:
    executor: weakref.ref[Any] | None = None
    shares: Mapping[str, Share] = field(default_factory=dict)


def note_shares(shares: Mapping[str, Share]) -> None:
    """Note the share of an actor of each stage, by class name."""
    current_scope().part(_Executing).shares = shares


class ExecutorSeen:
    """An execution callback of Ray Data that remembers the current executor.

    It does not derive from the class of Ray, whose module is private; unknown hooks do nothing.
    """

    def before_execution_starts(self, executor: Any) -> None:
        current_scope().part(_Executing).executor = weakref.ref(executor)

    def on_execution_step(self, executor: Any) -> None:
        """Do nothing: this runs in the loop of Ray."""

    def after_execution_succeeds(self, executor: Any) -> None:
        current_scope().part(_Executing).executor = None

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        current_scope().part(_Executing).executor = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("before_", "on_", "after_")):
            return _do_nothing
        raise AttributeError(name)


def _do_nothing(*_: Any, **__: Any) -> None:
    pass


def _operators() -> list[Any]:
    seen = current_scope().part(_Executing).executor
    executor = seen() if seen else None
    # Ray's public statistics take time proportional to the blocks, and lack the queues.
    topology = getattr(executor, "_topology", None) or {}
    return [
        operator for operator in list(topology) if getattr(operator, "input_dependencies", None)
    ]


def _metrics(operator: Any) -> Any:
    return getattr(operator, "metrics", None)


def mark() -> tuple[int, ...]:
    """Return numbers that change with progress: finished tasks, outputs, ready actors."""
    names = ("num_tasks_finished", "num_outputs_taken", "num_alive_actors")
    return tuple(
        getattr(_metrics(operator), name, 0) for operator in _operators() for name in names
    )


def operators() -> list[str]:
    """Describe each operator of the current execution, one line each."""
    return [_describe(operator) for operator in _operators()]


def _describe(operator: Any) -> str:
    metrics = _metrics(operator)
    has_actors = any(getattr(metrics, name, 0) for name in _ACTORS.values())
    shown = {**_COUNTS, **({f"actors {k}": v for k, v in _ACTORS.items()} if has_actors else {})}
    counts = ", ".join(f"{getattr(metrics, name, '?')} {text}" for text, name in shown.items())
    return clean_message(f"{operator.name}: tasks {counts}")


def actors() -> list[str]:
    """Describe the live actors of this run, one line each; may wait for the head of Ray."""
    job_id, table = _actors()
    alive = [a for a in table if a["State"] != "DEAD" and a["JobID"] == job_id]
    lines = [
        clean_message(
            f"actor {a['ActorClassName']} {a['ActorID'][:8]}: {a['State']}, pid {a['Pid']} on "
            f"{a['Address']['IPAddress'] or 'no node yet'}, restarted {a['NumRestarts']} times"
        )
        for a in alive[:_MAX_ACTORS]
    ]
    return lines + [f"{len(alive) - _MAX_ACTORS} more actors"] * (len(alive) > _MAX_ACTORS)


def actors_in_trouble() -> str:
    """Say that actors of this run wait or were restarted; '' if none is known to.

    May wait for the head of Ray.
    """
    job_id, table = _actors()
    if not table:
        return ""
    import ray

    has, free = ray.cluster_resources(), ray.available_resources()
    return pool_trouble(table, job_id, current_scope().part(_Executing).shares, has, free)


def _actors() -> tuple[str, list[Mapping[str, Any]]]:
    """Return the Ray job of this run, and the actors of all jobs from Ray's table."""
    ray = connected_ray()
    actor_table = None if ray is None else read("actors")  # asking would start one
    if ray is None or actor_table is None:
        return "", []
    return ray.get_runtime_context().get_job_id(), list(actor_table(None).values())


def pool_trouble(
    actors: Sequence[Mapping[str, Any]],
    job_id: str,
    shares: Mapping[str, Share],
    has: Mapping[str, float],
    free: Mapping[str, float],
) -> str:
    """Return the text of `actors_in_trouble` for a job.

    Args:
        actors: The actors of all jobs, from Ray's table.
        job_id: The job.
        shares: The share of an actor of each stage, by class name.
        has: The resources of the cluster, by Ray's names.
        free: The free resources.
    """
    ours = [actor for actor in actors if actor["JobID"] == job_id]
    pool = [(actor, name) for actor in ours if (name := _stage_of(actor)) in shares]
    waiting = Counter(
        shares[name]
        for actor, name in pool
        if actor["State"] not in ("ALIVE", "DEAD")
        and not (actor["Pid"] and actor["Address"]["IPAddress"])
    )
    num_restarts = sum(int(actor["NumRestarts"]) for actor, _ in pool)
    problems = []
    if waiting:
        needed = " and ".join(f"{number} x {share}" for share, number in waiting.items())
        names = ("CPU", "GPU")[: 1 + any(share.gpus for share in waiting)]
        left = ", ".join(f"{free.get(name, 0):g} of {has.get(name, 0):g} {name}" for name in names)
        ours_alive = [shares[name] for actor, name in pool if actor["State"] == "ALIVE"]
        held = {"CPU": sum(s.cpus for s in ours_alive), "GPU": sum(s.gpus for s in ours_alive)}
        others = {name: has.get(name, 0) - free.get(name, 0) - held[name] for name in names}
        problems.append(f"waiting for {needed}: {left} free{_held(others, actors, job_id)}")
    if num_restarts:
        problems.append(f"actors' processes ended and were restarted: {num_restarts} times so far")
    return "; ".join(problems)


def _stage_of(actor: Mapping[str, Any]) -> str:
    """Return the class of a stage, from `MapWorker(MapBatches(PredictorActor))`."""
    return str(actor["ActorClassName"]).rpartition("(")[2].rstrip(")")


def _held(amounts: Mapping[str, float], actors: Sequence[Mapping[str, Any]], job_id: str) -> str:
    """Say what other jobs hold, and which jobs have actors; '' if nothing."""
    amount = " and ".join(f"{n:.3g} {name}" for name, n in amounts.items() if n > _NOISE)
    alive = [a for a in actors if a["State"] == "ALIVE" and not a["IsDetached"]]
    others = Counter(a["JobID"] for a in alive if a["JobID"] != job_id)
    jobs = ", ".join(f"{job} ({n} actors)" for job, n in others.most_common(_MAX_JOBS))
    return amount and f", {amount} held by other jobs{jobs and f': {jobs}'}"


def stacks() -> Iterator[str]:
    """Yield the stack of each thread of this process except the calling one."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            lines = traceback.format_stack(frame)
            yield f"thread {names.get(ident, ident)}:\n{''.join(lines)}"
