"""`pipeline schema`: the JSON schema of the job file, or of report.json."""

from __future__ import annotations

from typing import Any

from pipeline.core.errors import JobError
from pipeline.job.job import Job
from pipeline.report.document import report_schema


def schema(what: str = "job") -> dict[str, Any]:
    """Return the JSON schema of a document.

    Args:
        what: `job` or `report`.

    Raises:
        JobError: There is no such document.
    """
    if what not in ("job", "report"):
        raise JobError(f"schema {what}: write job or report")
    return Job.model_json_schema() if what == "job" else report_schema()
