"""Actors report progress within a slice to the driver, and nothing waits for the reports."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest
from support.runs.cli import environment

from pipeline.execution.cluster.in_flight import told_of_pool
from pipeline.execution.progress_channel import ProgressActor, ProgressListener
from pipeline.inference.slice_progress import Rows
from pipeline.process.liveness import last_progress
from pipeline.runs.progress import Silent

RUN = """
import sys, time
import ray
from pipeline.execution.progress_channel import ProgressListener
from pipeline.inference.slice_progress import add_rows, send_to, start_slice
from pipeline.process.liveness import last_progress

ray.init(address=sys.argv[1], log_to_driver=False, runtime_env={"env_vars": {"A": "1"}})

class Actor:
    def work(self, channel):
        send_to(channel)
        start_slice((0, 0))
        add_rows(32)
        return "done"

    def step(self):
        add_rows(0)  # a token of a long row

listener = ProgressListener("run-1", 1)
actor = ray.remote(num_cpus=0)(Actor).remote()
print(ray.get(actor.work.remote(listener.channel), timeout=60))
until = time.monotonic() + 60
while not listener.rows and time.monotonic() < until:  # the actor that keeps counts starts only now
    listener.read()
print(listener.rows)
count, until = last_progress()[0], time.monotonic() + 60
while last_progress()[0] == count and time.monotonic() < until:
    ray.get(actor.step.remote(), timeout=60)
    listener.read()
print(listener.rows, last_progress()[1])
"""


class Told(ProgressListener):
    """Is answered by no Ray: each time actors have sent once more."""

    starts_after_s = 0.0

    def __init__(self) -> None:
        super().__init__("run", 1)
        self.num_answers, self.answered = 0, threading.Event()

    def _answer(self) -> tuple[Rows, int]:
        if self.num_answers:
            self.answered.set()
        self.num_answers += 1
        return {(0, 0): 7}, self.num_answers


def test_a_run_that_shows_nothing_is_seen_to_get_on_within_a_slice() -> None:
    before, listener = last_progress()[0], Told()
    with listener, Silent().rows(100, done=0, under_way=listener):
        assert listener.answered.wait(20)
    assert last_progress()[0] > before
    assert "within slices" in last_progress()[1]
    assert listener.rows == {(0, 0): 7}


def actor(state: str, restarts: int = 0, address: str = "10.0.0.1") -> dict[str, Any]:
    facts = {"State": state, "NumRestarts": restarts, "Address": {"IPAddress": address}}
    return {"ActorClassName": "MapWorker(MapBatches(PredictorActor))", **facts}


@pytest.mark.parametrize(
    ("actors", "told"),
    [
        ([], ""),
        ([actor("ALIVE"), actor("PENDING_CREATION")], ""),  # it loads the model
        ([actor("ALIVE"), actor("PENDING_CREATION", 0, "")], "1 of 2 actors wait for cores or mem"),
        ([actor("ALIVE", 3), actor("PENDING_CREATION", 1)], "were started anew: 4 times so far"),
        ([{**actor("RESTARTING", 9, ""), "ActorClassName": "ProgressActor"}], ""),
    ],
)
def test_actors_that_wait_or_start_again_are_told_of(
    actors: list[dict[str, Any]], told: str
) -> None:
    found = told_of_pool(actors)
    assert told in found
    assert bool(told) == bool(found)


def test_the_last_counts_are_kept_of_so_many_slices() -> None:
    actor = ProgressActor(2)
    actor.put({(0, 0): 32, (1, 0): 7})
    actor.put({(0, 0): 64})
    assert actor.read() == actor.read() == ({(0, 0): 64, (1, 0): 7}, 2)
    actor.put({(2, 0): 1})
    assert actor.read() == ({(0, 0): 64, (2, 0): 1}, 3)


@pytest.mark.ray
@pytest.mark.parametrize(
    "where", ["this machine", pytest.param("a cluster", marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_the_rows_of_a_slice_under_way_reach_the_driver_and_that_a_long_row_gets_on(
    where: str, request: pytest.FixtureRequest
) -> None:
    address, env = "local", environment()
    if where == "a cluster":
        head = request.getfixturevalue("ray_head")
        address, env = head.address, {**env, "RAY_AUTH_MODE": "token", **head.secret}
    done = subprocess.run(
        [sys.executable, "-c", RUN, address], env=env, capture_output=True, text=True, timeout=240
    )
    assert done.stdout.splitlines() == [
        "done",
        "{(0, 0): 32}",
        "{(0, 0): 32} rows or tokens within slices",
    ], done.stderr
