"""What every table format does: name the published parts in a catalogue that others read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

if TYPE_CHECKING:
    from pipeline.commit.layout import Layout
    from pipeline.commit.manifest import Manifest
    from pipeline.job.section import Section


class TableFormat(Protocol):
    """A table of the predictions of one output; made from its store, and its options if any."""

    name: str
    Options: type[Section] | None = None
    """The section that `sink.table_options` is parsed as; None if there are no options."""
    extra: str = ""
    """The extra that installs its packages; empty if there are none."""
    packages: tuple[str, ...] = ()
    """Modules that it imports."""

    def require(
        self, layout: Layout, partition_columns: Mapping[str, str], schema: pa.Schema
    ) -> None:
        """Check before a run's work that the table can take what it will make.

        Args:
            partition_columns: Column -> Arrow type of the folders inside the partition.

        Raises:
            JobError: The extra is missing, the store or a type is not supported, or the table that
                is there has other columns or partitions.
        """
        ...

    def commit(self, layout: Layout, manifest: Manifest) -> None:
        """Make the table name exactly the parts of a manifest, which is the current one.

        It is idempotent by the manifest's number: the same number again does nothing, and a lower
        one never undoes a higher one. Our own log entry comes first and stays the authority.

        Raises:
            JobError: The table has other columns or partitions.
            InfraError: The store failed, or others commit to the table all the time.
        """
        ...
