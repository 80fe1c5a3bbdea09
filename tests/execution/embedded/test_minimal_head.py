"""An embedded Ray has only the processes that a run needs, and all of them end with it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from support.runs.cli import left_by, run_python, survivors

from pipeline.execution.embedded.driver_actors import _Called
from pipeline.execution.embedded.minimal_head import _without

SCRIPT = """
import contextlib, json, os
import psutil
import pytest
from pipeline.execution import health
from pipeline.execution.cluster.connect import connect
from pipeline.core.errors import JobError

with connect(None):
    import ray
    from ray.util import list_named_actors

    class Add:
        def __call__(self, batch):
            return {"id": batch["id"] + 1}

    rows = ray.data.range(8, override_num_blocks=4).map_batches(Add, concurrency=1).take_all()
    started = sorted(ray._private.worker._global_node.all_processes)
    actors = [actor["name"] for actor in list_named_actors(all_namespaces=True)]
    family = health.family()

    @ray.remote(num_cpus=0, runtime_env={"env_vars": {"ASKED": "as asked"}})
    def environment():
        return os.environ.get("ASKED")

    in_worker = ray.get(environment.remote())
    try:
        with connect("10.0.0.1:6379"):
            pass
    except JobError as error:
        refusal = str(error)
    programs = []
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):  # a worker whose work is done may end
            programs += each.cmdline()[:1]
left = [process.pid for process in family if health._is_running(process)]
print(json.dumps({
    "rows": sorted(row["id"] for row in rows), "started": started, "actors": actors,
    "family": len(family), "left": left, "programs": programs, "environment": in_worker,
    "refusal": refusal,
}))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_an_embedded_ray_starts_what_runs_need_and_leaves_nothing():
    done = run_python(SCRIPT)
    assert done.code == 0, done.stderr
    seen = done.json
    assert seen["rows"] == list(range(1, 9))
    assert seen["started"] == ["fork_server", "gcs_server", "raylet"]
    assert seen["actors"] == []
    assert "ray::DashboardAgent" not in seen["programs"]
    assert seen["environment"] == "as asked"
    assert seen["family"] > 4  # workers, and what stands in the place of agents, too
    assert seen["left"] == []
    assert "--address 10.0.0.1:6379: this process is connected to the Ray at" in seen["refusal"]


def test_a_module_is_hidden_and_what_else_is_imported_meanwhile_stays():
    import wave

    sys.modules.pop("colorsys", None)
    with _without("wave"):
        try:
            import wave as again
        except ImportError:
            again = None
        import colorsys
    assert again is None
    assert sys.modules["wave"] is wave
    assert sys.modules["colorsys"] is colorsys


def test_a_call_in_the_place_of_an_actor_answers_with_what_the_method_returns():
    answers: list[object] = []
    target = SimpleNamespace(add=lambda a, b=0: a + b)
    reference = _Called(target, lambda value: answers.append(value) or "reference").add.remote(
        1, b=2
    )
    assert (reference, answers) == ("reference", [3])


STARTS_STAY = """
import os, subprocess, sys
from pipeline.process.parent_death import RAYLET, tied_to

process = subprocess.Popen(
    tied_to(RAYLET, []),
    env={"RAY_RAYLET_PID": str(os.getpid())}, stdout=subprocess.DEVNULL,
)
print(process.pid, process.poll(), flush=True)
sys.stdin.read()
"""


def test_what_stands_in_the_place_of_an_agent_ends_with_its_raylet_and_not_before():
    stands, (code,) = left_by(STARTS_STAY)
    assert code == "None"
    assert survivors([stands]) == []


STARTS_TIED = """
import os, subprocess, sys
from pipeline.process.parent_death import tied_to

waits = [sys.executable, "-c", "import os; print(os.getpid(), flush=True); input()"]
process = subprocess.Popen(tied_to(os.getpid(), waits), stdin=subprocess.PIPE)
sys.stdin.read()
"""


def test_a_tied_program_ends_with_the_process_that_started_it():
    tied, _ = left_by(STARTS_TIED)
    assert survivors([tied]) == []
