"""A job submitted twice is one job: what is sent, what is refused before, and who is let in.

test_cluster_jobs tests what becomes of a job that was sent.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.inputs.photos import build_images
from support.runs.cli import pipeline, write_job
from support.servers.rayhead import RayHead

from pipeline.core.errors import GateRefused, InfraError, JobError, PipelineError, Stopped
from pipeline.execution.submit.client import connect_job_api
from pipeline.execution.submit.job import ClusterJob, JobLog
from pipeline.execution.submit.submission import Submission
from pipeline.operations.submit import submit

pytestmark = pytest.mark.early

DATE = "2026-11-24"
PARTITION = f"date={DATE}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    build_images(folder, 16, seed=3, num_bad=1)
    return folder


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is taken, so that no other process can take it, and refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def photo_job(tmp_path: Path, photos: Path) -> str:
    source = {"uri": str(photos), "format": "images"}
    return write_job(tmp_path / "photos.yaml", source, str(tmp_path / "out"))


def test_accepted_gates_are_submitted_verbatim():
    accept = ['volume=half; $(a) "day"', "constant='all' black"]
    override = 'source.uri="it\'s $HOME `false` &"'
    asked = Submission(
        "-x/job.yaml", DATE, overrides=[override], allow_import=["models"], accept=accept
    )
    command = shlex.split(asked.entrypoint)
    assert command[3:7] == ["run", "./job.yaml", "--date", DATE]
    sent = ["--set", override, "--allow-import", "models"]
    assert command[7:] == [*sent, "--accept", accept[0], "--accept", accept[1], "--json"]
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
def test_the_document_is_found_in_the_log_wherever_the_log_is_cut(size: int, ending: str):
    first, document = '{"status": "old"}', '{"status": "published", "rows": {"total": 3}}'
    log = f'Running\n{{"not": "ours"}}\n{{broken\n{first}\nerror: x\n{document}{ending}'
    passed: list[str] = []
    lengths = [*range(size, len(log), size), len(log)]
    client = SimpleNamespace(get_job_logs=lambda _: log[: lengths.pop(0)])
    with JobLog(client, "a-b-12345678-a1", passed.append) as job_log:
        while lengths:
            job_log.read()
    assert job_log.document == document
    others = ["Running", '{"not": "ours"}', "{broken", "error: x", first]
    assert "".join(passed).split() == " ".join([*others, ending]).split()


def test_a_job_that_left_no_document_is_an_error_with_its_own_code():
    for code, error_class in ((0, InfraError), (1, PipelineError), (3, GateRefused), (6, Stopped)):
        with pytest.raises(error_class) as caught:
            ClusterJob("a-b-12345678-a1", code).with_document()
        assert type(caught.value) is error_class


@pytest.mark.slow
def test_a_head_that_does_not_answer_is_infrastructure_trouble(
    photos: Path, tmp_path: Path, closed_port: int
):
    address = f"127.0.0.1:{closed_port}"
    done = pipeline("run", photo_job(tmp_path, photos), "--address", address, "--date", DATE)
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
def test_an_unknown_token_is_a_job_error(
    variables: dict[str, str],
    has_file: bool,
    words: str,
    ray_head: RayHead,
    photos: Path,
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
def test_a_right_token_lets_doctor_and_plan_in(ray_head: RayHead, photos: Path, tmp_path: Path):
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
    is_head = "this is the address of a cluster's head, for `pipeline run`" in str(refused.value)
    assert is_head is ("://" not in address)


@pytest.mark.parametrize(
    ("override", "error_class", "words"),
    [
        ("model.nme=x", JobError, "nme: unknown key"),
        ("sink.uri=out", JobError, "sink.uri = out is relative, but the job runs"),
        ("model.factory=nets:net", InfraError, "no Ray job API answers"),  # it may be there
        ("sink.storage_options.secret=hunter2", JobError, "as ${env:NAME}"),
        ('gates.golden={uri: /g, "storage\\x5foptions": {secret: hunter2}}', JobError, "${env:"),
    ],
)
def test_a_wrong_job_is_refused_before_anything_is_sent(
    override: str,
    error_class: type[PipelineError],
    words: str,
    photos: Path,
    tmp_path: Path,
    closed_port: int,
    caplog: pytest.LogCaptureFixture,
):
    (tmp_path / "nets.py").touch()
    job, address = photo_job(tmp_path, photos), f"http://127.0.0.1:{closed_port}"
    with pytest.raises(error_class) as refused:
        submit(job, address=address, write=str, date=DATE, overrides=[override])
    assert words in str(refused.value)
    assert (address in str(refused.value)) is (error_class is InfraError)
    assert "hunter2" not in str(refused.value) + caplog.text
    is_beside = "nets.py is not sent with the job: give --code" in caplog.text
    assert is_beside is ("nets:" in override)
