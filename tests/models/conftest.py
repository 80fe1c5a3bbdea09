"""Fixtures of the tests of models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def node_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node cache for all tests of models, so that facts of equal directories are read once."""
    folder = tmp_path_factory.getbasetemp()
    has_workers = "PYTEST_XDIST_WORKER" in os.environ
    return (folder.parent if has_workers else folder) / "node-cache"


@pytest.fixture(autouse=True)
def _own_cache(node_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what a test copies and reads out of the cache of this user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(node_cache))
