"""What `pipeline manifest kubernetes` prints: valid, runnable, and free of secrets."""

from __future__ import annotations

import functools
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.runs import kuberay
from support.runs.checkout import ROOT
from support.runs.command_lines import parsed

from pipeline.commands.app import app
from pipeline.commands.main import _guard
from pipeline.core.errors import JobError
from pipeline.operations.clusters.kubernetes.asked import KINDS
from pipeline.operations.clusters.manifest import Manifest, manifest

IMAGE = "registry.example/batch:1"
OPTIONS: dict[str, dict[str, Any]] = {
    "job": {"date": "2026-11-24"},
    "cron-job": {"cron": "0 2 * * *"},
    "indexed-job": {"from_": "2026-11-01", "to": "2026-11-24"},
    "ray-job": {"date": "2026-11-24"},
    "ray-cron-job": {"cron": "0 2 * * *", "time_zone": "Europe/Berlin"},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"submission": "http", "secrets": ["lake", "lake.2"], "workers": 5, "cpus": 3},
    {"queue": "nights", "allow_import": ["ours"]},
]
NEEDS_SCHEMAS = pytest.mark.skipif(kuberay.folder() is None, reason="KubeRay's schemas are data")
JOB = """\
# Comments, "quotes", tabs\tand --- stay as they are.
source: {uri: "s3://lake/photos/${date}", format: images, storage_options: {key: "${env:KEY_ID}"}}
model: {factory: "ours:model", labels: [a, "b: c"]}
resources: {num_gpus: 0.5}
sink: {uri: "s3://lake/labels", partition: "date=${date}"}
run: {deadline: 2h30m}
"""


@pytest.fixture
def job(tmp_path: Path) -> str:
    path = tmp_path / "Nightly labels_2.yaml"
    path.write_text(JOB)
    return str(path)


def printed(job: str, kind: str, **options: Any) -> Manifest:
    return manifest("kubernetes", job, kind=kind, image=IMAGE, **OPTIONS[kind], **options)


