"""Ids of attempts, and the attempt that a submission is about."""

from __future__ import annotations

import itertools
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core.errors import InfraError, JobError
from pipeline.execution.submit.attempts import (
    Attempt,
    attempts_at,
    find_attempts,
    find_newest,
    key_of,
)
from pipeline.execution.submit.code import Package
from pipeline.execution.submit.job import _choose, _send, wait_for_driver
from pipeline.execution.submit.submission import Submission, identify


def attempt(status: str, started_s_ago: float = 0.0, code: int | None = None) -> Attempt:
    details: Any = SimpleNamespace(
        status=SimpleNamespace(value=status),
        driver_exit_code=code,
        start_time=1000 * (time.time() - started_s_ago),
    )
    return Attempt("a-b-12345678-a1", "a-b-12345678", 1, details)


def test_an_id_has_the_names_and_differs_for_any_difference():
    key = key_of("nightly", "date=2026-11-24", ["run --date 2026-11-24", "{}", ""])
    assert re.fullmatch(r"nightly-date=2026-11-24-[0-9a-f]{8}", key)
    parts = ["ab", "c"], ["a", "bc"], ["ab", "c", ""], ["ab"]
    keys = {key_of("nightly", "all", list(part)) for part in parts}
    assert len(keys) == len(parts)


@pytest.mark.parametrize("name", ["my job", "../../x", "a/b?c#d", "\N{SNOWMAN}", "x" * 400])
def test_an_id_is_a_valid_file_name_for_any_name_of_a_job(name: str):
    key = key_of(name, name, [])
    assert re.fullmatch(r"[A-Za-z0-9._=-]{1,200}", key)


def test_a_job_pending_for_too_long_does_not_count_as_running():
    assert attempt("PENDING", 5).goes_on(60)
    assert not attempt("PENDING", 65).goes_on(60)
    assert attempt("RUNNING", 6500).goes_on(60)
    assert not any(attempt(end).goes_on(60) for end in ("STOPPED", "FAILED", "SUCCEEDED"))


def test_an_attempt_has_the_exit_code_of_the_run():
    ends = itertools.product(["FAILED"], range(1, 9))
    assert [attempt(status, code=code).exit_code for status, code in ends] == [*range(1, 9)]
    assert attempt("SUCCEEDED", code=0).exit_code == 0
    assert attempt("STOPPED").exit_code == 6
    for unknown in (None, -9, 127, 137):
        assert attempt("FAILED", code=unknown).exit_code is None
    assert attempt("RUNNING").exit_code is None


class ListedJobs:
    """A job API that lists in the order of texts, as Ray does, and takes no new job."""

    where = "http://head"

    def __init__(self) -> None:
        self.jobs: list[Any] = []

    def add(self, job_id: str, status: str, started_s_ago: float = 0.0, **metadata: str) -> None:
        details = attempt(status, started_s_ago).details
        details.submission_id, details.metadata, details.message = job_id, metadata, ""
        details.status.is_terminal = lambda: status not in ("PENDING", "RUNNING")
        self.jobs = sorted([*self.jobs, details], key=lambda job: str(job.submission_id))

    def list_jobs(self) -> list[Any]:
        return self.jobs

    def submit_job(self, submission_id: str, **_: Any) -> str:
        raise RuntimeError(f"{submission_id}: the answer was lost, or there is such a job")

    def get_job_info(self, job_id: str) -> Any:
        jobs = [job for job in self.jobs if job.submission_id == job_id]
        if not jobs:
            raise RuntimeError(f"no job {job_id}")
        return jobs[0]


def test_attempts_are_numbered_and_the_next_one_is_new():
    client, key = ListedJobs(), "a-b-12345678"
    assert _choose(client, key, lambda: True, 60) == (f"{key}-a1", True)
    for number in range(1, 11):
        client.add(f"{key}-a{number}", "FAILED")
    client.add("a-b-00000000-a99", "RUNNING")
    assert [attempt.number for attempt in attempts_at(client, key)] == [*range(1, 11)]
    assert _choose(client, key, lambda: True, 60) == (f"{key}-a11", True)
    client.add(f"{key}-a11", "SUCCEEDED")
    assert _choose(client, key, lambda: True, 60) == (f"{key}-a11", False)
    assert _choose(client, key, lambda: False, 60) == (f"{key}-a12", True)
    client.add(f"{key}-a12", "PENDING", 5)
    assert _choose(client, key, lambda: False, 60) == (f"{key}-a12", False)
    assert _choose(client, key, lambda: False, 4) == (f"{key}-a13", True)


@pytest.fixture
def teams(tmp_path: Path) -> dict[str, str]:
    """Job files of one name with two outputs."""
    paths = {}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (path := tmp_path / name / "nightly.yaml").write_text(f"sink: {{uri: 's3://{name}/out'}}\n")
        paths[name] = str(path)
    return paths


def test_a_job_file_selects_only_its_own_submissions(
    teams: dict[str, str],
):
    client = ListedJobs()
    for name, path in teams.items():
        for number, date in enumerate(("2026-11-24", "2026-11-25"), 1):
            known = {**identify(path), "date": date}
            client.add(f"{name}-{date}-12345678-a1", "SUCCEEDED", 60 / number, **known)
    assert find_newest(client, teams["a"]).job_id == "a-2026-11-25-12345678-a1"
    assert find_newest(client, teams["b"], "2026-11-24").job_id == "b-2026-11-24-12345678-a1"
    assert len(find_attempts(client, None)) == 4
    of_date = find_attempts(client, None, "2026-11-25")
    assert [attempt.job_id[0] for attempt in of_date] == ["a", "b"]
    client.add("a-x-12345678-a1", "RUNNING", 600, **identify(teams["a"]))
    assert find_newest(client, teams["a"]).job_id == "a-x-12345678-a1"
    assert find_newest(client, teams["b"]).job_id == "b-2026-11-25-12345678-a1"
    client.add("a-y-12345678-a1", "PENDING", **identify(teams["a"]))
    with pytest.raises(JobError, match="give one id: a-x-12345678-a1, a-y-12345678-a1"):
        find_newest(client, teams["a"])
    with pytest.raises(JobError, match=r"no job of .* for 2026-11-26 was submitted"):
        find_attempts(client, teams["b"], "2026-11-26")
    with pytest.raises(JobError, match="no job for 2026-11-26 was submitted"):
        find_attempts(client, None, "2026-11-26")
    with pytest.raises(JobError, match="no job none-x-12345678-a1 was submitted"):
        find_newest(client, "none-x-12345678-a1")
    with pytest.raises(JobError, match="cannot read the job file"):
        find_newest(client, "typo.yaml")


def test_a_follower_uses_the_start_timeout_of_the_submission():
    client, job_id = ListedJobs(), "a-b-12345678-a1"
    client.add(job_id, "PENDING", start_timeout_s="-1")
    with pytest.raises(InfraError, match="pending for -1 s, and no driver has started"):
        wait_for_driver(client, job_id, None, stops=False)


def test_of_two_submissions_with_one_id_one_owns_the_job(
    teams: dict[str, str],
):
    client, asked, package = ListedJobs(), Submission(teams["a"]), Package(Path(), "")
    with pytest.raises(InfraError, match="job a-b-12345678-a1: cannot be submitted"):
        _send(client, "a-b-12345678-a1", asked, package, "ours")
    client.add("a-b-12345678-a1", "RUNNING", submitter="ours")
    submitters = ("ours", "another")
    is_ours = [
        _send(client, "a-b-12345678-a1", asked, package, submitter) for submitter in submitters
    ]
    assert is_ours == [True, False]
