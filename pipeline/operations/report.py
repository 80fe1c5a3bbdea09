"""`pipeline report`: show the report of a run that is stored beside its output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.report.document import Report
from pipeline.report.earlier_reports import load_report


def report(
    uri: str,
    *,
    run_id: str | None = None,
    partition: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Report:
    """Read the report of a run that is stored beside its output.

    Args:
        uri: Root of the output, folder of a partition, or a report.json.
        run_id: The run; None: the latest.
        partition: The partition; None: the latest run of all partitions.
        storage_options: fsspec options.

    Raises:
        JobError: There is no such report, or a newer version of the pipeline wrote it.
        InfraError: The file is not a report.
    """
    return load_report(uri, partition, run_id, dict(storage_options or {}))
