"""Hold documents to KubeRay's schemas, and to the rules of its operator that no schema has."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from support.runs.checkout import ROOT

_FILES = {"RayJob": "rayjobs.json", "RayCronJob": "raycronjobs.json"}
_KEPT = "x-kubernetes-preserve-unknown-fields"


def folder() -> Path | None:
    """Where the schemas are; None if they are not here: they are data, not part of the checkout."""
    places = (parent / "shared" / "data" / "kuberay" for parent in (ROOT, *ROOT.parents))
    return next((place for place in places if place.is_dir()), None)


@cache
def _schema(kind: str) -> dict[str, Any]:
    place = folder()
    assert place is not None
    found = json.loads((place / _FILES[kind]).read_text())["versions"]["v1"]
    found = found.get("schema", found)
    return _strict(found.get("openAPIV3Schema", found))


def _strict(schema: Any) -> Any:
    """The same schema, which refuses fields that it does not name, as kubectl does."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _strict(value) for key, value in schema.items()}
    is_open = "additionalProperties" in found or found.get(_KEPT)
    if isinstance(found.get("properties"), dict) and found.get("type") == "object" and not is_open:
        found["additionalProperties"] = False
    return found


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
