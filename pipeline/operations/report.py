"""`pipeline report`: show the report of a run that is stored beside its output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.report.document import Report
from pipeline.report.history import load_report


def report(
    uri: str,
    *,
    run_id: str | None = None,
    partition: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Report:
    """Read the report of a run that is stored beside its output.

    Args:
        uri: The sink's root, a partition's folder, or a report.json itself.
        run_id: Which run; None takes the latest.
        partition: Which partition; None takes the latest run of all.
        storage_options: fsspec options.

    Raises:
        JobError: There is no such report, or a newer version of the pipeline wrote it.
        InfraError: What is there is not a report.
    """
    return load_report(uri, partition, run_id, dict(storage_options or {}))
