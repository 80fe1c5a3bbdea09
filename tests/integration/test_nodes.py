"""No fault of a cluster loses a row, doubles one or puts one into quarantine: minutes, so slow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs.checkout import TESTS
from support.runs.cli import environment, write_job

from pipeline.commands.demo.photos import build_images

CHAOS = TESTS / "bench" / "chaos.py"
NUM_ROWS = 1200


RESERVED_FOR = """
import os
from pipeline.execution.environment import REMOTE_ENVIRONMENT
os.environ.update(REMOTE_ENVIRONMENT)
from ray.data._internal.cluster_autoscaler import RateBasedClusterAutoscaler
print(RateBasedClusterAutoscaler.AUTOSCALING_REQUEST_EXPIRE_TIME_S)
"""


def test_what_ray_keeps_for_a_driver_that_was_killed_is_free_soon():
    command = [sys.executable, "-c", RESERVED_FOR]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "30\n", done.stderr


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
    [seed] = json.loads(done.stdout.splitlines()[-1])["seeds"]
    assert seed["broken"] == ""
    num_blows = {"kill": 8, "drain": 2, "change": 3, "rpc": 0}[fault]
    # A detector this small may be through with all rows before the last ones.
    missed = len(seed["missed"]) if task == "detect" else 0
    assert len(seed["blows"]) + missed == num_blows
    assert missed <= num_blows // 2


# In a process that has not used Ray: a head, a node that computes, and what the commands say there.
ON_A_NODE = """
import json, sys
from support.runs.cli import pipeline
from support.servers.raynodes import RayNodes
with RayNodes(1) as nodes:
    address = nodes.environment["RAY_ADDRESS"]
    found = []
    for command in json.loads(sys.argv[1]):
        done = pipeline(*command, env=nodes.environment)
        found.append([done.code, done.stdout, done.stderr])
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_short_of_object_store_is_refused_before_the_first_row(tmp_path: Path):
    build_images(tmp_path / "in", 80, seed=1, num_bad=0)
    source = {"uri": str(tmp_path / "in"), "format": "images"}
    resources = {"decode_in": "tasks"}
    size = {"size_px": 1024, "resize_px": 1024}
    job = write_job(
        tmp_path / "job.yaml",
        source,
        str(tmp_path / "out"),
        transform=size,
        resources=resources,
        run={"slice_rows": 64},
    )
    encoded = ("--set", "resources.decode_in=actors")  # a hundredth of the bytes cross the store
    commands = [
        ("run", job, "--json", "--quiet"),
        ("doctor", job, "--json", "--no-try"),
        ("doctor", "--json"),
        ("run", job, "--json", "--quiet", *encoded),
    ]
    done = subprocess.run(
        [sys.executable, "-c", ON_A_NODE, json.dumps(commands)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    refused, examined, bare, fits = json.loads(done.stdout.splitlines()[-1])
    assert refused[0] == 7, refused
    error = json.loads(refused[1].splitlines()[-1])["error"]
    needed_bytes = 64 * 1024 * 1024 * 3  # a slice, as it crosses the store
    asked = re.search(r"object store has 128\.0 MiB.*--object-store-memory=(\d+)", str(error))
    assert asked is not None, error
    assert int(asked[1]) >= 4 * needed_bytes

    assert examined[0] == 7, examined
    nodes = {check["check"]: check for check in json.loads(examined[1])["checks"]}["nodes"]
    assert nodes["status"] == "fail"
    assert asked[0] in nodes["found"]
    assert bare[0] == 0, bare
    assert {c["check"]: c["status"] for c in json.loads(bare[1])["checks"]}["nodes"] != "fail"
    assert fits[0] == 0, fits


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
