"""Jobs on a cluster: through its job API, and by connecting to it; a real Ray head, no mocks."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
from support.inputs.photos import build_images
from support.runs.cli import pipeline, start, write_job
from support.runs.published_rows import read_predictions
from support.servers.rayhead import RayHead

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import current_manifest
from pipeline.core.errors import GateRefused, InfraError, JobError, PipelineError, Stopped
from pipeline.core.failures import Reason
from pipeline.execution.submit.client import connect_job_api
from pipeline.execution.submit.job import error_without_document
from pipeline.execution.submit.log_follower import JobOutput
from pipeline.execution.submit.submission import Submission
from pipeline.operations.clusters import submit
from pipeline.storage.store import Store

pytestmark = pytest.mark.early

DATE = "2026-11-24"
PARTITION = f"date={DATE}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Reason]]:
    folder = tmp_path_factory.mktemp("photos")
    return folder, build_images(folder, 16, seed=3, num_bad=1)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is taken, so that no other process can take it, and refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def photo_job(tmp_path: Path, photos: tuple[Path, dict[str, Reason]], **sections: object) -> str:
    source = {"uri": str(photos[0]), "format": "images"}
    return write_job(tmp_path / "photos.yaml", source, str(tmp_path / "out"), **sections)


def wait_for_log(process: subprocess.Popen[str], stream: IO[str] | None) -> None:
    """Wait for the first line of the job's log: Ray's own, where it writes one, or ours."""
    assert stream is not None
    line = ""
    while "Running entrypoint" not in line and "listing " not in line:
        assert process.poll() is None
        line = stream.readline()


@pytest.mark.any_ray
def test_a_submitted_job_runs_on_the_cluster_and_its_log_comes_while_it_runs(
    ray_head: RayHead, photos: tuple[Path, dict[str, Reason]], tmp_path: Path, closed_port: int
):
    job = photo_job(tmp_path, photos, run={"slice_rows": 8})
    env = {
        **ray_head.secret,
        "AWS_SECRET_ACCESS_KEY": "not-for-the-job-list",
        "RAY_ADDRESS": f"http://127.0.0.1:{closed_port}",  # --address is what counts
        "PYTHONUNBUFFERED": "1",
    }
    store = Store(str(tmp_path / "out"))
    process = start(
        *("submit", job, "--address", ray_head.url, "--date", DATE, "--json"),
        *("--allow-import", "models"),
        env=env,
    )
    wait_for_log(process, process.stderr)
    assert current_manifest(store, Layout(PARTITION)) is None
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stdout + stderr
    document = json.loads(stdout)  # and nothing else is on stdout
    assert (document["status"], document["rows"]["total"]) == ("published", 16)
    assert "published; 16 rows = 15 predicted + 1 quarantined" in " ".join(stderr.split())
    bad = set(photos[1])
    ids = read_predictions(store.url(), PARTITION).column("row_id").to_pylist()
    assert len(ids) == 15
    assert set(ids) | bad == {str(p.relative_to(photos[0])) for p in photos[0].rglob("*.*")}
    mine = ray_head.jobs()[-1]
    assert re.fullmatch(rf"photos-{PARTITION}-[0-9a-f]{{8}}-a1", mine["submission_id"])
    assert mine["metadata"].items() > {"job": "photos", "date": DATE}.items()
    variables = {"RAY_JOB_STOP_WAIT_TIME_S", "PIPELINE_SUBMITTED"}
    assert mine["runtime_env"]["env_vars"].keys() == variables
    assert "not-for-the-job-list" not in json.dumps(ray_head.jobs())


@pytest.mark.slow
def test_a_refused_gate_comes_back_as_the_exit_code_and_arguments_pass_the_shell_unharmed(
    ray_head: RayHead, photos: tuple[Path, dict[str, Reason]], tmp_path: Path
):
    empty = tmp_path / 'it\'s "$HOME" $(false); `false` &'
    empty.mkdir()
    job = photo_job(tmp_path, photos)
    arguments = ["--allow-import", "models", "--set", f"source.uri={json.dumps(str(empty))}"]
    done = pipeline(
        "submit", job, "--address", ray_head.url, "--date", DATE, *arguments, env=ray_head.secret
    )
    assert done.code == 3, done.stdout + done.stderr
    assert "not_empty" in done.stdout  # without --json the log, with its table, and no document
    assert '"status"' not in done.stdout + done.stderr
    sent = shlex.split(ray_head.jobs()[-1]["entrypoint"])
    assert sent[-len(arguments) - 1 :] == [*arguments[2:], *arguments[:2], "--json"]
    assert current_manifest(Store(str(tmp_path / "out")), Layout(PARTITION)) is None


def test_what_is_accepted_goes_along_as_it_was_said():
    accept = ['volume=half; $(a) "day"', "constant='all' black"]
    asked = Submission(
        "-x/job.yaml", DATE, overrides=["a.b=1"], allow_import=["models"], accept=accept
    )
    command = shlex.split(asked.entrypoint)
    assert command[3:7] == ["run", "./job.yaml", "--date", DATE]
    assert command[-5:] == ["--accept", accept[0], "--accept", accept[1], "--json"]
    assert shlex.split(replace(asked, quiet=True).entrypoint) == [*command, "--quiet"]
    week = replace(asked, date=None, from_=DATE, to="2026-11-30", only="missing")
    dates = f"./job.yaml --from {DATE} --to 2026-11-30 --only missing --set"
    assert f" -m pipeline backfill {dates} " in week.entrypoint
    faster = replace(week, newest_first=True)
    added = set(shlex.split(faster.entrypoint)) - set(shlex.split(week.entrypoint))
    assert added == {"--newest-first"}
    assert faster.decides == week.decides


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("ending", ["", "\n", "\nRay says good-bye\n"])
def test_the_document_is_taken_out_of_the_log_wherever_the_log_is_cut(size: int, ending: str):
    first, document = '{"status": "old"}', '{"status": "published", "rows": {"total": 3}}'
    log = f'Running\n{{"not": "ours"}}\n{{broken\n{first}\nerror: x\n{document}{ending}'
    passed: list[str] = []
    output = JobOutput(passed.append)
    for start_at in range(0, len(log), size):
        output.add(log[start_at : start_at + size])
    assert output.end() == document
    others = ["Running", '{"not": "ours"}', "{broken", "error: x", first]
    assert "".join(passed).split() == " ".join([*others, ending]).split()


def test_a_job_that_left_no_document_is_an_error_with_its_own_code():
    for code, error_class in ((0, InfraError), (1, PipelineError), (3, GateRefused), (6, Stopped)):
        assert type(error_without_document(code)) is error_class


@pytest.mark.slow
def test_a_stopped_submission_stops_the_job_and_a_rerun_is_free_to_go(
    ray_head: RayHead, photos: tuple[Path, dict[str, Reason]], tmp_path: Path
):
    job = photo_job(tmp_path, photos)
    arguments = (job, "--date", DATE, "--allow-import", "models")
    process = start(
        *("submit", *arguments, "--address", ray_head.url),
        env={**ray_head.secret, "PYTHONUNBUFFERED": "1"},
    )
    wait_for_log(process, process.stdout)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 6, stdout + stderr
    assert ray_head.jobs()[-1]["status"] == "STOPPED"
    # By connecting to the cluster, the other way to use it.
    done = pipeline("run", *arguments, "--address", ray_head.address, "--json", env=ray_head.secret)
    assert done.code == 0, done.stdout + done.stderr
    assert done.json["rows"]["predicted"] == 15
    assert done.json["hardware"]["cpus"] == 2.0


@pytest.mark.parametrize("command", ["submit", pytest.param("run", marks=pytest.mark.slow)])
def test_an_address_where_nothing_answers_is_infrastructure_trouble(
    command: str, photos: tuple[Path, dict[str, Reason]], tmp_path: Path, closed_port: int
):
    job = photo_job(tmp_path, photos)
    address = f"{'http://' if command == 'submit' else ''}127.0.0.1:{closed_port}"
    done = pipeline(command, job, "--address", address, "--date", DATE)
    assert done.code == 7
    assert address in done.stderr
    assert "refused" in done.stderr


WRONG = "f" * 64
NONE_SENT = "the cluster wants a token: set RAY_AUTH_TOKEN to that of its head (and RAY_AUTH_MODE="
OTHER = "the cluster wants another token than that of RAY_AUTH_TOKEN, of RAY_AUTH_TOKEN_PATH or in"
TOKENS = [
    ({}, False, NONE_SENT),
    ({"RAY_AUTH_TOKEN": WRONG}, False, OTHER),
    ({}, True, NONE_SENT),
    ({"RAY_AUTH_MODE": "token"}, True, OTHER),
]
"""The environment, whether ~/.ray/auth_token has another one, and what is said."""


@pytest.mark.slow
@pytest.mark.parametrize(("variables", "has_file", "words"), TOKENS)
def test_a_token_that_the_cluster_does_not_know_is_the_users_mistake(
    variables: dict[str, str],
    has_file: bool,
    words: str,
    ray_head: RayHead,
    photos: tuple[Path, dict[str, Reason]],
    tmp_path: Path,
):
    job, home = photo_job(tmp_path, photos), tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    if has_file:
        (home / ".ray" / "auth_token").write_text(WRONG)
        (home / ".ray" / "auth_token").chmod(0o600)
    env = {**variables, "HOME": str(home)}
    at_head, at_api = ("--address", ray_head.address), ("--address", ray_head.url)
    for command in (
        ("run", job, *at_head),
        ("plan", job, *at_head, "--no-try"),
        ("submit", job, *at_api),
    ):
        done = pipeline(*command, "--json", env=env)
        assert done.code == 2, done.stderr
        assert words in done.json["error"]
        assert WRONG not in done.stdout + done.stderr
    for address in (at_head, at_api):
        looked = pipeline("doctor", *address, "--json", env=env)
        (check,) = [c for c in looked.json["checks"] if c["check"] == "cluster"]
        assert (looked.code, check["status"]) == (2, "fail")
        assert words in check["found"]
        assert "Unauthenticated" not in looked.stderr  # of Ray's core


@pytest.mark.slow
def test_a_right_token_lets_doctor_and_plan_in(
    ray_head: RayHead, photos: tuple[Path, dict[str, Reason]], tmp_path: Path
):
    looked = pipeline("doctor", "--address", ray_head.address, "--json", env=ray_head.secret)
    assert looked.code == 0, looked.stdout
    assert "lets us in" in looked.stdout
    at_head = ("--address", ray_head.address, "--no-try", "--json")
    planned = pipeline("plan", photo_job(tmp_path, photos), *at_head, env=ray_head.secret)
    assert planned.json["cluster"].endswith("its head answers and lets us in")


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto", "http://", "http://h:port"]
)
def test_another_kind_of_address_is_refused_with_the_right_form(address: str):
    with pytest.raises(JobError, match="http://HOST:8265") as refused:
        connect_job_api(address)
    is_head = "that is the address of a cluster's head, for `pipeline run`" in str(refused.value)
    assert is_head is ("://" not in address)


@pytest.mark.parametrize(
    ("override", "error_class", "words"),
    [
        ("model.nme=x", JobError, "nme: unknown key"),
        ("sink.uri=out", JobError, "sink.uri = out is relative; submit runs elsewhere"),
        ("model.factory=nets:net", InfraError, "no Ray job API answers"),  # it may be there
        ("sink.storage_options.secret=hunter2", JobError, "as ${env:NAME}"),
        ('gates.golden={uri: /g, "storage\\x5foptions": {secret: hunter2}}', JobError, "${env:"),
    ],
)
def test_what_is_wrong_with_the_job_is_said_before_anything_is_sent(
    override: str,
    error_class: type[PipelineError],
    words: str,
    photos: tuple[Path, dict[str, Reason]],
    tmp_path: Path,
    closed_port: int,
    caplog: pytest.LogCaptureFixture,
):
    (tmp_path / "nets.py").touch()
    asked = Submission(photo_job(tmp_path, photos), DATE, overrides=[override])
    with pytest.raises(error_class) as refused:
        submit(asked, f"http://127.0.0.1:{closed_port}", write=str)
    assert words in str(refused.value)
    assert "hunter2" not in str(refused.value) + caplog.text
    is_beside = "nets.py is not sent along with the job: give --code" in caplog.text
    assert is_beside is ("nets:" in override)
