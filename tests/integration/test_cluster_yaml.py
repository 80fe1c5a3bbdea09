"""cluster.yaml: Ray's own schema and checks accept it, offline, and it keeps its promises."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from support.runs.checkout import ROOT

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


def test_what_is_mounted_exists_and_is_installed(config: dict[str, Any]):
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


def test_no_key_stands_in_the_file():
    text = (ROOT / "cluster.yaml").read_text().lower()
    words = ("akia", "access_key", "private_key", "ray_auth_token=")
    assert [word for word in words if word in text] == []
