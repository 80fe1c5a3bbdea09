"""Jobs as tests give them: parsed of sections, with what a test does not care about."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from pipeline.job.job import Job
from pipeline.job.reading.loader import parse_job

DATE = dt.date(2026, 11, 24)


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
