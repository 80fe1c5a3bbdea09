"""Actors report progress within a slice to the driver, and nothing waits for the reports."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.runs.cli import environment

from pipeline.execution.progress_channel import ProgressActor

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
found, until = {}, time.monotonic() + 60
while not found and time.monotonic() < until:  # the actor that keeps counts starts only now
    found = listener.read()
print(found)
count, until = last_progress()[0], time.monotonic() + 60
while last_progress()[0] == count and time.monotonic() < until:
    ray.get(actor.step.remote(), timeout=60)
    found = listener.read()
print(found, last_progress()[1])
"""


def test_the_last_counts_are_kept_of_so_many_slices() -> None:
    actor = ProgressActor(2)
    actor.put({(0, 0): 32, (1, 0): 7})
    actor.put({(0, 0): 64})
    assert actor.read() == actor.read() == ({(0, 0): 64, (1, 0): 7}, 2)
    actor.put({(2, 0): 1})
    assert actor.read() == ({(0, 0): 64, (2, 0): 1}, 3)


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
