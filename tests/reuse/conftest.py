"""An output of yesterday and today, over photos that have changed since."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.runs.carried_runs import YESTERDAY, change, make_photos, run_whole, without
from support.runs.earlier_partitions import EarlierPartition

from pipeline.storage.store import Store


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a node cache without hashes of other tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=["inputs", pytest.param("content", marks=pytest.mark.slow)])
def reuse(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def photos(reuse: str, tmp_path_factory: pytest.TempPathFactory) -> EarlierPartition:
    return make_photos(tmp_path_factory.mktemp("photos"), reuse)


@pytest.fixture(scope="module")
def before(reuse: str, photos: EarlierPartition, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with a version of yesterday and two of today; each lacks other folders."""
    out = Store(str(tmp_path_factory.mktemp("before")))
    photos.at(out, YESTERDAY).run()
    with without(photos, "c"):
        photos.at(out).run()
        with without(photos, "b"):
            photos.at(out).run()
    change(photos, "a/900.jpg", "b/002.jpg")
    (Path(photos.inputs) / "c/003.jpg").unlink()
    for path in Path(photos.inputs).glob("[ac]/*.jpg") if reuse == "content" else ():
        os.utime(path)
    return Path(out.uri)


@pytest.fixture(scope="module")
def whole(
    photos: EarlierPartition, before: Path, tmp_path_factory: pytest.TempPathFactory
) -> EarlierPartition:
    """The version that a run of all rows publishes after the change."""
    return run_whole(photos, tmp_path_factory.mktemp("whole"))
