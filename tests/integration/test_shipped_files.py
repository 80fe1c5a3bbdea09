"""Files to copy are true: job files, cluster.yaml, alert rules and the dashboard."""

from __future__ import annotations

import copy
import datetime as dt
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from support.runs.checkout import ROOT

from pipeline.job.job import Job
from pipeline.job.reading.loader import read_job
from pipeline.report.metric_families import MEANINGS

TOKEN = "~/.ray/auth_token"  # made by each user


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_the_file_and_what_it_becomes_with_defaults(config: dict[str, Any]):
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert prepared["head_start_ray_commands"] == config["head_start_ray_commands"]
    assert set(prepared["available_node_types"]) == {"head", "gpu", "cpu"}


def test_the_head_runs_no_actors_and_only_workers_are_spot(config: dict[str, Any]):
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    spot = {
        name
        for name, node in types.items()
        if node["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
    }
    assert spot == {"gpu", "cpu"}
    assert sum(node.get("max_workers", 0) for node in types.values()) <= config["max_workers"]


def test_every_machine_runs_the_ray_that_the_package_asks_for(config: dict[str, Any]):
    docker = config["docker"]
    images = [docker["head_image"], docker["worker_image"]]
    types = config["available_node_types"].values()
    images += [node["docker"]["worker_image"] for node in types if "docker" in node]
    minor = ray.__version__.rpartition(".")[0]
    assert {image.rpartition(".")[0] for image in images} == {f"rayproject/ray:{minor}"}
    assert "-cpu" in docker["head_image"]
    assert "-gpu" in docker["worker_image"]


def test_mounted_files_exist_and_are_installed(config: dict[str, Any]):
    mounts = config["file_mounts"]
    missing = [p for p in mounts.values() if p != TOKEN and not (ROOT / p).exists()]
    assert missing == []
    copied, *installed = config["setup_commands"]
    folders = {str(Path(remote).parent) for remote in mounts if "batch-inference" in remote}
    assert folders == {"/home/ray/batch-inference-pipeline"}
    assert f"cp -r {folders.pop()} /tmp/package" in copied
    assert installed == ["pip install -q '/tmp/package[s3,submit,demo]'"]


def test_the_dashboard_is_on_loopback_and_every_node_asks_for_the_token(config: dict[str, Any]):
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    assert all(command.startswith("RAY_AUTH_MODE=token ") for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert TOKEN in config["file_mounts"].values()


def test_cluster_yaml_has_no_key():
    text = (ROOT / "cluster.yaml").read_text().lower()
    words = ("akia", "access_key", "private_key", "ray_auth_token=")
    assert [word for word in words if word in text] == []


JOBS = ROOT / "jobs"
DATE = dt.date(2026, 11, 24)


def load(name: str, *overrides: str) -> Job:
    return read_job(str(JOBS / name), date=DATE, overrides=overrides)


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_job_file_loads_alone_and_with_other_places(path: Path):
    job = load(path.name)
    assert job.model.name == "efficientnet-lite0" or job.model.path
    assert job.source.uri.startswith("demo-output/input/")
    assert job.sink.uri.startswith("demo-output/output/")
    moved = load(path.name, "source.uri=s3://lake/in", "sink.uri=s3://lake/out")
    assert (moved.source.uri, moved.sink.uri) == ("s3://lake/in", "s3://lake/out")
    assert moved.model == job.model


def test_no_two_job_files_write_to_the_same_place():
    uris = [load(path.name).sink.uri for path in JOBS.glob("*.yaml")]
    assert len(uris) == len(set(uris)) >= 5


def test_the_partition_of_the_dag_is_its_logical_date():
    assert load("nightly.yaml").sink.partition == "date=2026-11-24"


MONITORING = JOBS / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian: prometheus")
def test_the_rules_fire_when_they_should_and_only_then():
    command = ["promtool", "test", "rules", "alerts_test.yaml"]
    done = subprocess.run(command, cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_rule_has_a_test_and_the_dashboard_is_one_screen_for_any_grafana():
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    tests = (MONITORING / "alerts_test.yaml").read_text()
    alerts = [rule["alert"] for rule in group["rules"]]
    assert len(alerts) == 5
    assert [
        name for name in alerts if not re.search(rf"alertname: {name}\n +exp_alerts:\n", tests)
    ] == []
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) <= 21
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels)


def test_rules_and_dashboard_query_existing_metrics():
    asked = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    asked += [str(rule["expr"]) for rule in group["rules"]]
    names = {name for text in asked for name in re.findall(r"\bpipeline_\w+", text)}
    assert {re.sub(r"pipeline_|_total$", "", name) for name in names} <= set(MEANINGS)
