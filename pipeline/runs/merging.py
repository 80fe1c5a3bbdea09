"""What staged rows are put together with when they are published.

Alone they are the partition. A retry puts them into the version that it retries, and a run that
carries rows puts them between those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.commit.manifest import Manifest
from pipeline.commit.parts.compaction import (
    Compacted,
    Compactor,
    RunTasks,
    compact_slices,
)
from pipeline.commit.parts.partition_columns import compact_by_value
from pipeline.core.slices import SliceKey
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import Slices
from pipeline.runs.context import RunContext

LabelledDuplicates = Mapping[SliceKey, tuple[tuple[int, str | None], ...]]
"""Rows whose id another row has, as `row_ids.find_duplicates` returns them."""


class Merged(Protocol):
    """The staged rows of a run, all of them, and what they are put together with."""

    @property
    def unchanged(self) -> Manifest | None:
        """The version that stays, if publishing another one would change nothing."""
        ...

    def compact(self, compactor: Compactor, columns: Sequence[str], tasks: RunTasks) -> Compacted:
        """Write the parts of the version; `columns` are its partition columns."""
        ...

    def to_manifest(self, manifest: Manifest) -> Manifest:
        """Say in the manifest of the version what it consists of.

        Raises:
            InfraError: The parts do not hold the rows that were counted.
        """
        ...


class Merge(Protocol):
    """What the staged rows of a plan are put together with."""

    @property
    def published_model(self) -> Mapping[str, Any] | None:
        """The model as it was run for what they are put into; None: they may be run in any way."""
        ...

    def named(self, plan: Plan) -> Plan:
        """Return the plan under the name by which the version will be known."""
        ...

    def require_same_model(self, plan: Plan) -> None:
        """Make sure that rows are predicted as those they are put together with.

        Raises:
            JobError: They would not be.
        """
        ...

    def with_published(
        self, run: RunContext, slices: Slices, found: LabelledDuplicates, tasks: RunTasks
    ) -> LabelledDuplicates:
        """Add staged rows whose id a published one has to duplicates among them themselves."""
        ...

    def begin(
        self, run: RunContext, slices: Slices, duplicates: LabelledDuplicates, tasks: RunTasks
    ) -> Merged:
        """Count what the staged rows are put together with; nothing is written yet.

        Raises:
            PublishConflict: It is not published any more.
            InfraError: The rows are not the ones that were planned.
        """
        ...


@dataclass(frozen=True)
class Alone:
    """Staged rows that are the whole partition."""

    slices: Slices
    duplicates: LabelledDuplicates
    unchanged: Manifest | None = None

    def compact(self, compactor: Compactor, columns: Sequence[str], tasks: RunTasks) -> Compacted:
        """Write the parts of the version."""
        sized = [(key, file.path, float(file.size_bytes)) for key, file in self.slices]
        repeated = rows_of(self.duplicates)
        if columns:
            return compact_by_value(compactor, columns, sized, repeated, tasks)
        return compact_slices(compactor, sized, repeated, tasks)

    def to_manifest(self, manifest: Manifest) -> Manifest:
        """Return it as it is."""
        return manifest


def rows_of(duplicates: LabelledDuplicates) -> dict[SliceKey, tuple[int, ...]]:
    """Return the rows without their labels."""
    return {key: tuple(row for row, _ in rows) for key, rows in duplicates.items()}
