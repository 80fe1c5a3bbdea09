"""A disk that fills up: one clear line, and a rerun completes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.inputs.photos import build_images
from support.runs.cli import command, environment, write_job

from pipeline.core.errors import InfraError
from pipeline.execution.tasks import ray_errors

DATE = "2026-11-24"
NUM_ROWS = 48
RUN = f"run {{job}} --date {DATE} --json"
# In a mount namespace of its own: what is mounted there goes with the shell.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size={size} tmpfs {folder} || exit 99
{run} > {log}.1 2>&1; echo $? > {log}.code
mount -o remount,size=50m {folder} || exit 99
{run} > {log}.2 2>&1
"""


@pytest.mark.slow
def test_a_full_disk_is_said_publishes_nothing_and_space_cures_it(tmp_path: Path):
    folder, log = tmp_path / "small", tmp_path / "log"
    folder.mkdir()
    build_images(tmp_path / "images", NUM_ROWS, seed=3, num_bad=0)
    source = {"uri": str(tmp_path / "images"), "format": "images"}
    out = str(folder / "out")
    job = write_job(tmp_path / "job.yaml", source, out, run={"slice_rows": 8})
    run = " ".join(command(*RUN.format(job=job).split()))
    script = ON_A_SMALL_DISK.format(size="60k", folder=folder, run=run, log=log)
    unshare = shutil.which("unshare") or pytest.skip("there is no unshare")
    mine = ["--mount"] if os.geteuid() == 0 else ["--map-root-user", "--mount"]
    done = subprocess.run(
        [unshare, *mine, "sh", "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if not Path(f"{log}.code").exists():
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    first, second = Path(f"{log}.1").read_text(), Path(f"{log}.2").read_text()
    assert Path(f"{log}.code").read_text() == "7\n", first
    (failed,) = [json.loads(line) for line in first.splitlines() if line.startswith("{")]
    error = failed["error"]
    assert "no space left: free some and run again" in error
    assert "report" not in error, "what failed first is what is told"
    assert done.returncode == 0, second
    report = json.loads(second.splitlines()[-1])
    assert report["rows"]["predicted"] == NUM_ROWS
    assert report["slices"]["resumed"] > 0


@pytest.mark.parametrize("name", ["OutOfDiskError", "ObjectStoreFullError"])
def test_no_room_for_objects_of_ray_is_infrastructure_trouble(name: str):
    from ray import exceptions

    with pytest.raises(InfraError, match="no room left for objects: free"), ray_errors():
        raise getattr(exceptions, name)("full")
