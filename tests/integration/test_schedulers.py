"""Files to copy are true: each scheduler file starts a run for a date and maps exit codes."""

from __future__ import annotations

import ast
import configparser
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from support import HANG_S
from support.runs.checkout import ROOT
from typer.main import get_command

from pipeline.commands.app import app
from pipeline.core.errors import PipelineError

FOLDER = ROOT / "jobs" / "schedulers"
NEEDS_A_PERSON, AGAIN, NO_INPUT = {1, 2, 3, 5}, {4, 6, 7}, 8
_COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
_PIPELINE = re.compile(r"(?:^|[ /])pipeline (?=[a-z])")
_END = re.compile(r"\s(?:>>?|2>|&&|\|)")


def parsed(line: str) -> dict[str, Any]:
    """The arguments of the first `pipeline COMMAND ...` of a line of shell, and the command's name.

    Raises:
        click.UsageError: The parser does not take them.
    """
    start = _PIPELINE.search(line)
    assert start is not None, line
    name, *words = shlex.split(_END.split(line[start.end() :])[0])
    context = _COMMANDS[name].make_context(name, words)
    return {"command": name, **context.params}


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(FOLDER / name)
    return parser


def skypilot() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "skypilot.yaml").read_text())


def command_lines() -> dict[str, str]:
    """What each file starts, by its name; cron's first, its second is `status`."""
    lines = (FOLDER / "crontab").read_text().splitlines()
    cron = [line.split(None, 5)[5] for line in lines if re.match(r"[*0-9]", line)]
    service = unit("pipeline-nightly.service")["Service"]["ExecStart"].replace("%%", "%")
    return {
        "crontab": cron[0].replace(r"\%", "%"),
        "status": cron[1],
        "service": service.removeprefix("/bin/sh -c '").removesuffix("'"),
        "skypilot": skypilot()["run"].replace("\\\n", ""),
    }


def test_every_exit_code_has_its_place():
    codes = {error.exit_code for error in PipelineError.__subclasses__()} | {1}
    assert NEEDS_A_PERSON | AGAIN | {NO_INPUT} == codes


@pytest.mark.parametrize("name", ["crontab", "service", "skypilot"])
def test_a_scheduler_starts_an_existing_job_for_a_date(name: str):
    run = parsed(
        command_lines()[name]
        .replace("$(date -u -d yesterday +%F)", "2026-11-24")
        .replace("$D", "D")
    )
    assert run["command"] == "run"
    assert (ROOT / run["job"]).is_file()
    assert run["date"]


def _dates_of_shells() -> dict[str, str]:
    dagster = (FOLDER / "dagster_assets.py").read_text()
    assert "DailyPartitionsDefinition" in dagster, "whose schedule starts the day before"
    cron_job = yaml.safe_load((FOLDER / "kubernetes/cron_job.yaml").read_text())
    pod = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return {
        "crontab": command_lines()["crontab"],
        "service": command_lines()["service"],
        "cron_job": pod["containers"][0]["command"][-1],
        "skypilot": (FOLDER / "skypilot.yaml").read_text().replace("--env DATE=", "--date "),
        "nightly": (ROOT / "jobs/nightly.yaml").read_text(),
    }


def test_every_file_runs_a_complete_date_and_says_so_first():
    for name, text in _dates_of_shells().items():
        given = re.findall(
            r"--date (\S+)", text.replace("$(date -u -d yesterday +%F)", "YESTERDAY")
        )
        assert given[0].strip('"') == "YESTERDAY", name
    assert 'date="{{ macros.ds_add(ds, -1) }}"' in (FOLDER / "airflow_dag.py").read_text()
    files = [path for path in FOLDER.rglob("*") if path.suffix not in (".timer", "", ".pyc")]
    for path in [*files, FOLDER / "crontab", ROOT / "jobs" / "nightly.yaml"]:
        head = " ".join(path.read_text().split())[:300]
        assert re.search("yesterday", head, re.I), path.name


def test_cron_writes_what_a_scrape_reads_whole_or_not_at_all():
    line = command_lines()["status"]
    status = parsed(line)
    assert (status["command"], status["prometheus"]) == ("status", True)
    assert '>"$METRICS.new" && mv "$METRICS.new" "$METRICS"' in line


