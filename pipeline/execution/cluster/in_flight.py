"""What a run has in flight: Ray Data's operators, Ray's actors, the stacks of the driver's threads.

For looking at a run that hangs, so nothing here waits for anything but `actors`, which asks Ray.
Stacks show places in code, never values.
"""

from __future__ import annotations

import sys
import threading
import traceback
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.core.printable import clean_message
from pipeline.execution.private_names import read
from pipeline.execution.versions import connected_ray
from pipeline.process.life import current

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
_MAX_ACTORS = 200


@dataclass
class _Executing:
    executor: weakref.ref[Any] | None = None


class ExecutorSeen:
    """An execution callback of Ray Data: remembers what executes, for those who look later.

    Not a subclass of Ray's, whose module is private; what that may learn to call, does nothing.
    """

    def before_execution_starts(self, executor: Any) -> None:
        current().part(_Executing).executor = weakref.ref(executor)

    def on_execution_step(self, executor: Any) -> None:
        """Do nothing: it runs in Ray's own loop."""

    def after_execution_succeeds(self, executor: Any) -> None:
        current().part(_Executing).executor = None

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        current().part(_Executing).executor = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("before_", "on_", "after_")):
            return _do_nothing
        raise AttributeError(name)


def _do_nothing(*_: Any, **__: Any) -> None:
    pass


def _operators() -> list[Any]:
    seen = current().part(_Executing).executor
    executor = seen() if seen else None
    # Ray's public statistics would cost time that grows with the blocks, and lack the queues.
    topology = getattr(executor, "_topology", None) or {}
    return [
        operator for operator in list(topology) if getattr(operator, "input_dependencies", None)
    ]


def _metrics(operator: Any) -> Any:
    return getattr(operator, "metrics", None)


def mark() -> tuple[int, ...]:
    """Return numbers that change when an operator gets on: a task finished, an actor is ready."""
    names = ("num_tasks_finished", "num_outputs_taken", "num_alive_actors")
    return tuple(
        getattr(_metrics(operator), name, 0) for operator in _operators() for name in names
    )


def operators() -> list[str]:
    """Describe each operator of what executes now, one line each."""
    return [_describe(operator) for operator in _operators()]


def _describe(operator: Any) -> str:
    metrics = _metrics(operator)
    has_actors = any(getattr(metrics, name, 0) for name in _ACTORS.values())
    shown = {**_COUNTS, **({f"actors {k}": v for k, v in _ACTORS.items()} if has_actors else {})}
    counts = ", ".join(f"{getattr(metrics, name, '?')} {text}" for text, name in shown.items())
    return clean_message(f"{operator.name}: tasks {counts}")


def actors() -> list[str]:
    """Describe the actors that have not ended, by what Ray's head knows; may wait for the head."""
    actor_table = read("actors")
    if actor_table is None:
        return []
    alive = [a for a in actor_table(None).values() if a["State"] != "DEAD"]
    lines = [
        clean_message(
            f"actor {a['ActorClassName']} {a['ActorID'][:8]}: {a['State']}, pid {a['Pid']} on "
            f"{a['Address']['IPAddress'] or 'no node yet'}, restarted {a['NumRestarts']} times"
        )
        for a in alive[:_MAX_ACTORS]
    ]
    return lines + [f"{len(alive) - _MAX_ACTORS} more actors"] * (len(alive) > _MAX_ACTORS)


def actors_in_trouble() -> str:
    """Say that actors of this run's pool wait or were started anew; '' if none is known to.

    May wait for Ray's head.
    """
    ray = connected_ray()
    actor_table = None if ray is None else read("actors")  # asking would start one
    if ray is None or actor_table is None:
        return ""
    job_id = ray.get_runtime_context().get_job_id()
    return pool_trouble([actor for actor in actor_table(None).values() if actor["JobID"] == job_id])


def pool_trouble(actors: Sequence[Mapping[str, Any]]) -> str:
    """Return what `actors_in_trouble` says of the actors of a job, as Ray's table has them."""
    pool = [actor for actor in actors if "PredictorActor" in actor["ActorClassName"]]
    waiting = [
        actor
        for actor in pool
        if actor["State"] not in ("ALIVE", "DEAD") and not actor["Address"]["IPAddress"]
    ]
    num_restarts = sum(int(actor["NumRestarts"]) for actor in pool)
    problems = []
    if waiting:
        problems.append(f"{len(waiting)} of {len(pool)} actors wait for cores or memory")
    if num_restarts:
        problems.append(
            f"actors' processes ended and were started anew: {num_restarts} times so far"
        )
    return "; ".join(problems)


def stacks() -> Iterator[str]:
    """Yield the stack of each thread of this process but the one that asks."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            lines = traceback.format_stack(frame)
            yield f"thread {names.get(ident, ident)}:\n{''.join(lines)}"