def pod_specs(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The specs of all pods in a document."""
    found = []
    for key, value in document.items():
        if key == "containers":
            found.append(document)
        for each in value if isinstance(value, list) else [value]:
            found += pod_specs(each) if isinstance(each, dict) else []
    return found


def ray_spec(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["spec"].get("jobTemplate", document["spec"])
    return found


def command_of(document: dict[str, Any]) -> str:
    if document["apiVersion"].startswith("ray"):
        return str(ray_spec(document)["entrypoint"])
    [pod] = pod_specs(document)
    return str(pod["containers"][0]["command"][-1])


@NEEDS_SCHEMAS
@pytest.mark.parametrize("options", VARIANTS, ids=["plain", "http", "queue"])
@pytest.mark.parametrize("kind", [kind for kind in OPTIONS if kind.startswith("ray")])
def test_ray_documents_are_as_kuberays_schemas_say(job: str, kind: str, options: dict[str, Any]):
    if kind == "ray-cron-job":
        options = {name: value for name, value in options.items() if name != "queue"}
    _, document = printed(job, kind, **options).documents
    assert kuberay.problems(document) == []
    kuberay.require_rules(ray_spec(document))
    misspelt = {**document, "spec": {**document["spec"], "backofLimit": 1}}
    [problem] = kuberay.problems(misspelt)
    assert "backofLimit" in problem


@NEEDS_SCHEMAS
@pytest.mark.parametrize("kind", [kind for kind in OPTIONS if not kind.startswith("ray")])
def test_pods_of_plain_jobs_are_as_the_schema_of_a_pod_says(job: str, kind: str):
    _, document = printed(job, kind, secrets=["lake"]).documents
    [pod] = pod_specs(document)
    assert kuberay.problems_of_pod({"spec": pod}) == []


@pytest.mark.parametrize("options", VARIANTS, ids=["plain", "http", "queue"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_what_is_printed_is_safe_yaml_that_runs_the_job_as_it_stands(
    job: str, kind: str, options: dict[str, Any]
):
    if kind == "ray-cron-job":
        options = {name: value for name, value in options.items() if name != "queue"}
    made = printed(job, kind, **options)
    config, document = yaml.safe_load_all(made.text)
    assert (config, document) == made.documents
    assert config["data"]["job.yaml"] == JOB
    name = document["metadata"]["name"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(name) <= (63 if document["kind"] == "Job" else 47)

    run = parsed(re.sub(r'"\$\(.*\)"', "2026-11-01", command_of(document)))
    assert run["command"] == "run"
    assert "8" in run["ok_exit"].split(",")
    assert [*run["allow_import"]] == options.get("allow_import", [])
    if "date" in OPTIONS[kind]:
        assert run["date"] == "2026-11-24"
    mounts = [
        (mount["mountPath"], volume["configMap"]["name"])
        for pod in pod_specs(document)
        for volume in pod.get("volumes", [])
        for mount in pod["containers"][0]["volumeMounts"]
        if volume["name"] == mount["name"] and "configMap" in volume
    ]
    assert mounts == [(str(Path(run["job"]).parent), config["metadata"]["name"])]

    for pod in pod_specs(document):
        [container] = pod["containers"]
        assert container["image"] == IMAGE
        assert "env" not in container
        names = [entry["secretRef"]["name"] for entry in container.get("envFrom", [])]
        assert names == options.get("secrets", [])
        assert pod["restartPolicy"] == "Never"
        assert pod["securityContext"]["runAsNonRoot"] is True
    assert bool(options.get("queue")) == ("kueue.x-k8s.io/queue-name: nights" in made.text)
    assert bool(options.get("queue")) == ("suspend: true" in made.text)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize(("deadline", "run_s"), [("2h30m", 9000), ("06:30", 86400), (None, None)])
def test_a_deadline_is_above_that_of_the_run(
    tmp_path: Path, kind: str, deadline: str | None, run_s: int | None
):
    path = tmp_path / "night.yaml"
    path.write_text(JOB.replace("2h30m", "null" if deadline is None else f'"{deadline}"'))
    _, document = printed(str(path), kind).documents
    owner = ray_spec(document) if kind.startswith("ray") else pod_specs(document)[0]
    assert ("activeDeadlineSeconds" in owner) == (run_s is not None)
    assert run_s is None or owner["activeDeadlineSeconds"] > run_s


def test_an_indexed_job_has_a_pod_for_each_date_and_none_stops_the_others(job: str):
    _, document = printed(job, "indexed-job").documents
    spec = document["spec"]
    assert (spec["completions"], spec["maxFailedIndexes"]) == (24, 24)
    assert spec["podFailurePolicy"]["rules"][0]["action"] == "FailIndex"
    assert "2026-11-01 +$JOB_COMPLETION_INDEX days" in command_of(document)


@pytest.mark.parametrize("kind", ["job", "cron-job", "indexed-job"])
def test_what_no_retry_changes_is_not_tried_again(job: str, kind: str):
    _, document = printed(job, kind).documents
    spec = document["spec"].get("jobTemplate", document)["spec"]
    fail, ignore = spec["podFailurePolicy"]["rules"]
    assert fail["onExitCodes"]["values"] == [1, 2, 3, 5]
    [pod] = pod_specs(document)
    assert fail["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert ignore["onPodConditions"] == [{"type": "DisruptionTarget"}]


def test_nothing_of_the_environment_is_printed(job: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KEY_ID", "AKIAVERYSECRET")
    for kind in OPTIONS:
        assert "AKIAVERYSECRET" not in printed(job, kind).text
        assert "${env:KEY_ID}" in printed(job, kind).text


@pytest.mark.parametrize(
    ("before", "line", "where"),
    [
        ("partition", 'storage_options: {secret: "hunter2hunter2"}', "sink.storage_options.secret"),
        ("labels", 'args: {at: "https://me:hunter2hunter2@host/"}', "model.args.at"),
    ],
)
def test_a_credential_in_the_job_is_refused_and_not_shown(
    tmp_path: Path, before: str, line: str, where: str
):
    path = tmp_path / "night.yaml"
    path.write_text(JOB.replace(f" {before}:", f" {line}, {before}:"))
    with pytest.raises(JobError, match=re.escape(where)) as caught:
        printed(str(path), "job")
    assert "hunter2" not in str(caught.value)


def test_the_image_has_what_the_job_needs_and_nothing_that_is_not_there(job: str):
    text = manifest("kubernetes", job, kind="dockerfile").text
    base, copies = (
        re.search(r"^FROM (\S+)$", text, re.M),
        re.findall(r"^COPY \S+ (.+) ", text, re.M),
    )
    assert base is not None
    assert re.fullmatch(r"rayproject/ray:\d+\.\d+\.\d+-py3\d+-gpu", base[1])
    for name in " ".join(copies).split():
        assert (ROOT / name).exists()
    extras = re.search(r"'\.\[([^]]*)\]'", text)
    assert extras is not None
    assert extras[1].split(",") == ["s3", "submit"]
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras[1].split(",")) <= set(known["optional-dependencies"])
    Path(job).write_text(JOB.replace("format: images", "format: audio"))
    text = manifest("kubernetes", job, kind="dockerfile").text
    assert "'.[audio,s3,submit]'" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--kind", "ray-job"], "a ray-job needs --image"),
        (["--kind", "pod", "--image", "i"], "write one of dockerfile, job"),
        (["--kind", "ray-job", "--image", "i", "--cron", "@daily"], "a ray-job takes no --cron"),
        (["--kind", "cron-job", "--image", "i"], "a cron-job needs --cron"),
        (
            ["--cron", "@daily", "--image", "i", "--date", "2026-11-24"],
            "a cron-job takes no --date",
        ),
        (["--kind", "ray-cron-job", "--cron", "@daily", "--image", "i", "--queue", "q"], "--queue"),
        (["--image", "i", "--secret", "KEY=hunter2"], "never a value"),
        (["--image", "i", "--time-zone", "Europe/Berlin"], "give --cron"),
        (["--from", "2026-11-24", "--to", "2026-11-23", "--image", "i"], "is after"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(
    job: str, options: list[str], said: str, capfd: pytest.CaptureFixture[str]
):
    assert _guard(functools.partial(app, ["manifest", "kubernetes", job, *options])) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    [line] = shown.err.splitlines()
    assert said in line
    assert "hunter2" not in line


def test_every_kind_is_tried_here():
    assert set(KINDS) == {*OPTIONS, "dockerfile"}
