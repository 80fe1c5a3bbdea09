"""An output of yesterday and today, over photos that have changed since."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.runs.carried_runs import Inputs
from support.runs.earlier_partitions import EarlierPartition

from pipeline.storage.store import Store


@pytest.fixture
def empty_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """Begins with an empty cache of the node, so that hashes are read again."""
    return lambda: monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def own_cache(empty_cache: Callable[[], None]) -> None:
    empty_cache()


@pytest.fixture(scope="module", params=["inputs", pytest.param("content", marks=pytest.mark.slow)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def inputs(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs.write(tmp_path_factory.mktemp("inputs"), kind)


@pytest.fixture(scope="module")
def before(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of yesterday and today; the input has changed since."""
    folder = tmp_path_factory.mktemp("before")
    inputs.publish_earlier(Store(str(folder)))
    inputs.change()
    return folder


@pytest.fixture(scope="module")
def whole(
    inputs: Inputs, before: Path, tmp_path_factory: pytest.TempPathFactory
) -> EarlierPartition:
    """What a run of all rows publishes."""
    night = inputs.night(Store(str(tmp_path_factory.mktemp("whole"))), reuse=False)
    night.run()
    return night
