"""Actors report progress within a slice to the driver, and nothing waits for it."""

from __future__ import annotations

from typing import Any

import pytest
from support.runs.cli import run_python

from pipeline.execution.cluster.in_flight import Share, pool_trouble

RUN = """
import sys, time
import ray
from pipeline.execution import progress_channel
from pipeline.process.liveness import last_progress, unfinished

ray.init(address=sys.argv[1], log_to_driver=False, runtime_env={"env_vars": {"A": "1"}})

class Actor:
    def __init__(self):
        progress_channel.EVERY_S = 0.1
        self.slice_began = progress_channel.tell_of_slices("run-1")
        self.slice_began()

    def step(self):
        from pipeline.process.liveness import still_alive
        still_alive(num_rows=1, num_tokens=5)

progress_channel.EVERY_S = 0.1
counts = []
with progress_channel.listening("run-1"):
    for _ in range(2):  # the second one finds the counter of the first gone, with its process
        actor = ray.remote(num_cpus=0)(Actor).remote()
        count, until = last_progress()[0], time.monotonic() + 300
        while last_progress()[0] == count and time.monotonic() < until:
            ray.get(actor.step.remote(), timeout=300)
        counts.append(last_progress()[0] > count)
        written = unfinished()
        ray.kill(actor)
print(counts, last_progress()[1], 5 * written[0] == written[1] > 0, unfinished())
"""


def actor(
    state: str, restarts: int = 0, address: str = "10.0.0.1", name: str = "PredictorActor", job=1
) -> dict[str, Any]:
    return {
        "State": state,
        "NumRestarts": restarts,
        "Pid": 4711,
        "Address": {"IPAddress": address},
        "ActorClassName": f"MapWorker(MapBatches({name}))",
        "JobID": f"0{job}000000",
        "IsDetached": False,
    }


WAITS = {**actor("PENDING_CREATION"), "Pid": 0}  # a node was thought of, which had no room
THEIRS = actor("ALIVE", 9, job=2)


@pytest.mark.parametrize(
    ("actors", "trouble"),
    [
        ([], ""),
        ([actor("ALIVE"), actor("PENDING_CREATION")], ""),  # it loads the model
        (
            [actor("ALIVE"), WAITS],
            "waiting for 1 x 0.75 CPU: 0.5 of 2 CPU free, 0.75 CPU held by other jobs",
        ),
        (
            [WAITS, WAITS, {**WAITS, "ActorClassName": "MapWorker(MapBatches(Read))"}, THEIRS],
            "waiting for 2 x 0.75 CPU and 1 x 0.2 CPU: 0.5 of 2 CPU free, 1.5 CPU held by other "
            "jobs: 02000000 (1 actors)",
        ),
        ([{**THEIRS, "State": "PENDING_CREATION", "Address": {"IPAddress": ""}}], ""),
        ([actor("PENDING_CREATION", 0, "")], "waiting for 1 x 0.75 CPU: "),
        ([actor("ALIVE", 3), actor("PENDING_CREATION", 1)], "were restarted: 4 times so far"),
        ([{**actor("RESTARTING", 9, ""), "ActorClassName": "BeatCounter"}], ""),
    ],
)
def test_actors_that_wait_or_start_again_are_told_of(
    actors: list[dict[str, Any]], trouble: str
) -> None:
    shares = {"PredictorActor": Share(0.75, 0.0), "Read": Share(0.2, 0.0)}
    message = pool_trouble(actors, "01000000", shares, {"CPU": 2.0}, {"CPU": 0.5})
    assert trouble in message
    assert bool(trouble) == bool(message)


def test_gpus_that_actors_wait_for_are_told_of() -> None:
    shares, has = {"PredictorActor": Share(4.0, 1.0)}, {"CPU": 16.0, "GPU": 1.0}
    message = pool_trouble([WAITS, THEIRS], "01000000", shares, has, {"CPU": 8.0})
    assert message == (
        "waiting for 1 x 4 CPU and 1 GPU: 8 of 16 CPU, 0 of 1 GPU free, 8 CPU and 1 GPU held by "
        "other jobs: 02000000 (1 actors)"
    )


@pytest.mark.ray
@pytest.mark.parametrize(
    "where", ["this machine", pytest.param("a cluster", marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_a_slice_that_takes_long_but_gets_on_is_progress_whichever_actor_told_first(
    where: str, request: pytest.FixtureRequest
) -> None:
    address, env = "local", {}
    if where == "a cluster":
        head = request.getfixturevalue("ray_head")
        address, env = head.address, {"RAY_AUTH_MODE": "token", **head.secret}
    done = run_python(RUN, address, env=env)
    assert done.stdout == "[True, True] rows or tokens within slices True (0, 0)\n", done.stderr
