"""Jobs on a cluster: through its job API, and by connecting to it; a real Ray head, no mocks."""

from __future__ import annotations

import datetime as dt
import json
import shlex
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli import pipeline, start, write_job
from rayhead import RayHead

from pipeline.errors import PipelineError
from pipeline.layout import Layout
from pipeline.manifest import current_manifest, read_predictions
from pipeline.photos import Built, build_images
from pipeline.storage import Store
from pipeline.submit import _exit_code, entrypoint

DATE = "2026-11-24"
PARTITION = f"date={DATE}"
LITE0 = {"name": "efficientnet-lite0", "factory": None, "labels": None}


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with RayHead() as head:
        yield head


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Built]:
    folder = tmp_path_factory.mktemp("photos")
    return folder, build_images(folder, 16, seed=3, num_bad=1)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is taken, so that nobody else can, and refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def photo_job(tmp_path: Path, photos: tuple[Path, Built], **sections: object) -> str:
    source = {"uri": str(photos[0]), "format": "images"}
    return write_job(tmp_path / "photos.yaml", source, str(tmp_path / "out"), **sections)


def test_a_submitted_job_runs_on_the_cluster_and_its_log_comes_while_it_runs(
    head: RayHead, photos: tuple[Path, Built], tmp_path: Path, closed_port: int
):
    job = photo_job(tmp_path, photos, model=LITE0, transform=None, run={"slice_rows": 8})
    env = {
        **head.secret,
        "AWS_SECRET_ACCESS_KEY": "not-for-the-job-list",
        "RAY_ADDRESS": f"http://127.0.0.1:{closed_port}",  # --address is what counts
        "PYTHONUNBUFFERED": "1",
    }
    store = Store(str(tmp_path / "out"))
    process = start("submit", job, "--address", head.url, "--date", DATE, env=env)
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first
    assert current_manifest(store, Layout(PARTITION)) is None
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stdout + stderr
    document = json.loads(stdout.splitlines()[-1])
    assert (document["status"], document["rows"]["total"]) == ("published", 16)

    bad = set(photos[1].bad)
    ids = read_predictions(store.url(), PARTITION).column("row_id").to_pylist()
    assert len(ids) == 15
    assert set(ids) | bad == {str(p.relative_to(photos[0])) for p in photos[0].rglob("*.*")}
    mine = head.jobs()[-1]
    assert mine["metadata"] == {"job": "photos", "date": DATE}
    assert mine["runtime_env"]["env_vars"].keys() == {"RAY_JOB_STOP_WAIT_TIME_S"}
    assert "not-for-the-job-list" not in json.dumps(head.jobs())


def test_a_refused_gate_comes_back_as_the_exit_code_and_arguments_pass_the_shell_unharmed(
    head: RayHead, photos: tuple[Path, Built], tmp_path: Path
):
    empty = tmp_path / 'it\'s "$HOME" $(false); `false` &'
    empty.mkdir()
    job = photo_job(tmp_path, photos)
    arguments = ["--allow-import", "models", "--set", f"source.uri={json.dumps(str(empty))}"]
    done = pipeline(
        "submit", job, "--address", head.url, "--date", DATE, *arguments, env=head.secret
    )
    assert done.code == 3, done.stdout + done.stderr
    assert "not_empty" in done.stdout
    sent = shlex.split(head.jobs()[-1]["entrypoint"])
    assert sent[-len(arguments) :] in (arguments, arguments[2:] + arguments[:2])
    assert current_manifest(Store(str(tmp_path / "out")), Layout(PARTITION)) is None


@pytest.mark.parametrize("kind", [PipelineError, *PipelineError.__subclasses__()])
def test_every_exit_code_of_the_pipeline_comes_back(kind: type[PipelineError]):
    details = SimpleNamespace(status="FAILED", driver_exit_code=kind.exit_code, message="")
    assert _exit_code(details, "job") == kind.exit_code


def test_what_is_accepted_goes_along_as_it_was_said():
    accept = ['volume=half; $(a) "day"', "constant='all' black"]
    command = shlex.split(entrypoint(dt.date(2026, 11, 24), ["a.b=1"], ["models"], accept))
    assert command[-4:] == ["--accept", accept[0], "--accept", accept[1]]


def test_a_stopped_submission_stops_the_job_and_a_rerun_is_free_to_go(
    head: RayHead, photos: tuple[Path, Built], tmp_path: Path
):
    job = photo_job(tmp_path, photos)
    arguments = (job, "--date", DATE, "--allow-import", "models")
    process = start(
        *("submit", *arguments, "--address", head.url),
        env={**head.secret, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    while "Running entrypoint" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 6, stdout + stderr
    assert head.jobs()[-1]["status"] == "STOPPED"
    # By connecting to the cluster, the other way to use it.
    done = pipeline("run", *arguments, "--address", head.address, "--json", env=head.secret)
    assert done.code == 0, done.stdout + done.stderr
    assert done.json["rows"]["predicted"] == 15
    assert done.json["hardware"]["cpus"] == 2.0


@pytest.mark.parametrize("command", ["submit", "run"])
def test_an_address_where_nothing_answers_is_infrastructure_trouble(
    command: str, photos: tuple[Path, Built], tmp_path: Path, closed_port: int
):
    job = photo_job(tmp_path, photos)
    address = f"{'http://' if command == 'submit' else ''}127.0.0.1:{closed_port}"
    done = pipeline(command, job, "--address", address, "--date", DATE)
    assert done.code == 7
    assert address in done.stderr
    assert "refused" in done.stderr


def test_a_token_that_the_cluster_does_not_know_is_the_users_mistake(
    head: RayHead, photos: tuple[Path, Built], tmp_path: Path
):
    job = photo_job(tmp_path, photos)
    for env in ({}, {"RAY_AUTH_TOKEN": "f" * 64}):
        done = pipeline("submit", job, "--address", head.url, env=env)
        assert done.code == 2
        assert "RAY_AUTH_TOKEN" in done.stderr


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto", "http://", "http://h:port"]
)
def test_another_kind_of_address_is_refused_with_the_right_form(
    address: str, photos: tuple[Path, Built], tmp_path: Path
):
    done = pipeline("submit", photo_job(tmp_path, photos), "--address", address)
    assert done.code == 2
    assert "http://HOST:8265" in done.stderr


def test_what_is_wrong_with_the_job_is_said_before_anything_is_sent(
    photos: tuple[Path, Built], tmp_path: Path, closed_port: int
):
    job = photo_job(tmp_path, photos)
    nowhere = ("--address", f"http://127.0.0.1:{closed_port}")
    wrong = pipeline("submit", job, *nowhere, "--set", "model.nme=x")
    assert (wrong.code, "nme: unknown key" in wrong.stderr) == (2, True)
    secret = pipeline("submit", job, *nowhere, "--set", "sink.storage_options.secret=hunter2")
    assert secret.code == 2
    assert "hunter2" not in secret.stderr
