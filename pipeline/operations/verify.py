"""`pipeline verify`: prove that published data is complete and unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.published.verify import verify_output
from pipeline.report.showing.printed import printed


@printed
def verify(
    uri: str, *, partition: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Verify published data: checksums, rows in = predictions + quarantine, ids.

    Args:
        uri: Root of the output, or folder of a partition.
        partition: The partition; None: all.
        storage_options: fsspec options.

    Raises:
        JobError: It is not published.
        PipelineError: A row was lost, duplicated or changed.
    """
    return verify_output(uri, partition, dict(storage_options or {}))
