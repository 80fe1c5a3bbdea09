"""Fixtures that several test files share."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3server import S3Server

from pipeline.storage import Store


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A real S3 server with one bucket, for the whole session."""
    with S3Server() as server:
        yield server


@pytest.fixture(params=["local", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store: a fresh folder, and a fresh prefix in a bucket."""
    if request.param == "local":
        return Store(str(tmp_path / "store"))
    server: S3Server = request.getfixturevalue("s3")
    return Store(server.uri(f"test-{uuid.uuid4().hex}"), server.storage_options)
