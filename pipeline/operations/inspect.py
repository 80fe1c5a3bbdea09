"""`pipeline inspect`: show what is published, as tables or as a page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.published.describe import describe_output
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
    """Describe one published partition, or list all and describe the newest.

    Args:
        uri: Root of the output, or folder of a partition.
        partition: The partition; None: all.
        html: A local file for the result as a page, with rows beside their input.
        samples: Most rows on that page; 0: the input is not read.
        storage_options: fsspec options of the output and, for the page, of the input.

    Raises:
        JobError: Nothing is published there, or the page cannot be written.
        InfraError: A part that the current manifest names is missing.
    """
    document = describe_output(uri, partition, dict(storage_options or {}))
    if html is not None:
        from pipeline.published.describe import inspect_page, write_page

        write_page(inspect_page(document, uri, samples, storage_options or {}), Path(html))
    return document
