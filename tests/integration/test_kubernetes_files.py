"""The files for Kubernetes: as the schemas of KubeRay say, and what they start is a run."""

from __future__ import annotations

import json
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from support.runs.checkout import ROOT
from support.runs.command_lines import parsed

FOLDER = ROOT / "jobs" / "schedulers" / "kubernetes"
IMAGE = (FOLDER / "Dockerfile").read_text()


@cache
def document(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def pod_specs(value: Any) -> list[dict[str, Any]]:
    """The specs of all pods in a document."""
    if isinstance(value, list):
        return [spec for item in value for spec in pod_specs(item)]
    if not isinstance(value, dict):
        return []
    return [value] if "containers" in value else pod_specs([*value.values()])


def cron_job() -> dict[str, Any]:
    return document("cron_job.yaml")["spec"]["jobTemplate"]["spec"]


_FILES = {"RayJob": "rayjobs.json", "RayCronJob": "raycronjobs.json"}
_KEPT = "x-kubernetes-preserve-unknown-fields"


def schemas() -> Path | None:
    """Where the schemas are; None if they are not here: they are data, not part of the checkout."""
    places = (parent / "shared" / "data" / "kuberay" for parent in (ROOT, *ROOT.parents))
    return next((place for place in places if place.is_dir()), None)


@cache
def _schema(resource: str) -> dict[str, Any]:
    place = schemas()
    assert place is not None
    schema = json.loads((place / _FILES[resource]).read_text())["versions"]["v1"]
    schema = schema.get("schema", schema)
    return _strict(schema.get("openAPIV3Schema", schema))


def _strict(schema: Any) -> Any:
    """The same schema, which refuses fields that it does not name, as kubectl does."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _strict(value) for key, value in schema.items()}
    is_open = "additionalProperties" in closed or closed.get(_KEPT)
    if (
        isinstance(closed.get("properties"), dict)
        and closed.get("type") == "object"
        and not is_open
    ):
        closed["additionalProperties"] = False
    return closed


def problems(document: dict[str, Any]) -> list[str]:
    """What is not as the schema of a RayJob or RayCronJob says."""
    return _problems(document, _schema(document["kind"]))


def problems_of_pod(template: dict[str, Any]) -> list[str]:
    """The same of a pod's template, whose schema is part of a RayJob's."""
    spec = _schema("RayJob")["properties"]["spec"]["properties"]["rayClusterSpec"]
    return _problems(template, spec["properties"]["headGroupSpec"]["properties"]["template"])


def _problems(document: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    # Without a look at the schema itself, which would take 15 s.
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(document)]


def require_rules(spec: dict[str, Any]) -> None:
    """Hold the spec of a RayJob to what the operator refuses beside its schema."""
    rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
    assert bool(rules) != bool(spec.get("shutdownAfterJobFinishes")), "one way to delete it"
    assert not spec.get("suspend") or spec.get("shutdownAfterJobFinishes")
    for rule in rules:
        keys = {"jobStatus", "jobDeploymentStatus"} & set(rule["condition"])
        assert len(keys) == 1, "a condition looks at one status"
    assert len({json.dumps(rule["condition"]["jobStatus"]) for rule in rules}) == len(rules)
    assert spec["submissionMode"] in ("SidecarMode", "HTTPMode")
    assert not {"submitterConfig", "submitterPodTemplate"} & set(spec)
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert head.get("restartPolicy", "Never") == "Never"
    assert spec["rayClusterSpec"]["rayVersion"], "a token needs the version"


NEEDS_SCHEMAS = pytest.mark.skipif(schemas() is None, reason="KubeRay's schemas are data")


@NEEDS_SCHEMAS
def test_the_ray_job_is_as_kuberays_schema_and_operator_say():
    ray_job = document("ray_job.yaml")
    assert problems(ray_job) == []
    require_rules(ray_job["spec"])
    [problem] = problems({**ray_job, "spec": {**ray_job["spec"], "backofLimit": 1}})
    assert "backofLimit" in problem


@NEEDS_SCHEMAS
def test_the_pod_of_the_cron_job_is_as_the_schema_of_a_pod_says():
    assert problems_of_pod(cron_job()["template"]) == []


def test_what_is_started_is_a_run_of_the_job_that_is_mounted_for_a_date():
    [pod] = pod_specs(document("cron_job.yaml"))
    night = parsed(pod["containers"][0]["command"][-1].replace("$(date -u -d yesterday +%F)", "D"))
    ray_job = document("ray_job.yaml")
    once = parsed(ray_job["spec"]["entrypoint"])
    assert (night["command"], night["date"], night["ok_exit"]) == ("run", "D", "8")
    assert (once["command"], once["ok_exit"]) == ("run", "3,4,5,8")
    assert ray_job["metadata"]["name"].endswith(once["date"])
    head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    for spec, run in ((pod, night), (head, once)):
        mounts = {
            mount["mountPath"]: mount["name"] for mount in spec["containers"][0]["volumeMounts"]
        }
        folder, name = run["job"].rsplit("/", 1)
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert name == "job.yaml"
        assert volumes[mounts[folder]]["configMap"] == {"name": "nightly"}


@pytest.mark.parametrize("name", ["cron_job.yaml", "ray_job.yaml"])
def test_pods_have_bounded_processors_and_no_secret_in_clear(name: str):
    for spec in pod_specs(document(name)):
        [container] = spec["containers"]
        assert "env" not in container
        assert container["envFrom"] == [{"secretRef": {"name": "lake"}}]
        resources = container["resources"]
        assert resources["limits"]["cpu"] == resources["requests"]["cpu"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["restartPolicy"] == "Never"


def test_what_no_retry_changes_is_not_tried_again():
    fail, ignore = cron_job()["podFailurePolicy"]["rules"]
    assert fail["onExitCodes"]["values"] == [1, 2, 3, 5]
    [pod] = pod_specs(cron_job())
    assert fail["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert ignore["onPodConditions"] == [{"type": "DisruptionTarget"}]


def test_the_image_has_the_ray_of_the_job_and_nothing_that_is_not_there():
    version = document("ray_job.yaml")["spec"]["rayClusterSpec"]["rayVersion"]
    assert set(re.findall(r"\d+\.\d+\.\d+", IMAGE)) == {version}
    for names in re.findall(r"^COPY \S+ (.+) \S+$", IMAGE, re.M):
        assert all((ROOT / name).exists() for name in names.split())
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    extras = re.search(r"'\.\[([^]]*)\]'", IMAGE)
    assert extras is not None
    assert set(extras[1].split(",")) <= set(known)
