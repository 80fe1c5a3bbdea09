"""`pipeline verify`: prove that what is published is whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.published.verify import verify_output
from pipeline.report.showing.printed import printed


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
