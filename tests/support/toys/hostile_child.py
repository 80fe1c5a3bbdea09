"""Attempts of a library over a model directory, in the confined process that reads it."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline.models.directories.files import make_view
from pipeline.models.directories.library_predictions import library_predictions
from pipeline.models.directories.opening import read_facts


def attempts(path: str, wanted: str) -> list[str]:
    """Read a directory, let its library predict texts, and return what the process was refused."""
    server: Any = sys.modules["__main__"]
    with contextlib.suppress(Exception):
        facts = read_facts(Path(path), wanted)
        with tempfile.TemporaryDirectory() as folder:
            view = make_view(Path(path), Path(folder))
            library_predictions(view, facts, facts.tasks[0], [("the cat sat",)])
    return list(server.refused)
