"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from azureserver import AzureServer, missing_reason
from cli import CLUSTER
from gcsserver import GCSServer
from hypothesis import settings
from localserver import LocalServer
from rayhead import RayHead
from s3server import S3Server

from pipeline.core import backoff
from pipeline.storage.store import Store

# No property fails because the machine is busy. What passes once has to pass again, so the usual
# run tries the same examples each time; `make long` tries others (--hypothesis-profile others).
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("others", deadline=None)
settings.load_profile("same")


TOGETHER = {
    *("test_demo", "test_engines", "test_examples", "test_matrix"),
    *("test_network_faults", "test_submit"),
}
"""Files whose tests share something slow to make: one process runs them all."""

ON_ONE_RAY = {
    *("test_auto", "test_dedupe", "test_delta", "test_gated_partitions", "test_int8", "test_tasks"),
    "test_webdataset",
}
"""Files whose commands share a Ray, which saves each of them its start; single tests of other
files are marked `one_ray`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tell xdist which tests to keep together."""
    for item in items:
        if item.path.stem in TOGETHER or "kill_inputs" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """A Ray for the commands of the whole session."""
    with RayHead() as head:
        yield head


@pytest.fixture(autouse=True)
def _commands_share_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.path.stem not in ON_ONE_RAY and "one_ray" not in request.keywords:
        return

    def of_head() -> dict[str, str]:
        head: RayHead = request.getfixturevalue("ray_head")  # started when a test needs it
        return {"RAY_ADDRESS": head.address, **head.secret}

    monkeypatch.setattr(CLUSTER, "environment", of_head)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait little between the tries of a call; how many there are stays as it is."""
    monkeypatch.setattr(backoff, "FIRST_WAIT_S", 0.02)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A real S3 server with one bucket, for the whole session."""
    with S3Server() as server:
        yield server


@pytest.fixture(scope="session")
def gcs() -> Iterator[GCSServer]:
    """A Google Cloud Storage server with one bucket, for the whole session."""
    with GCSServer() as server:
        yield server


@pytest.fixture(scope="session")
def azure() -> Iterator[AzureServer]:
    """An Azure Blob server with one container, for the whole session."""
    reason = missing_reason()
    if reason:
        pytest.skip(reason)
    with AzureServer() as server:
        yield server


@pytest.fixture(params=["local", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store: a fresh folder, and a fresh prefix in a bucket."""
    return new_store(request, tmp_path)


@pytest.fixture(params=["local", "s3", "gcs", "azure"])
def every_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of every kind there is, for what the stores themselves promise."""
    return new_store(request, tmp_path)


@pytest.fixture(params=["s3", "gcs", "azure"])
def server(request: pytest.FixtureRequest) -> LocalServer:
    """A server of every kind of object store."""
    return request.getfixturevalue(request.param)


def new_store(request: pytest.FixtureRequest, folder: Path) -> Store:
    if request.param == "local":
        return Store(str(folder / "store"))
    server: LocalServer = request.getfixturevalue(request.param)
    return server.store()
