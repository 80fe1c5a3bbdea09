"""No fault of a cluster loses a row, doubles one or puts one into quarantine: minutes, so slow."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec, module_from_spec

import pytest
from support.runs.checkout import TESTS
from support.runs.cli import environment

from pipeline.execution.environment import REMOTE_ENVIRONMENT

CHAOS = TESTS / "bench" / "chaos.py"
NUM_ROWS = 1200
AUTOSCALER = "ray.data._internal.cluster_autoscaler.rate_based_cluster_autoscaler"


def test_what_ray_keeps_for_a_driver_that_was_killed_is_free_soon(monkeypatch: pytest.MonkeyPatch):
    for name, value in REMOTE_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    spec = find_spec(AUTOSCALER)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(module := module_from_spec(spec))  # it reads them while it is imported
    assert module.RateBasedClusterAutoscaler.AUTOSCALING_REQUEST_EXPIRE_TIME_S == 30


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("fault", "task"),
    [
        ("kill", "classify"),
        ("drain", "classify"),
        ("change", "classify"),
        ("rpc", "classify"),
        ("kill", "detect"),
    ],
)
def test_no_fault_of_a_cluster_changes_what_is_published(fault: str, task: str):
    command = [sys.executable, str(CHAOS), f"--fault={fault}", f"--task={task}"]
    done = subprocess.run(
        [*command, f"--rows={NUM_ROWS}", "--seeds=1", "--max-ratio=1000"],
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seed = json.loads(done.stdout.splitlines()[-1])
    assert seed["broken"] == ""
    num_blows = {"kill": 8, "drain": 2, "change": 3, "rpc": 0}[fault]
    # A detector this small may be through with all rows before the last ones.
    missed = len(seed["missed"]) if task == "detect" else 0
    assert len(seed["blows"]) + missed == num_blows
    assert missed <= num_blows // 2


# Something of Ray's own raises, with a node lost before and without.
RAISES = """
from support.servers.raynodes import RayNodes
with RayNodes(2) as nodes:
    import ray
    from pipeline.core.errors import InfraError
    from pipeline.execution.tasks import lost_nodes_blamed
    ray.init(address=nodes.environment["RAY_ADDRESS"], log_to_driver=False)
    for loses in (False, True):
        try:
            with lost_nodes_blamed():
                if loses:
                    nodes.kill(nodes.nodes[0])
                    while sum(node["Alive"] for node in ray.nodes()) > 2:
                        pass
                raise AssertionError("a reference that is not there")
        except (AssertionError, InfraError) as error:
            print(type(error).__name__, error, flush=True)
    ray.shutdown()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_what_rays_own_code_raises_once_a_node_is_lost_is_trouble_of_the_cluster():
    command = [sys.executable, "-c", RAISES]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    alone, lost = (line for line in done.stdout.splitlines() if "a reference" in line)
    assert alone == "AssertionError a reference that is not there"
    assert lost.startswith("InfraError Ray lost ")
    assert "AssertionError: a reference that is not there" in lost
