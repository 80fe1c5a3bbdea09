"""Jobs parsed from the sections that a test gives, with defaults for the others."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from pipeline.job.job import Job
from pipeline.job.model import Model
from pipeline.job.reading.loader import parse_job

DATE = dt.date(2026, 11, 24)


SOURCES: Mapping[str, Mapping[str, Any]] = {
    "image": {"uri": "in", "format": "images"},
    "text": {"uri": "in", "format": "jsonl", "text_column": "text"},
    "audio": {"uri": "in", "format": "audio"},
    "features": {"uri": "in", "format": "parquet", "features": ["x"]},
}
"""Name of an input -> a source of its rows."""


def job_over(input_name: str, model: Model, **sections: Any) -> Job:
    """Return a job over rows of an input, with sections that are not checked together."""
    usual = job_of({"factory": "models:colours", "labels": ["a"]}, SOURCES[input_name])
    return usual.model_copy(update={"model": model, **sections})


def job_of(
    model: Mapping[str, Any], source: Mapping[str, Any] | None = None, **sections: Any
) -> Job:
    """Parse a job over images in `in`, or another source, into `out`."""
    document = {
        "source": dict(source or {"uri": "in", "format": "images"}),
        "model": dict(model),
        "sink": {"uri": "out"},
        **sections,
    }
    return parse_job(document, date=DATE, origin="test")
