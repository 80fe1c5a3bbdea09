"""A job submitted twice is one job: found again, followed, stopped, also through a bad proxy.

With a real Ray head, a token and a real proxy before it. Where only Ray's side of a job matters,
the job is a line of shell.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.inputs.photos import build_images
from support.runs.checkout import PYTHONPATH
from support.runs.cli import Result, pipeline, start, write_job
from support.servers.faultproxy import (
    ERROR_BODY,
    RESET_AFTER,
    RESET_BEFORE,
    TRUNCATE,
    UNAUTHORIZED,
    UNAVAILABLE,
    FaultProxy,
    Rule,
)
from support.servers.rayhead import RayHead

from pipeline.execution.submit.client import connect_job_api
from pipeline.execution.submit.job import attach_to

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.early]

DATE = "2026-11-24"
WAIT_S = 450


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    build_images(tmp_path / "photos", 16, seed=3, num_bad=1)
    return tmp_path / "photos"


@pytest.fixture
def trusted(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch) -> RayHead:
    """The head, which this process is let in by as well."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", ray_head.secret["RAY_AUTH_TOKEN"])
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    return ray_head


SLOW_NETS = """
import time
from models import Colours

class Slow(Colours):
    def forward(self, x):
        time.sleep(1.0 * len(x))
        return super().forward(x)

net = Slow
"""


class Night:
    """A job over photos, and the commands about it, as from a shell that knows the cluster."""

    def __init__(self, head: RayHead, photos: Path, folder: Path, url: str | None = None) -> None:
        source = {"uri": str(photos), "format": "images"}
        self.job = write_job(
            folder / "nightly.yaml", source, str(folder / "out"), run={"slice_rows": 4}
        )
        self.address = ("--address", url or head.url)
        self.env = {
            **head.secret,
            "PYTHONUNBUFFERED": "1",
            "AWS_SECRET_ACCESS_KEY": "not-for-the-job-list",
            "RAY_ADDRESS": "http://127.0.0.1:1",  # --address is what counts
        }
        self.arguments = ("submit", self.job, *self.address, "--date", DATE)
        self.allowed = ("--allow-import", "models")

    def submit(self, *more: str) -> Result:
        return pipeline(*self.arguments, *self.allowed, *more, env=self.env)

    def ask(self, command: str, *more: str) -> Result:
        return pipeline(command, *more, *self.address, env=self.env)

    @staticmethod
    def id_of(text: str) -> str:
        match = re.search(rf"nightly-date={DATE}-[0-9a-f]{{8}}-a\d+", text)
        assert match, text
        return match[0]


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until, "it does not come"
        time.sleep(0.1)


def start_line(head: RayHead, shell: str, name: str) -> str:
    """Submit a line of shell to the cluster, by Ray's own client, under an id of ours."""
    client = connect_job_api(head.url)
    metadata = {"job": name, "date": DATE}
    job_id: str = client.submit_job(
        entrypoint=shell, submission_id=f"{name}-{DATE}-12345678-a1", metadata=metadata
    )
    return job_id


