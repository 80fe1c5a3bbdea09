"""Fixtures that several test files share."""

from __future__ import annotations

import os

# Threads of torch that wait do so without spinning: the cores are another test's meanwhile. It
# halves the CPU time of tests that predict. OpenMP reads it when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import contextlib
import functools
import gc
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from support.runs.cli import SHARING, environment
from support.runs.protocol import Children
from support.servers.commandserver import OF_RUNS, CommandServer
from support.servers.faultproxy import FaultProxy
from support.servers.hubserver import HubServer
from support.servers.object_stores import (
    AzureServer,
    GCSServer,
    LocalServer,
    S3Server,
    missing_reason,
)
from support.servers.rayhead import RayHead
from xdist.scheduler import LoadScopeScheduling

from pipeline.core import backoff
from pipeline.storage.store import Store

# No property fails because the machine is busy. What passes once has to pass again, so the usual
# run, and `make mutants`, try a few examples, the same each time; `make long` tries five times as
# many others (--hypothesis-profile others).
settings.register_profile("same", deadline=None, derandomize=True, max_examples=20)
settings.register_profile("others", deadline=None)
settings.load_profile("same")


gc.disable()  # while modules are imported, which frees nothing


# What starts the tests (nohup, a job in the background) may have told them to ignore these, which
# every process of theirs would inherit.
for ignored in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(ignored, signal.SIG_DFL)


ON_ONE_RAY = ("integration/test_end_to_end.py", "runs/tuning/test_auto.py")
OF_LIBRARIES = (
    *("models/directories/", "models/generate/test_decoding.py", "models/test_library_scores.py"),
    *("inference/test_library_check.py", "integration/test_hostile_directories.py"),
)
"""Tests that ask the libraries of model directories, which take long to import, here and in the
process that is confined."""


class Grouped(LoadScopeScheduling):
    """Gives the tests of a file to one process, in order: they share what is slow to make.

    Those that need an Azure server are one more group, wherever they stand: it takes long to start.
    So are the files whose commands share a Ray in `make test`, and those that ask libraries.
    """

    def _split_scope(self, nodeid: str) -> str:
        path, _, rest = nodeid.partition("::")
        case = rest.partition("[")[2].rstrip("]").split("-")
        if "azure" in case:
            return "azure"
        if any(name in path for name in OF_LIBRARIES):
            return "libraries"
        return "one Ray" if path.endswith(ON_ONE_RAY) else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Grouped:
    """Tell xdist which tests to keep together."""
    return Grouped(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long."""
    items.sort(key=lambda item: item.get_closest_marker("early") is None)


def pytest_collection_finish() -> None:
    """Collect garbage from here on, but not among what is imported."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """A Ray head node, as a cluster has one, for the whole session."""
    with RayHead() as head:
        yield head


@pytest.fixture(scope="session")
def loads_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `models:counting` leaves a file each time that it is built by a shared command."""
    return tmp_path_factory.mktemp("loads")


@pytest.fixture(scope="session")
def command_server(loads_folder: Path) -> Iterator[CommandServer]:
    """A process with a Ray for the commands of the whole session."""
    env = environment({"TEST_MODEL_LOADS": str(loads_folder)})
    with CommandServer(env, on_one_ray=True) as server:
        yield server


@pytest.fixture(scope="session")
def forked_commands() -> Iterator[Callable[..., CommandServer]]:
    """Processes without a Ray, whose forks are the commands of the whole session.

    There is one for all commands, and one for each choice of more modules to import before.
    """
    with contextlib.ExitStack() as stack:

        @functools.cache
        def forked(*modules: str) -> CommandServer:
            return stack.enter_context(CommandServer(environment(), (*OF_RUNS, *modules)))

        yield forked


@pytest.fixture
def model_loads(loads_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, empty."""
    monkeypatch.setenv("TEST_MODEL_LOADS", str(loads_folder))
    for path in loads_folder.iterdir():
        path.unlink()
    return loads_folder


@pytest.fixture
def without_ray_here() -> Iterator[None]:
    """Let what is called in this process do without Ray, which tells what the machine has, too."""
    from support.runs.without_ray import without_ray  # many tests need nothing of a run

    with without_ray():
        yield


@pytest.fixture(autouse=True)
def _commands_share_ray(request: pytest.FixtureRequest) -> Iterator[None]:
    # A process starts when a test needs it.
    if marker := request.node.get_closest_marker("no_ray"):
        SHARING.forks = lambda: request.getfixturevalue("forked_commands")(*marker.args)
    elif request.node.get_closest_marker("one_ray"):
        SHARING.server = lambda: request.getfixturevalue("command_server")
    yield
    SHARING.forks = SHARING.server = None


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """pytest's own, with what commands in this process have silenced undone for the test."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "pipeline"]
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger, logger.level, logger.disabled, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.NOTSET)
        logger.disabled, logger.propagate = False, True
    yield caplog
    for logger, level, is_disabled, propagates in before:
        logger.setLevel(level)
        logger.disabled, logger.propagate = is_disabled, propagates


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait little between the tries of a call; how many there are stays as it is."""
    monkeypatch.setattr(backoff, "FIRST_WAIT_S", 0.02)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A real S3 server with one bucket, for the whole session."""
    with S3Server() as server:
        yield server


@pytest.fixture(scope="module")
def proxy(s3: S3Server) -> Iterator[FaultProxy]:
    """In front of the S3 server."""
    with FaultProxy(s3.endpoint_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def children() -> Children:
    """Processes in which runs are killed."""
    return Children()


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


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def usual_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store for what does not depend on its kind: local, and S3 in `make long`."""
    return new_store(request, tmp_path)


OTHER_STORES = [pytest.param(name, marks=pytest.mark.slow) for name in ("gcs", "azure")]


@pytest.fixture(params=["local", "s3", *OTHER_STORES])
def every_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of every kind there is, for what the stores themselves promise."""
    return new_store(request, tmp_path)


@pytest.fixture(params=["local", "s3", *OTHER_STORES, "hf"])
def fill(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Mapping[str, bytes]], Store]]:
    """A function that makes contents all that a store has, and returns the store, of every kind."""
    if request.param != "hf":
        store = new_store(request, tmp_path)

        held: dict[str, bytes] = {}

        def put(contents: Mapping[str, bytes]) -> Store:
            store.delete([path for path in held if path not in contents])
            for path, data in contents.items() - held.items():
                store.put(path, data)
            held.clear()
            held.update(contents)
            return store

        yield put
        return
    with HubServer() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        hub.page_size, hub.large = 3, {"deep/er/x", "part/1", "replaced", "t.parquet"}

        def push(contents: Mapping[str, bytes]) -> Store:
            hub.push("org/data", {f"in/{path}": data for path, data in contents.items()})
            return Store("hf://datasets/org/data/in")

        yield push


@pytest.fixture(params=["s3", *OTHER_STORES])
def server(request: pytest.FixtureRequest) -> LocalServer:
    """A server of every kind of object store."""
    return request.getfixturevalue(request.param)


def new_store(request: pytest.FixtureRequest, folder: Path) -> Store:
    if request.param == "local":
        return Store(str(folder / "store"))
    server: LocalServer = request.getfixturevalue(request.param)
    return server.store()
