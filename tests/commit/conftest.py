"""Options that the tests of tables share."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.runs.iceberg_sink import options_at

from pipeline.job.job import TableOptions


@pytest.fixture
def options(tmp_path: Path) -> TableOptions:
    """An Iceberg table in a catalog of its own, in a SQLite file."""
    return options_at(f"{tmp_path}/catalog.db")