@pytest.mark.any_ray
def test_a_job_is_submitted_followed_stopped_and_submitted_again(
    ray_head: RayHead, photos: Path, tmp_path: Path
):
    night = Night(ray_head, photos, tmp_path)
    (code := tmp_path / "code").mkdir()
    (code / "slow_nets.py").write_text(SLOW_NETS)
    (code / ".env").write_text("PASSWORD=hunter2")
    night.env["PYTHONPATH"] = f"{PYTHONPATH}{os.pathsep}{code}"  # of this shell, not of the head
    slow = ("--code", str(code), "--set", "model.factory=slow_nets:net")
    slow += ("--allow-import", "slow_nets", "--json")
    first = night.submit("--detach", *slow)
    assert first.code == 0, first.stderr
    job_id = first.json["job_id"]
    assert first.json == {"job_id": job_id, "state": "running"}
    assert f"pipeline attach {job_id} --address {ray_head.url}" in first.stderr
    assert f"sending 1 file, {len(SLOW_NETS)} bytes from {code}: slow_nets.py; left" in first.stderr

    watching = start("attach", job_id, *night.address, "--json", env=night.env)
    again = night.submit("--detach", *slow)  # pressed twice
    assert again.json == first.json, again.stderr
    seen = night.ask("status", job_id, "--json").json["jobs"]
    assert [(job["job_id"], job["state"]) for job in seen] == [(job_id, "running")]
    stopped = night.ask("stop", night.job, "--date", DATE, "--json")
    assert stopped.code == 0, stopped.stderr
    assert (stopped.json["state"], stopped.json["exit_code"]) == ("stopped", 6)
    stdout, stderr = watching.communicate(timeout=WAIT_S)
    assert watching.returncode == 6, stdout + stderr
    assert json.loads(stdout)["exit_code"] == 6

    done = night.submit(*slow)
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["rows"]["predicted"] == 15, "nothing else is on stdout"
    second = job_id[:-1] + "2"
    assert second in done.stderr
    log = night.ask("logs", "-f", second)
    assert log.code == 0
    assert "published; 16 rows = 15 predicted + 1 quarantined" in " ".join(log.stdout.split())
    assert '{"status"' not in log.stdout

    finished = night.submit(*slow)  # which starts nothing
    assert (finished.code, finished.json) == (0, done.json), finished.stderr
    shown = night.ask("status", night.job, "--json").json["jobs"]
    mine = [job for job in shown if job["job_id"][:-1] == job_id[:-1]]
    ends = [(job["state"], job["exit_code"]) for job in mine]
    assert ends == [("succeeded", 0), ("stopped", 6)]

    build_images(photos / "late", 1, seed=9, num_bad=0)  # the same command now has more to do
    late = night.submit(*slow)
    assert late.code == 0, late.stderr
    assert late.json["rows"]["predicted"] == 16
    assert job_id[:-1] + "3" in late.stderr
    listed = ray_head.jobs()[-1]
    assert listed["metadata"].items() > {"job": "nightly", "date": DATE}.items()
    variables = {"RAY_JOB_STOP_WAIT_TIME_S", "PIPELINE_SUBMITTED"}
    assert listed["runtime_env"]["env_vars"].keys() >= variables
    assert "not-for-the-job-list" not in json.dumps(ray_head.jobs())


def test_two_submissions_at_the_same_moment_are_one_job_through_a_bad_proxy(
    ray_head: RayHead, photos: Path, tmp_path: Path
):
    submits = {"method": "POST", "path": "/api/jobs/$"}
    rules = [
        Rule(RESET_AFTER, **submits),  # it is submitted, and the answer is lost
        Rule(RESET_BEFORE, method="GET", path="/api/version", first=1, last=2),
        Rule(UNAVAILABLE, method="GET", first=4, last=6),
        Rule(TRUNCATE, method="GET", path="/api/jobs/", first=2, last=2),
        Rule(ERROR_BODY, method="GET", path="/api/jobs/[^/]+$", first=3, last=4),
    ]
    with FaultProxy(ray_head.url, *rules) as proxy:
        night = Night(ray_head, photos, tmp_path, proxy.url)
        num_before = len(ray_head.jobs())
        both = [start(*night.arguments, *night.allowed, "--json", env=night.env) for _ in range(2)]
        ends = [(*process.communicate(timeout=2 * WAIT_S), process.returncode) for process in both]
    for stdout, stderr, code in ends:
        assert code == 0, stdout + stderr
        assert json.loads(stdout)["rows"]["predicted"] == 15
        assert stderr.count("published; 16") <= 1
    assert len({Night.id_of(stderr) for _, stderr, _ in ends}) == 1
    assert len(ray_head.jobs()) == num_before + 1
    assert {rule.action for rule in rules} <= {action for _, _, action in proxy.requests}


def test_a_killed_or_stopped_follower_can_attach_again(
    ray_head: RayHead, trusted: RayHead, photos: Path, tmp_path: Path
):
    night, num_before = Night(ray_head, photos, tmp_path), len(ray_head.jobs())
    killed = start(*night.arguments, *night.allowed, env=night.env)
    assert killed.stderr is not None
    line = next(text for text in killed.stderr if "submitted to" in text)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    again = night.submit("--json")
    assert again.code == 0, again.stderr
    assert again.json["rows"]["predicted"] == 15
    assert Night.id_of(again.stderr) == Night.id_of(line)
    assert len(ray_head.jobs()) == num_before + 1

    goes_on = tmp_path / "goes_on"
    shell = f"echo begun; while [ ! -e {goes_on} ]; do sleep 0.1; done; exit 3"
    job_id = start_line(trusted, shell, "left")
    leaving = start("attach", job_id, *night.address, env=night.env)
    assert leaving.stdout is not None
    assert any("begun" in text for text in leaving.stdout)
    leaving.send_signal(signal.SIGTERM)
    _, stderr = leaving.communicate(timeout=WAIT_S)
    assert (leaving.returncode, ray_head.jobs()[-1]["status"]) == (6, "RUNNING"), stderr
    goes_on.touch()
    assert night.ask("attach", job_id).code == 3


