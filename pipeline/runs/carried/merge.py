"""Carry rows over from earlier versions: compute the rest, and put both together.

Whatever goes wrong with what is carried, the run computes all rows instead; it never guesses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.commit.keys.pins import pin, unpin
from pipeline.commit.keys.writing import rows_of_units
from pipeline.commit.manifest import Manifest
from pipeline.commit.parts.carried.figures import (
    find_carried_duplicates,
    measure_carried,
    measure_found,
)
from pipeline.commit.parts.carried.parts import compact_carried
from pipeline.commit.parts.carried.rows import LookedUp
from pipeline.commit.parts.carried.version import CarriedVersion, NotReadable, Traffic
from pipeline.commit.parts.compaction import Compacted, Compactor, RunTasks
from pipeline.commit.plan_store import adopt_plan
from pipeline.core.arrays import Numbers
from pipeline.core.errors import PipelineError
from pipeline.core.failures import Reason
from pipeline.core.figures.histograms import Distribution
from pipeline.core.printable import num_of
from pipeline.core.schema import ROW_ID, URI
from pipeline.gates.judging import needs_of
from pipeline.models.agreement import AgreementLimits
from pipeline.models.spec import ModelSpec
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec
from pipeline.planning.carrying import Division
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import Slices
from pipeline.report.recording.carried_rows import carried_section
from pipeline.report.recording.rows import KeptRows
from pipeline.runs.carried.checked import compare_checked
from pipeline.runs.carried.finding import Reuse, find_reuse
from pipeline.runs.context import RunContext
from pipeline.runs.merging import Duplicates, Hashes, KeyFacts, require_counted, sized
from pipeline.sources.lookup import LookUp
from pipeline.storage.store import Store

log = logging.getLogger(__name__)

Predict = Callable[..., Manifest]
"""Predicts the rows of a plan and publishes them; see `dataflow.predict_and_publish`."""


def predict_with_reuse(
    run: RunContext,
    plan: Plan,
    model: ModelSpec,
    base: Manifest | None,
    predict: Predict,
    say: Callable[[str], None],
) -> Manifest:
    """Predict and publish the rows of a plan, but for those that earlier versions have.

    Args:
        run: The run, which holds the lease of its partition.
        plan: All rows; adopted.
        base: What is published of the partition now.
        predict: Gets `plan`, what is left to do, and `merge`, what it is put together with.
        say: Shows what is carried.
    """
    reuse = find_reuse(run, plan, base)
    if reuse.division is None:
        run.record.not_carried(reuse.why_not, reuse.looked_at)
        if base is not None:
            say(f"nothing is carried over: {reuse.why_not}")
        return predict(plan=plan)
    versions = [earlier.version for earlier in reuse.earlier]
    try:
        _pin(run, versions, plan.fingerprint)
        work = adopt_plan(run.store, run.layout, reuse.division.work)
        merge = CarriedMerge(plan, reuse, reuse.division, model.task)
        run.record.keep(merge.kept())
        section = carried_section(reuse.division, reuse.environment)
        run.record.carried(**section.model_dump(exclude_unset=True))
        say(f"carrying over {num_of(merge.division.carried.num_rows, 'row')}")
        manifest = predict(plan=work, merge=merge)
    except NotReadable as error:
        log.warning("nothing is carried over, all rows are computed: %s", error)
        _unpin(run, versions, plan.fingerprint)
        run.record.restart()
        run.record.not_carried(str(error), len(versions))
        manifest = predict(plan=plan)
    _unpin(run, versions, plan.fingerprint)
    return manifest


def _pin(run: RunContext, versions: Sequence[CarriedVersion], by: str) -> None:
    """Keep versions while rows of them are carried.

    Raises:
        NotReadable: A pin cannot be written, so that the version may be deleted.
    """
    for version in versions:
        try:
            pin(run.store, version.layout, version.manifest.number, version.manifest.token, by)
        except PipelineError as error:
            raise NotReadable(f"no version can be kept while it is read: {error}") from error


def _unpin(run: RunContext, versions: Sequence[CarriedVersion], by: str) -> None:
    for version in versions:
        unpin(run.store, version.layout, version.manifest.number, by)


@dataclass(frozen=True)
class CarriedMerge:
    """The rows that a run carries over, between which those go that it computes."""

    whole: Plan
    """All rows."""
    reuse: Reuse
    division: Division
    task: TaskSpec

    @property
    def published_model(self) -> None:
        """Return None: what computed the carried rows agreed with eager fp32 as well."""

    @property
    def versions(self) -> list[CarriedVersion]:
        """The sources, in their order."""
        return [earlier.version for earlier in self.reuse.earlier]

    @property
    def lookup(self) -> LookUp | None:
        """What finds rows of the work by their content."""
        return self.reuse.lookup

    def named(self, plan: Plan) -> Plan:
        """Return a plan under the name of the whole one."""
        return replace(plan, fingerprint=self.whole.fingerprint)

    def require_same_model(self, plan: Plan) -> None:
        """Do nothing: what decides predictions is the same, or nothing would be carried."""

    def kept(self, distribution: Distribution | None = None, num_duplicates: int = 0) -> KeptRows:
        """Return what is carried, as far as it is known.

        Args:
            distribution: Of its predictions; measured once the rest is computed.
            num_duplicates: Rows that lose their prediction because a computed one has their id.
        """
        return KeptRows(
            self.division.carried.num_rows,
            {Reason.DUPLICATE_ID.value: num_duplicates} if num_duplicates else {},
            distribution or Distribution(),
            None,
            self.whole.fingerprint,
            self.whole.skipped,
        )

    @property
    def found_rows(self) -> LookedUp:
        """Tells which rows of the work were found by their content."""
        return LookedUp.of(self.versions, self.whole.prediction_schema(), self.own_columns)

    @property
    def own_columns(self) -> tuple[str, ...]:
        """The columns that rows found by content have of the new input."""
        return ROW_ID, URI, *self.whole.pass_through.names

    def find_duplicates(
        self, run: RunContext, slices: Slices, hashes: Sequence[Hashes], tasks: RunTasks
    ) -> Duplicates:
        """Find computed and carried rows whose id an earlier row of the input has."""
        carried, versions = self.division.carried, self.versions
        found = find_carried_duplicates(run.store, sized(slices), hashes, carried, versions, tasks)
        return Duplicates(*found)

    def begin(
        self, run: RunContext, slices: Slices, duplicates: Duplicates, tasks: RunTasks
    ) -> MergedCarried:
        """Count the carried rows, and compare those that were predicted again."""
        task, carried, versions = make_task(self.task), self.division.carried, self.versions
        distribution, moved = measure_carried(
            *(run.store, versions, carried, self.whole.prediction_schema()),
            *(task.measured_columns(), tasks),
            gone=duplicates.carried,
        )
        if carried.by_content:
            found, _, more = measure_found(
                *(run.store, versions, sized(slices), duplicates.rows, self.found_rows),
                *(task.measured_columns(), tasks),
            )
            distribution, moved = distribution + found, moved + more
        run.record.keep(self.kept(distribution, len(duplicates.carried)))
        if "carried" in needs_of(run.job.gates):
            limits = AgreementLimits.of(run.job.gates)
            compared = compare_checked(run.store, task, slices, carried, versions, limits, tasks)
            run.record.checked(*compared)
        return MergedCarried(self, run, slices, duplicates, moved)


@dataclass(frozen=True)
class MergedCarried:
    """Computed rows, all of them, and carried ones."""

    merge: CarriedMerge
    run: RunContext
    slices: Slices
    duplicates: Duplicates
    moved: Traffic
    """What was read of earlier versions to count them."""
    unchanged: Manifest | None = None

    @property
    def key_facts(self) -> KeyFacts:
        """What is known of carried shards, and of those that were computed."""
        merge = self.merge
        return KeyFacts(
            *(
                merge.whole,
                self.unit_rows(),
                self.slices,
                merge.division.carried.runs,
                self._days(),
            ),
            duplicates=self.duplicates.rows,
            sources=tuple(earlier.keys for earlier in merge.reuse.earlier),
            gone=self.duplicates.carried,
        )

    def _days(self) -> dict[str, int]:
        """Return URI of a shard -> when the oldest of its carried predictions was computed."""
        merge, reuse = self.merge, self.merge.reuse
        days = dict(merge.division.days)
        found_in = self.run.record.units_with_found_rows
        if not found_in:
            return days
        # Which of them a row was found in is not known, so that the oldest decides.
        oldest = min(shard.computed_day for one in reuse.earlier for shard in one.shards)
        url = Store(merge.whole.source_root).url
        units = (merge.division.work.units[index] for index in found_in)
        found = {url(extent.path): oldest for unit in units for extent in unit.extents}
        return found | {uri: min(day, found.get(uri, day)) for uri, day in days.items()}

    def compact(self, compactor: Compactor, columns: Sequence[str], tasks: RunTasks) -> Compacted:
        """Write the parts of the version, or have the store copy them."""
        merge = self.merge
        compacted, moved = compact_carried(
            compactor,
            sized(self.slices),
            self.duplicates.rows,
            merge.division.carried,
            merge.versions,
            merge.own_columns,
            self.unit_rows(),
            tasks,
            gone=self.duplicates.carried,
        )
        self.run.record.carried(
            copied_parts=moved.parts_copied,
            copied_bytes=moved.bytes_copied,
            reads=self.moved.num_reads + moved.num_reads,
            read_bytes=self.moved.bytes_read + moved.bytes_read,
        )
        return compacted

    def unit_rows(self) -> Numbers:
        """Return, int64 (U,), the rows of each unit of the whole plan."""
        whole = self.merge.whole
        if not whole.counts_by_reading:
            return np.array([unit.num_rows for unit in whole.units], np.int64)
        # A unit is a shard there, and those with rows to compute are the units of the work.
        work = iter(rows_of_units(self.merge.division.work, [key for key, _ in self.slices]))
        shards = (s for s in self.merge.division.shards if s.state != "gone")
        rows = [s.carried if s.computed == 0 else s.carried + next(work) for s in shards]
        return np.array(rows, np.int64)

    def to_manifest(self, manifest: Manifest) -> Manifest:
        """Say in the manifest of the version what is carried.

        Raises:
            InfraError: The parts do not hold the rows that were counted.
        """
        require_counted(manifest, ", run again with --no-reuse")
        carried = self.run.record.carried_facts  # with what was moved
        return replace(manifest, fingerprint=self.merge.whole.fingerprint, carried=carried)
