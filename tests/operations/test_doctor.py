"""`pipeline doctor`: problems are found without starting Ray, with the exit code of the run."""

from __future__ import annotations

import os
import re
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs.cli import photos_job, pipeline

from pipeline.operations.arguments import load_job
from pipeline.operations.doctor import doctor, idle_gpus
from pipeline.operations.machine_checks import look_at_access, look_at_machine
from pipeline.planning.allocation import Hardware

pytestmark = pytest.mark.no_ray


def looks(findings: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {check["check"]: (check["status"], check["found"]) for check in findings["checks"]}


def test_a_valid_job_passes_all_checks_and_leaves_no_files(tmp_path: Path) -> None:
    job = photos_job(tmp_path, 20)
    result = pipeline("doctor", job, "--json")
    assert result.code == 0, result.stdout
    seen = looks(result.json)
    assert all(status != "fail" for status, _ in seen.values()), seen
    assert "20 shards" in seen["source"][1]
    assert {
        seen[name][0] for name in ("packages", "sink", "clock", "model", "one row", "resources")
    } == {"ok"}
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


PROBLEMS = [
    ("source.uri=/nowhere/at/all", "source", 8, "no such file or folder"),
    ("sink.uri=s3://bucket/out", "sink", 7, "127.0.0.1:1"),
    ("model.factory=os:getcwd", "model", 2, "--allow-import"),
    ("model.factory=models:wants_a_name", "model", 2, "missing a required argument: 'name'"),
    ("model.labels=[a, b]", "one row", 2, "the model has 5 outputs, model.labels 2"),
    ("resources.num_gpus=1", "resources", 2, "sees no CUDA device"),
    ("model.precision=fp16", "runtime", 2, "needs a GPU"),
]


@pytest.mark.slow
def test_a_problem_fails_its_own_check_with_the_code_of_the_run(tmp_path: Path) -> None:
    job = photos_job(tmp_path, 20)
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "SECRET-IN-NO-OUTPUT"}
    keys["CUDA_VISIBLE_DEVICES"] = ""
    env = {**keys, "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"}
    for override, check, code, words in PROBLEMS:
        no_try = [] if check == "one row" else ["--no-try"]
        result = pipeline("doctor", job, "--json", "--set", override, *no_try, env=env)
        assert result.code == code, result.stdout
        statuses = looks(result.json).items()
        failed = {name: text for name, (status, text) in statuses if status == "fail"}
        assert [*failed] == [check]
        assert words in failed[check]
        assert "SECRET" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("address", "variables", "status", "words"),
    [
        (None, {}, "ok", "embedded"),
        (None, {"RAY_AUTH_MODE": "disabled"}, "warn", "unset it"),
        ("10.1.2.3:6379", {}, "warn", "RAY_AUTH_TOKEN"),
        ("10.1.2.3:6379", {"RAY_AUTH_TOKEN": "t0ken"}, "warn", "sent unencrypted"),
        ("10.1.2.3:6379", {"RAY_AUTH_TOKEN": "t0ken", "RAY_USE_TLS": "1"}, "ok", "10.1.2.3"),
        (
            "http://ray.example:8265",
            {"RAY_AUTH_TOKEN": "x", "RAY_USE_TLS": "1"},
            "warn",
            "unencrypted",
        ),
        ("https://ray.example:8265", {"RAY_AUTH_TOKEN": "t0ken"}, "ok", "ray.example"),
        ("127.0.0.1:6379", {}, "ok", "127.0.0.1"),
        ("[::1]:6379", {}, "ok", "::1"),
    ],
)
def test_access_to_ray_is_reported_without_the_token(
    address: str | None,
    variables: dict[str, str],
    status: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (finding,) = look_at_access(address)
    assert (finding.check, finding.status, finding.exit_code) == ("ray access", status, 0)
    assert words in finding.found
    assert "t0ken" not in str(finding)


@pytest.mark.parametrize(("num_gpus", "warnings"), [(0, 1), (1, 0)])
def test_idle_gpus_are_reported(num_gpus: int, warnings: int, tmp_path: Path) -> None:
    job = load_job(photos_job(tmp_path, 1, resources={"num_gpus": num_gpus}), date="2026-11-24")
    seen = [*idle_gpus(Hardware(2, 16.0, 2.0, ("L4",)), job)]
    assert len(seen) == warnings
    assert all("2 (L4): the job uses no GPU" in finding.found for finding in seen)
    assert [*idle_gpus(Hardware(2, 16.0, 0.0), job)] == []


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_a_cluster_that_does_not_answer_fails_with_the_code_of_the_run(scheme: str) -> None:
    with socket.socket() as taken:  # refuses connections, and no other process can take it
        taken.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{taken.getsockname()[1]}"
        findings, code = doctor(address=address)
    assert code == 7
    assert looks(findings)["cluster"][0] == "fail"
    assert "checks failed; the first is cluster: " in findings["error"]
    assert address in looks(findings)["cluster"][1]
    assert "refused" in looks(findings)["cluster"][1]


def test_an_invalid_address_is_a_job_error() -> None:
    findings, code = doctor(address="head")
    assert (looks(findings)["cluster"][0], code) == ("fail", 2)
    assert "HOST:PORT" in looks(findings)["cluster"][1]


def test_a_token_that_others_can_read_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("t0ken")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    for mode, has_warning in ((0o644, True), (0o600, False)):
        os.chmod(token, mode)
        findings, _ = doctor()
        assert ("ray token" in looks(findings)) is has_warning


def test_autoload_variables_fail_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR", "1")
    findings, code = doctor()
    assert (findings["status"], code) == ("fail", 2)
    assert re.search("AUTOLOAD.*unset it", looks(findings)["ray environment"][1])


def test_an_unsuitable_package_is_reported_with_the_requirement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.0" if name == "pillow" else real(name))
    findings, code = doctor()
    status, text = looks(findings)["packages"]
    assert (status, code) == ("fail", 2)
    assert re.search(r"install pillow>=[0-9.]+ \(installed: 9\.0\)$", text)


def test_a_missing_gpu_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (gpu,) = (
        finding for finding in look_at_machine(None, wants_gpu=True) if finding.check == "gpu"
    )
    assert gpu.status == "warn"
    assert f"torch {torch.__version__} sees none: it is built for " in gpu.found
