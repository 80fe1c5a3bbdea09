"""What staged rows are put together with when they are published.

Alone they are the partition. A retry puts them into the version that it retries, and a run that
carries rows puts them between those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.commit.keys.meta import VersionKeys
from pipeline.commit.keys.writing import rows_of_units
from pipeline.commit.manifest import Manifest
from pipeline.commit.parts.compaction import (
    Compacted,
    Compactor,
    DuplicateRows,
    RunTasks,
    SizedSlice,
    compact_slices,
)
from pipeline.commit.parts.partition_columns import compact_by_value
from pipeline.commit.parts.row_ids import LabelledDuplicates
from pipeline.core.arrays import Numbers
from pipeline.core.errors import InfraError
from pipeline.core.slices import SliceKey
from pipeline.planning.carried import no_runs
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import Slices
from pipeline.runs.context import RunContext
from pipeline.sources.lookup import LookUp

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Duplicates:
    """Rows that lose their prediction because another one has their id."""

    staged: LabelledDuplicates = field(default_factory=dict)
    carried: Numbers = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 (G,): numbers of carried predictions, as `compact_carried` takes them."""

    @property
    def rows(self) -> dict[SliceKey, tuple[int, ...]]:
        """Return the staged rows without their labels."""
        return {key: tuple(row for row, _ in rows) for key, rows in self.staged.items()}


@dataclass(frozen=True)
class KeyFacts:
    """What the keys of a version are made from."""

    plan: Plan
    """All rows."""
    unit_rows: Numbers
    """int64 (U,): rows of each of its units."""
    slices: Slices
    """What was computed."""
    runs: Numbers
    """int64 (K, 5): `Carried.runs`, between them."""
    days: Mapping[str, int] = field(default_factory=dict)
    """URI of a shard -> when its carried predictions were computed; of other shards, today."""
    duplicates: DuplicateRows = field(default_factory=dict)
    """Rows of the slices whose id another row has."""
    sources: tuple[VersionKeys, ...] = ()
    """The keys of the versions that are carried from, in the order of `runs`."""
    gone: Numbers = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 (G,): carried predictions that lose their id, as `write_buckets` takes them."""


class Merged(Protocol):
    """The staged rows of a run, all of them, and what they are put together with."""

    @property
    def key_facts(self) -> KeyFacts | None:
        """What its keys are made from; None: it gets none."""
        ...

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

    @property
    def lookup(self) -> LookUp | None:
        """What looks rows up by their content while they are read; None: nothing does."""
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

    def find_duplicates(
        self, run: RunContext, slices: Slices, hashes: Sequence[Hashes], tasks: RunTasks
    ) -> Duplicates:
        """Find the rows, staged or published, whose id another row has that keeps its prediction.

        Args:
            slices: The staged slices, in order.
            hashes: Of the row ids of each.
            tasks: Runs a function for every tuple of arguments.
        """
        ...

    def begin(
        self, run: RunContext, slices: Slices, duplicates: Duplicates, tasks: RunTasks
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

    plan: Plan
    slices: Slices
    duplicates: Duplicates
    unchanged: Manifest | None = None

    @property
    def key_facts(self) -> KeyFacts:
        """All that is published was computed."""
        rows = rows_of_units(self.plan, [key for key, _ in self.slices])
        counts = np.array(rows, np.int64)
        return KeyFacts(
            *(self.plan, counts, self.slices, no_runs()), duplicates=self.duplicates.rows
        )

    def compact(self, compactor: Compactor, columns: Sequence[str], tasks: RunTasks) -> Compacted:
        """Write the parts of the version."""
        slices, duplicates = sized(self.slices), self.duplicates.rows
        if columns:
            return compact_by_value(compactor, columns, slices, duplicates, tasks)
        return compact_slices(compactor, slices, duplicates, tasks)

    def to_manifest(self, manifest: Manifest) -> Manifest:
        """Return it as it is."""
        return manifest


def sized(slices: Slices) -> list[SizedSlice]:
    """Return slices as compaction takes them."""
    return [(key, file.path, float(file.size_bytes)) for key, file in slices]


def require_counted(manifest: Manifest, advice: str = "") -> None:
    """Make sure that the parts hold the rows that were counted; `advice` ends the message.

    Raises:
        InfraError: They do not.
    """
    counted = (manifest.num_predicted, manifest.num_quarantined)
    written = tuple(
        sum(part.num_rows for part in parts)
        for parts in (manifest.parts, manifest.quarantine_parts)
    )
    if counted != written:
        raise InfraError(
            f"partition {manifest.partition}: merged {written[0]} predictions and {written[1]} "
            f"quarantined rows, expected {counted[0]} and {counted[1]}; nothing was published"
            f"{advice}"
        )
