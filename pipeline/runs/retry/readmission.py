"""Merge the rows of a retry into the predictions and quarantine of a published version.

A retried row replaces its entry in the quarantine, predicted or failed; the rows of a shard that
can be read now replace the one entry that stood for it. If rows share an id, the published one
keeps it. The package's docstring has an example.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.commit.keys.meta import NoKeys, read_keys
from pipeline.commit.keys.shards import read_shards
from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, current_manifest
from pipeline.commit.parts.carried.figures import find_carried_duplicates
from pipeline.commit.parts.carried.parts import compact_carried
from pipeline.commit.parts.carried.version import CarriedVersion
from pipeline.commit.parts.compaction import Compacted, Compactor, RunTasks
from pipeline.commit.parts.part_merge import NOT_HERE, Insert, Merger, merge_folders
from pipeline.commit.parts.part_reader import read_columns
from pipeline.commit.parts.row_positions import Positions
from pipeline.core.arrays import Numbers
from pipeline.core.errors import JobError, PublishConflict
from pipeline.core.failures import Reason
from pipeline.core.figures.histograms import Distribution
from pipeline.core.schema import ERROR, ERROR_STAGE, MESSAGE
from pipeline.planning.carried import Carried, Source
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import Slices
from pipeline.report.recording.rows import KeptRows
from pipeline.runs.context import RunContext
from pipeline.runs.merging import Duplicates, Hashes, KeyFacts, require_counted, sized
from pipeline.runs.retry.known_rows import kept_runs, plan_as_predicted, rows_of_units
from pipeline.runs.retry.matching import Match, match_rows
from pipeline.runs.retry.plan import Replan
from pipeline.storage.skipped import Skipped
from pipeline.storage.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetryMerge:
    """The retried rows, and the version that they are merged into."""

    replan: Replan
    layout: Layout

    @property
    def base(self) -> Manifest:
        """The version that rows are merged into."""
        return self.replan.base.manifest

    @property
    def version(self) -> CarriedVersion:
        """Likewise, with where it lies."""
        return CarriedVersion(self.layout, self.base)

    def carried(self, runs: Numbers) -> Carried:
        """Return all its predictions as carried ones, int64 (K, 5) as `Carried.runs`."""
        source = Source(self.layout.partition, self.base.number, self.base.token)
        return Carried((source,), runs, np.zeros((0, 4), np.int64))

    @property
    def published_model(self) -> Mapping[str, Any]:
        """The model as it was run for that version."""
        return self.base.model

    def kept(self, match: Match | None = None) -> KeptRows:
        """Return what stays as it is; before anything is matched, all but the chosen rows."""
        base = self.replan.base
        gone = self.replan.chosen.entries if match is None else match.gone
        reasons = base.counts()
        reasons.subtract(base.counts(gone))
        num_rows = self.base.num_rows - len(gone)
        if match is not None:
            # Rows that replace no entry were counted with their slices.
            num_unmatched = int((~match.is_admitted).sum())
            reasons[Reason.UNREADABLE_SHARD.value] -= num_unmatched
            num_rows -= num_unmatched
        whole = (e.is_whole_shard for unit in self.replan.accounts.units for e in unit.extents)
        return KeptRows(
            num_rows,
            reasons,
            Distribution.from_dict(self.base.distribution),
            None if base.plan.counts_by_reading else sum(whole),
            self.base.fingerprint,
            Skipped.from_dict(self.base.skipped),
        )

    @property
    def lookup(self) -> None:
        """Retried rows have no prediction anywhere."""

    def named(self, plan: Plan) -> Plan:
        """Return a plan under the name by which it is kept what `auto` meant at first."""
        return replace(plan, fingerprint=self.base.fingerprint)

    def require_same_model(self, plan: Plan) -> None:
        """Make sure that rows are predicted as the published ones were.

        Raises:
            JobError: They would not be.
        """
        for name in ("runtime", "precision", "artefact_sha256"):
            now, then = plan.model.get(name), self.base.model.get(name)
            if now != then:
                raise JobError(
                    f"partition {self.layout.name}: version {self.base.number} was predicted with "
                    f"{name} {then}, now it would be {now}; `pipeline run` makes a new version"
                )

    def require_current(self, current: Manifest | None) -> None:
        """Make sure that the version that rows are merged into is still published.

        Raises:
            PublishConflict: It is not.
        """
        if current is None or current.token != self.base.token:
            raise PublishConflict(
                f"partition {self.layout.name}: version {self.base.number} was replaced "
                "meanwhile; nothing was published, run again"
            )

    def find_duplicates(
        self, run: RunContext, slices: Slices, hashes: Sequence[Hashes], tasks: RunTasks
    ) -> Duplicates:
        """Find new rows whose id is published already, or that another new one before them has."""
        before_all = self.carried(np.array([[0, 0, 0, 0, self.version.num_rows]]))
        found, _ = find_carried_duplicates(
            run.store, sized(slices), hashes, before_all, [self.version], tasks
        )
        return Duplicates(found)

    def begin(
        self, run: RunContext, slices: Slices, duplicates: Duplicates, tasks: RunTasks
    ) -> MergedRetry:
        """Match the rows with entries, and count what is kept, which must still be published."""
        match = match_rows(self.replan, run.store, slices, duplicates.rows, tasks)
        self.require_current(current_manifest(run.store, run.layout))
        run.record.keep(self.kept(match))
        run.record.retried(recovered=match.num_recovered, failed_again=match.num_failed)
        return MergedRetry(self, match, run.store)


@dataclass(frozen=True)
class MergedRetry:
    """The rows of a retry, matched with entries of the quarantine."""

    merge: RetryMerge
    match: Match
    store: Store

    @property
    def key_facts(self) -> KeyFacts | None:
        """What its keys are made from; None if the version that is retried has none."""
        replan, match = self.merge.replan, self.match
        base = replan.base
        try:
            keys = read_keys(self.store, self.merge.layout, base.manifest)
            shards = read_shards(keys)
        except NoKeys as error:
            log.info("the retried version gets no keys either: %s", error)
            return None
        if not replan.is_same_code:
            return None  # rows of two predictors
        return KeyFacts(
            plan_as_predicted(replan, shards),
            rows_of_units(replan, match, shards),
            match.slices,
            kept_runs(match, base.predicted_before, base.manifest.num_predicted),
            {shard.uri: shard.computed_day for shard in shards},
            match.duplicates,
            (keys,),
        )

    @property
    def unchanged(self) -> Manifest | None:
        """The version that is retried, if all rows failed again just as they had."""
        match, base = self.match, self.merge.base
        entries = self.merge.replan.chosen.entries
        if match.num_recovered or not np.array_equal(match.entries, entries):
            return None
        paths = [part.path for part in base.quarantine_parts]
        old = _failure_texts(self.store, paths, "stage", "reason")
        staged = [file.path for _, file in match.slices]
        new = _failure_texts(self.store, staged, ERROR_STAGE, ERROR)
        return base if old.take(pa.array(entries)).equals(new) else None

    def compact(self, compactor: Compactor, columns: Sequence[str], tasks: RunTasks) -> Compacted:
        """Write the parts of the next version."""
        match, base, layout = self.match, self.merge.replan.base, self.merge.layout
        published = base.manifest
        merger = Merger(compactor, tuple(columns))
        here = match.is_admitted
        keys = base.positions.keys[match.entries] + match.minors
        good, failed = here & match.is_good, here & ~match.is_good
        if columns:
            inserts = _inserts(match, np.where(good, keys, NOT_HERE))
            types = published.partition_columns
            parts = merge_folders(merger, published.parts, inserts, layout, types, tasks)
        else:
            slices, versions = sized(match.slices), [self.merge.version]
            runs = kept_runs(match, base.predicted_before, published.num_predicted)
            carried = self.merge.carried(runs)
            compacted, _ = compact_carried(
                compactor, slices, match.duplicates, carried, versions, (), None, tasks
            )
            parts = [*compacted.predictions]
        positions = merge_positions(
            *(base.positions, base.predicted_before, match),
            is_counted=not base.plan.counts_by_reading,
        )
        [quarantine] = tasks(
            merger.into_quarantine,
            [(
                published.quarantine_parts,
                base.positions.keys[match.gone],
                tuple(_inserts(match, np.where(failed, keys, NOT_HERE))),
                positions,
            )],
        )  # fmt: skip
        return compactor.whole(parts, quarantine)

    def to_manifest(self, manifest: Manifest) -> Manifest:
        """Say in the manifest of the next version what it consists of.

        Raises:
            InfraError: The parts do not hold the rows that were counted.
        """
        require_counted(manifest)
        accounts = self.merge.replan.accounts.fingerprint
        return replace(
            manifest,
            fingerprint=self.merge.base.fingerprint,
            plan=None if accounts == self.merge.base.fingerprint else accounts,
            retry=self.merge.replan.plan.fingerprint,
            ctimes_sha256="",  # a run would adopt the first plan, and lose what was mended
        )


def merge_positions(
    positions: Positions, predicted_before: Numbers, match: Match, *, is_counted: bool
) -> Positions:
    """Return positions of the next version's quarantine: entries that stay, and rows that failed.

    Args:
        positions: Of the N entries.
        predicted_before: int64 (N,): predictions before each entry.
        match: The staged rows.
        is_counted: The plan counts the rows. If only reading does, an entry may stand for the rest
            of a shard, whose later rows have later numbers.

    Returns:
        Of K rows, ascending by key.
    """
    good = match.is_admitted & match.is_good
    failed = match.is_admitted & ~match.is_good
    keys = positions.keys[match.entries] + match.minors
    stays = np.ones(len(positions), bool)
    stays[match.gone] = False
    new = positions.take(match.entries[failed])
    rows = new.rows if is_counted else new.rows + match.minors[failed]
    new = replace(new, keys=keys[failed], rows=rows)
    predicted = np.concatenate([predicted_before[stays], predicted_before[match.entries[failed]]])
    merged = Positions.joined([positions.take(stays), new])
    order = np.argsort(merged.keys, kind="stable")
    merged, predicted = merged.take(order), predicted[order]
    predicted += np.searchsorted(keys[good], merged.keys)
    return replace(merged, ranks=predicted + np.arange(len(merged)))


def _inserts(match: Match, keys: Numbers) -> list[Insert]:
    """Return the slices of which rows are merged; keys are of all rows, or NOT_HERE."""
    inserts = []
    first = 0
    for key, file in match.slices:
        own = keys[first : first + key.num_rows]
        first += key.num_rows
        if (own != NOT_HERE).any():
            sized = (key, file.path, float(file.size_bytes))
            inserts.append(Insert(sized, match.duplicates.get(key, ()), own))
    return inserts


def _failure_texts(store: Store, paths: Sequence[str], stage: str, reason: str) -> pa.Table:
    """Read why rows failed."""
    tables = [read_columns(store, path, [stage, reason, MESSAGE]) for path in paths]
    named = [table.select([stage, reason, MESSAGE]) for table in tables]
    texts = pa.schema([(name, pa.string()) for name in ("stage", "reason", MESSAGE)])
    return pa.concat_tables(
        [pa.table(table.columns, names=texts.names).cast(texts) for table in named]
    ).combine_chunks()