def test_a_percent_sign_of_a_crontab_is_escaped_and_no_secret_is_in_it():
    for line in (FOLDER / "crontab").read_text().splitlines():
        if re.match(r"[*0-9]", line):
            assert not re.search(r"(?<!\\)%", line)
            assert len(line.split(None, 5)) == 6
    assert not re.search("SECRET|PASSWORD|TOKEN", (FOLDER / "crontab").read_text(), re.I)


def test_systemd_restarts_resumable_exit_codes_only():
    service = unit("pipeline-nightly.service")["Service"]
    assert set(map(int, service["RestartPreventExitStatus"].split())) == NEEDS_A_PERSON
    assert set(map(int, service["SuccessExitStatus"].split())) == {NO_INPUT}
    assert (service["Restart"], service["KillMode"]) == ("on-failure", "mixed")
    assert unit("pipeline-nightly.timer")["Timer"]["Persistent"] == "true"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_its_units(tmp_path: Path):
    units = [shutil.copy(path, tmp_path) for path in FOLDER.glob("pipeline-nightly.*")]
    command = ["systemd-analyze", "verify", "--man=no", *map(str, units)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert "pipeline-nightly" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


def test_skypilot_recovers_resumable_exit_codes_only():
    recovery = skypilot()["resources"]["job_recovery"]
    assert set(recovery["recover_on_exit_codes"]) == AGAIN
    assert recovery["max_restarts_on_errors"] == 0
    assert not any(skypilot()["secrets"].values())


@pytest.mark.parametrize("name", ["airflow_dag.py", "dagster_assets.py"])
def test_a_scheduler_file_imports_nothing_of_the_package_and_knows_the_codes(name: str):
    tree = ast.parse((FOLDER / name).read_text())
    values: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not any(module.split(".")[0] in ("pipeline", "ray") for module in names)
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name):
            values[target.id] = node.value
    assert ast.literal_eval(values["NEEDS_A_PERSON"]) == NEEDS_A_PERSON
    assert ast.literal_eval(values["NO_INPUT"]) == NO_INPUT


def test_the_table_of_schedulers_equals_the_files():
    text = (FOLDER / "README.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| \d", line)]
    table = {int(row[0]): row[3:7] for row in rows}
    assert set(table) == NEEDS_A_PERSON | AGAIN | {0, NO_INPUT}
    for code in NEEDS_A_PERSON:
        assert table[code] == ["failed"] * 4
    for code in AGAIN:
        assert table[code] == ["again"] * 4
    assert table[NO_INPUT] == ["success", "skipped", "skipped", "success"]


KUBERNETES = FOLDER / "kubernetes"
IMAGE = (KUBERNETES / "Dockerfile").read_text()


@cache
def document(name: str) -> dict[str, Any]:
    return yaml.safe_load((KUBERNETES / name).read_text())


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
def test_the_ray_job_passes_the_schema_and_the_rules_of_kuberay():
    ray_job = document("ray_job.yaml")
    assert problems(ray_job) == []
    require_rules(ray_job["spec"])
    [problem] = problems({**ray_job, "spec": {**ray_job["spec"], "backofLimit": 1}})
    assert "backofLimit" in problem


@NEEDS_SCHEMAS
def test_the_pod_of_the_cron_job_passes_the_schema_of_a_pod():
    assert problems_of_pod(cron_job()["template"]) == []


def test_a_pod_starts_the_mounted_job_for_a_date():
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


def test_kubernetes_does_not_retry_final_exit_codes():
    fail, ignore = cron_job()["podFailurePolicy"]["rules"]
    assert fail["onExitCodes"]["values"] == [1, 2, 3, 5]
    [pod] = pod_specs(cron_job())
    assert fail["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert ignore["onPodConditions"] == [{"type": "DisruptionTarget"}]


def test_the_image_has_the_ray_of_the_job_and_copies_existing_files():
    version = document("ray_job.yaml")["spec"]["rayClusterSpec"]["rayVersion"]
    assert set(re.findall(r"\d+\.\d+\.\d+", IMAGE)) == {version}
    for names in re.findall(r"^COPY \S+ (.+) \S+$", IMAGE, re.M):
        assert all((ROOT / name).exists() for name in names.split())
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    extras = re.search(r"'\.\[([^]]*)\]'", IMAGE)
    assert extras is not None
    assert set(extras[1].split(",")) <= set(known)
