"""A cluster with another Ray: what works, and the one-line error otherwise."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from support.runs.checkout import ROOT
from support.runs.cli import photos_job, pipeline, run_python
from support.runs.published_rows import read_predictions
from support.servers import rayhead

from pipeline.core.errors import JobError
from pipeline.execution.versions import (
    different_versions,
    known_errors,
    note_other_version,
    require_supported,
)

DATE = "2026-11-24"
OTHERS = sorted(
    path.parent
    for path in Path(ROOT, "build").glob("ray-*/bin/ray")
    if path.parts[-3] != f"ray-{ray.__version__}"
)
MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.54.1
    Python: 3.12.4
This process on node 10.0.0.1 was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""


def test_what_ray_says_of_other_versions_becomes_one_line_with_both():
    line = different_versions(MISMATCH)
    assert line is not None
    assert line.startswith(
        f"it runs Ray 2.54.1 on Python 3.12.4, this process Ray {ray.__version__}"
    )
    assert "\n" not in line
    assert different_versions("something else") is None


def refused(versions: list[str]) -> list[str]:
    """The versions that are refused."""
    too_old = []
    for version in versions:
        try:
            require_supported("this Python has", version)
        except JobError:
            too_old.append(version)
    return too_old


def test_a_ray_that_is_new_enough_or_unknown_is_tried():
    old = ["2.50.9", "2.5.1"]
    assert refused(["2.51.0", "2.60.1", "3.0.0", "3.0.0.dev0", "nightly", "", *old]) == old


@pytest.mark.parametrize("version", ["2.50.1", "2.9.3", "1.13.0"])
def test_a_ray_that_is_too_old_is_refused_in_a_line_that_names_both(version: str):
    with pytest.raises(JobError, match=rf"cluster runs Ray {version}, and .* Ray 2\.51 or newer"):
        require_supported("the cluster runs", version)


def test_another_ray_on_the_cluster_is_said_in_one_line(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    for version in (ray.__version__, "2.99.0"):
        note_other_version("http://head:8265", version)
    (line,) = caplog.messages
    assert line.startswith("http://head:8265 runs Ray 2.99.0, and here is Ray")


def test_errors_that_this_ray_has_not_are_left_out():
    assert known_errors("RayTaskError", "ErrorOfAFutureRay") == (ray.exceptions.RayTaskError,)


TWO_CALLS = """
import threading
import ray
from pipeline.execution.versions import with_calls_at_once

class Meeting:  # goes on once two calls of one actor are under way
    def __init__(self):
        self.both = threading.Barrier(2)

    def __call__(self, block):
        self.both.wait(60)
        return block

ray.init(num_cpus=2, include_dashboard=False, object_store_memory=256 << 20, log_to_driver=False)
options = {"compute": ray.data.ActorPoolStrategy(min_size=1, max_size=1), "num_cpus": 1}
pool = with_calls_at_once(options, 2)
rows = ray.data.range(4, override_num_blocks=4)
if pool == options:
    print("one at a time")
else:
    print(rows.map_batches(Meeting, batch_size=None, batch_format="pyarrow", **pool).count())
"""


@pytest.mark.ray
@pytest.mark.slow
def test_calls_of_an_actor_run_at_once_where_this_ray_can():
    done = run_python(TWO_CALLS)
    if done.stdout == "one at a time\n":
        pytest.skip("actor pools of this Ray have one call at a time")
    assert (done.code, done.stdout) == (0, "4\n"), done.stderr


@pytest.fixture(scope="module")
def other_head() -> Iterator[rayhead.RayHead]:
    """A head of another Ray: one that `make test-ray RAY=...` has installed."""
    if not OTHERS:
        pytest.skip("no other Ray is installed: make test-ray RAY=2.51.2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rayhead, "BIN", OTHERS[0])
        with rayhead.RayHead() as head:
            yield head


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_of_another_ray_runs_what_is_submitted_and_refuses_a_driver_in_one_line(
    other_head: rayhead.RayHead, tmp_path: Path
):
    job = photos_job(tmp_path, 12, num_bad=1)
    env = {**other_head.secret, "PYTHONUNBUFFERED": "1"}
    arguments = ("--date", DATE, "--allow-import", "models")
    refused = pipeline("run", job, *arguments, "--address", other_head.address, env=env)
    assert refused.code == 7, refused.stderr
    [line] = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert f"this process Ray {ray.__version__} on Python" in line
    assert f"it runs Ray {OTHERS[0].parts[-2].removeprefix('ray-')} on Python" in line
    sent = pipeline("submit", job, *arguments, "--address", other_head.url, "--json", env=env)
    assert sent.code == 0, sent.stdout + sent.stderr
    assert sent.json["status"] == "published"
    assert read_predictions(str(tmp_path / "out"), f"date={DATE}").num_rows == 11
