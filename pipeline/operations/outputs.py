"""`pipeline inspect`, `verify` and `report`: look at what is published, without its job or Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.published.describe import describe_output
from pipeline.published.verify import verify_output
from pipeline.report.document import Report
from pipeline.report.history import load_report
from pipeline.report.showing.printed import printed


@printed
def inspect(
    uri: str,
    *,
    partition: str | None = None,
    html: str | os.PathLike[str] | None = None,
    samples: int = 8,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Say what is published: of one partition, or a list of all and the newest one in full.

    Args:
        uri: The sink's root, or a partition's folder.
        partition: Which partition; None takes all there are.
        html: A local file that gets the same as a page, with rows beside what they were predicted
            from.
        samples: The most rows on that page; 0: the input is not read.
        storage_options: fsspec options, for that page those of the input, too.

    Raises:
        JobError: Nothing is published there, or the page cannot be written.
        InfraError: A part that the current manifest names is missing.
    """
    document = describe_output(uri, partition, dict(storage_options or {}))
    if html is not None:
        from pipeline.published.pages import inspect_page, write_page

        write_page(inspect_page(document, uri, samples, storage_options or {}), Path(html))
    return document


@printed
def verify(
    uri: str, *, partition: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Prove what is published: checksums, rows in = predictions + quarantine, ids.

    Args:
        uri: The sink's root, or a partition's folder.
        partition: Which partition; None takes all there are.
        storage_options: fsspec options.

    Raises:
        JobError: It is not published.
        PipelineError: A check failed: something was lost, doubled or changed.
    """
    return verify_output(uri, partition, dict(storage_options or {}))


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