def test_a_stopped_submission_stops_its_job_and_frees_the_cluster(
    ray_head: RayHead, photos: Path, tmp_path: Path
):
    night = Night(ray_head, photos, tmp_path)
    process = start(*night.arguments, *night.allowed, env=night.env)
    assert process.stdout is not None
    assert any(re.search("Running entrypoint|listing ", line) for line in process.stdout)
    process.terminate()
    _, stderr = process.communicate(timeout=2 * WAIT_S)
    assert (process.returncode, ray_head.jobs()[-1]["status"]) == (6, "STOPPED"), stderr
    run = ("run", night.job, "--date", DATE, *night.allowed, "--json")
    done = pipeline(*run, "--address", ray_head.address, env=ray_head.secret)
    assert done.code == 0, done.stdout + done.stderr
    assert (done.json["rows"]["predicted"], done.json["hardware"]["cpus"]) == (15, 2.0)


def test_a_token_that_expires_is_read_again(
    trusted: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    token = trusted.secret["RAY_AUTH_TOKEN"].encode()
    names = {"first": token, "second": token}
    job_id = start_line(trusted, "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.5; done", "expires")
    file = tmp_path / "token"
    file.write_text("first\n")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    expired = Rule(UNAUTHORIZED, method="GET", head="bearer first", first=1, last=10**9)
    seen: list[str] = []
    with FaultProxy(trusted.url) as proxy:
        # A gateway with short-lived tokens of its own.
        proxy.edit_head = lambda head: re.sub(
            rb"Bearer (first|second)", lambda match: b"Bearer " + names[match[1].decode()], head
        )
        client = connect_job_api(proxy.url)

        def write(piece: str) -> None:
            seen.append(piece)
            proxy.rules = (expired,)

        proxy.on_fault = lambda action: file.write_text(
            "second" if action == UNAUTHORIZED else file.read_text()
        )
        done = attach_to(client, job_id, write)
    assert done.exit_code == 0
    assert [line for line in "".join(seen).splitlines() if line.isdigit()] == [*"12345678"]
    assert UNAUTHORIZED in {action for _, _, action in proxy.requests}


def test_a_job_without_a_driver_ends_and_the_next_submission_is_another_attempt(
    ray_head: RayHead, photos: Path, tmp_path: Path
):
    night = Night(ray_head, photos, tmp_path)
    (agent,) = [p for p in ray_head.processes() if "runtime_env/agent/main.py" in cmdline(p)]
    agent.suspend()  # what sets up the job's folder and package
    try:
        done = night.submit("--start-timeout-s", "12", "--json")
    finally:
        agent.resume()
    assert done.code == 7, done.stdout + done.stderr
    assert (
        "pending for 12 s, and no driver has started: Job has not started yet" in done.json["error"]
    )
    assert "runtime environment" in done.json["error"]
    assert "pending (timeout 12 s)" in done.stderr
    first = Night.id_of(done.stderr)
    wait_for(lambda: ray_head.jobs()[-1]["status"] in ("STOPPED", "FAILED"))
    assert ray_head.jobs()[-1]["submission_id"] == first
    again = night.submit("--json", "--start-timeout-s", "12")
    assert again.code == 0, again.stderr
    assert Night.id_of(again.stderr) == f"{first[:-1]}2"


def cmdline(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_backfill_is_one_job_for_all_dates(ray_head: RayHead, photos: Path, tmp_path: Path):
    night = Night(ray_head, photos, tmp_path)
    num_before = len(ray_head.jobs())
    dates = ("--from", "2026-11-23", "--to", DATE, "--newest-first")
    command = ("submit", night.job, *night.address, *dates, *night.allowed)
    done = pipeline(*command, "--json", env=night.env)
    assert done.code == 0, done.stdout + done.stderr
    assert [day["outcome"] for day in done.json["dates"]] == ["published", "published"]
    assert len(ray_head.jobs()) == num_before + 1
    again = pipeline(*command, env=night.env)
    assert again.code == 0, again.stderr
    assert len(ray_head.jobs()) == num_before + 1  # all is there
    assert "2026-11-23" in again.stdout
    assert f"nightly-2026-11-23-to-{DATE}-" in again.stderr
