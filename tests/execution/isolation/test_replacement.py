"""A worker that keeps more and more memory ends between slices, and only then."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.runs.cli import environment

from pipeline.execution.isolation.replacement import _GROWN, _OF_BOUND

MIB = 1 << 20
# Slices keep so many MiB each; what is printed has been done before the process ended.
KEEPING = """
import sys, threading
from pipeline.execution.isolation.replacement import Replacement
bound, *slices = map(int, sys.argv[1:])
worker, kept = Replacement(), []
for number, mib in enumerate(slices):
    with worker.slice(bound << 20):
        kept.append(bytearray(b"x" * (mib << 20)))
        print(number, flush=True)
"""
# One slice is in work while the next one finds that the process has grown.
BESIDE = """
import threading
from pipeline.execution.isolation.replacement import Replacement
worker, kept, goes_on = Replacement(), [], threading.Event()
with worker.slice(1 << 30):
    pass
def long():
    with worker.slice(1 << 30):
        goes_on.wait(60)
        print("ended in order", flush=True)
thread = threading.Thread(target=long)
thread.start()
while not worker._num_inside:
    pass
kept.append(bytearray(b"x" * (400 << 20)))
threading.Timer(1.0, goes_on.set).start()
with worker.slice(100 << 20):
    print("began", flush=True)
"""


def run(program: str, *arguments: int, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.mark.parametrize(
    ("bound_mib", "slices_mib", "num_done"),
    [
        (2000, [10, 10, 10, 10], 4),
        (400, [10, 200, 200, 10, 10], 3),  # over four fifths of the bound after the third
        (100, [300, 10, 10], 3),  # its first slice took more: another process would, too
    ],
)
def test_it_ends_before_the_slice_that_finds_it_grown(
    bound_mib: int, slices_mib: list[int], num_done: int
):
    done = run(KEEPING, bound_mib, *slices_mib)
    assert done.stdout.split() == [str(number) for number in range(num_done)], done.stderr
    assert done.returncode == (0 if num_done == len(slices_mib) else 1)
    assert ("it is replaced" in done.stderr) == (done.returncode == 1)


def test_it_waits_for_the_slices_that_are_in_work():
    done = run(BESIDE)
    assert (done.returncode, done.stdout) == (1, "ended in order\n"), done.stderr


NO_WORKER = """
from pipeline.execution.isolation import replacement
kept = []
for mib in (10, 300, 10):
    with replacement.replaced_between_slices(100 << 20):
        kept.append(bytearray(b"x" * (mib << 20)))
print("done")
"""


def test_a_process_that_ray_would_not_start_again_goes_on():
    done = run(NO_WORKER)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_it_is_replaced_before_it_would_be_ended():
    assert _OF_BOUND < 1 < _GROWN


# A leak of a decoder: more in each row, given back by nobody but the end of the process.
LEAKING = """
import json, os, sys
import pyarrow as pa
import ray
from pipeline.execution.isolation.replacement import replaced_between_slices

def stage(block):
    with replaced_between_slices(300 << 20):
        kept = sys.__dict__.setdefault("kept", [])  # of this process: stages are unpickled anew
        kept.append(bytearray(b"x" * (150 << 20)))
        return block.append_column("pid", pa.array([os.getpid()] * block.num_rows))

class Actor:
    def __call__(self, block):
        return stage(block)

ray.init(num_cpus=2, include_dashboard=False, object_store_memory=128 << 20, log_to_driver=False)
blocks = {"batch_size": None, "batch_format": "pyarrow", "num_cpus": 1}
for kind in ("tasks", "actors"):
    options = dict(blocks, max_retries=20) if kind == "tasks" else dict(
        blocks, compute=ray.data.ActorPoolStrategy(size=1), max_restarts=50, max_task_retries=20)
    function = stage if kind == "tasks" else Actor
    rows = ray.data.range(8, override_num_blocks=8).map_batches(function, **options).to_pandas()
    print(kind, sorted(rows["id"]) == [*range(8)], rows["pid"].nunique() > 1, flush=True)
"""


@pytest.mark.slow
def test_a_decoder_and_an_actor_that_leak_are_replaced_and_no_row_is_lost():
    done = run(LEAKING, timeout_s=280)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith(("tasks", "actors"))]
    assert said == ["tasks True True", "actors True True"], done.stderr
