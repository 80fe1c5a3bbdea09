"""Find the versions that a run can carry predictions from, and divide its plan by them.

Nothing is written and no row is read. A version that cannot be looked up is not used: its rows are
computed.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.commit.layout import Layout, earlier_names
from pipeline.commit.manifest import Manifest, current_or_unknown, read_or_unknown
from pipeline.commit.publish import history_numbers
from pipeline.commit.shard_table import KnownShard, NoKeys, ShardTable, read_shard_table
from pipeline.core.errors import PipelineError
from pipeline.core.failures import Reason
from pipeline.core.output_folders import CONTROL
from pipeline.core.printable import num_of
from pipeline.core.semantics import changed_versions, environment_versions
from pipeline.job.job import Job
from pipeline.planning.plan import Plan
from pipeline.planning.predictor_key import why_other
from pipeline.planning.slicing import SliceSizes
from pipeline.reuse.checked_sample import LEAST_ROWS, check_probability, choose_checked
from pipeline.reuse.dividing import Division, Known, divide, known_counts, known_runs, slice_rows
from pipeline.reuse.retried import Retry, kept_failures
from pipeline.reuse.version_rows import ContentIndex, Version
from pipeline.storage.store import Store

_MOST_SOURCES, _MOST_LOOKED_AT = 4, 8
_USUAL_BYTES = 1024.0
"""Size of a prediction, if no version tells it."""
_NO_WEIGHTS = "the tensors of the model come from code, so nothing proves that they are the same"
_LIMITED = "run.limit_rows is set"
_OF_CODE = {"inputs", "semantics", "extensions"}
"""Parts of the fingerprint in which a retried version may differ."""


@dataclass(frozen=True)
class Earlier:
    """A version that rows may be carried from."""

    version: Version
    manifest: Manifest
    table: ShardTable
    shards: tuple[KnownShard, ...]
    """Shards whose predictions are neither too old nor of a future day."""
    has_same_rows: bool
    """Whether its row ids and pass-through columns are made as in this run."""

    def index(self) -> ContentIndex:
        """Return the index that finds its rows by content, without rows of other shards."""
        spans = [(s.first, s.first + s.num_rows - len(s.failed)) for s in self.shards]
        left_out = np.array([0, *chain(*spans), self.table.about.num_rows], np.int64)
        left_out = left_out.reshape(-1, 2)
        return ContentIndex(self.version, left_out[left_out[:, 0] < left_out[:, 1]])


@dataclass(frozen=True)
class Reuse:
    """What a run carries, and from where."""

    plan: Plan
    """The plan of the run, cut by the known rows."""
    division: Division | None = None
    """None: nothing is carried."""
    earlier: tuple[Earlier, ...] = ()
    """Newest first."""
    why_not: str = ""
    """Why nothing is carried, or nothing from the newest version."""
    looked_at: int = 0
    """Number of earlier versions that were considered. If there are some, the summary of the run
    says why nothing is carried; for a first run, or with --no-reuse, that is no news."""
    environment: tuple[str, ...] = ()
    """Libraries whose version has changed since."""
    by_content: bool = False
    """Rows are also looked up by their content while they are read."""
    retry: Retry | None = None

    @property
    def sources(self) -> frozenset[str]:
        """`Version.source` of the versions from which staged slices may have carried rows."""
        return frozenset(source.version.source for source in self.earlier if self.division)

    @property
    def days(self) -> dict[str, int]:
        """URI of a known shard -> day on which its predictions were computed."""
        known = self.division.known.values() if self.division else ()
        return {shard.uri: shard.computed_day for _, shard in known}

    @property
    def oldest_day(self) -> int:
        """Day on which the oldest prediction that may be carried was computed; 0 if unknown."""
        days = (shard.computed_day for source in self.earlier for shard in source.shards)
        return min(days, default=0)

    @property
    def has_mixed_code(self) -> bool:
        """Whether a retry keeps rows that were computed by code of other semantics."""
        if self.retry is None or self.division is None:
            return False
        is_same = self.earlier[0].table.about.predictor_key == self.plan.predictor_key
        return not is_same and self.retry.base.fingerprint != self.plan.fingerprint

    def known(self, job: Job) -> Known | None:
        """Return the known rows for readers; None if rows are neither known nor hashed."""
        plan = self.plan
        bare = Known(
            (), plan.staged_schema(), plan.source_columns, (*plan.fields.names,),
            hashes=plan.has_hashes, seed=plan.fingerprint,
            usual_rows=SliceSizes.of(job, plan.batch_size, plan.task).most,
        )  # fmt: skip
        if self.division is None:
            return bare if plan.has_hashes else None
        runs = known_runs(plan.units, self.division.known)
        is_thorough, checked = bool(self.environment), np.zeros((0, 2), np.int64)
        if self.retry is None and len(runs):
            parts = [
                [source.table.about.num_rows]
                if source.version.has_places
                else [part.num_rows for part in source.manifest.parts]
                for source in self.earlier
            ]
            checked = choose_checked(runs, parts, plan.fingerprint, is_thorough=is_thorough)
        num_rows = sum(source.table.about.num_rows for source in self.earlier)
        return replace(
            bare,
            versions=tuple(source.version for source in self.earlier),
            runs=runs,
            checked=checked,
            counts=known_counts(plan.units, self.division.known),
            broken_off=known_counts(plan.units, self.division.known, break_off=True),
            failures=self._kept_failures(self.division),
            most_rows=slice_rows(self.row_bytes),
            indices=tuple(
                source.index()
                for source in self.earlier
                if self.by_content and source.version.has_hashes
            ),
            checked_probability=check_probability(
                min(plan.num_rows or num_rows, num_rows), is_thorough=is_thorough
            ),
        )

    def _kept_failures(self, division: Division) -> pa.Table | None:
        if self.retry is None:
            return None
        base = self.earlier[0]
        lost_shards = len(division.known) < len(base.shards)
        return kept_failures(
            base.version.store, self.retry, division, self.plan, lost_shards=lost_shards
        )

    @property
    def row_bytes(self) -> float:
        """About the size of a prediction."""
        parts = [part for source in self.earlier for part in source.manifest.parts]
        num_bytes, num_rows = (
            sum(getattr(part, name) for part in parts) for name in ("size_bytes", "num_rows")
        )
        return num_bytes / num_rows if num_rows else _USUAL_BYTES


def find_reuse(
    store: Store,
    layout: Layout,
    job: Job,
    plan: Plan,
    base: Manifest | None,
    *,
    is_asked: bool,
    retry: Retry | None = None,
) -> Reuse:
    """Divide a plan into rows that are carried and rows that are computed.

    Args:
        store: The output.
        layout: The partition.
        job: The job of the run.
        plan: The plan of all rows.
        base: The version that is published now.
        is_asked: False with `--no-reuse`.
        retry: The version that is retried; None: this is not a retry.
    """
    if retry is None and (why := _why_not_at_all(job, plan, is_asked=is_asked)):
        is_news = base is not None and is_asked and job.run.reuse != "off"
        return Reuse(plan, why_not=why, looked_at=int(is_news))
    if job.run.limit_rows is not None:
        return Reuse(plan, why_not=_LIMITED, looked_at=1, retry=retry)
    wants_content = job.run.reuse == "content" and retry is None
    earlier, reasons = _usable(store, layout, job, plan, base, retry, by_content=wants_content)
    by_content = wants_content and any(source.version.has_hashes for source in earlier)
    why, looked_at = "; ".join(reasons) or "nothing earlier is published", len(earlier + reasons)
    no_reuse = Reuse(plan, why_not=why, looked_at=looked_at, retry=retry)
    if not earlier:
        return no_reuse
    # A shard of URIs does not tell whether the content behind them has changed.
    has_uris = job.source.has_uris and retry is None
    known = [
        {s.uri: s for s in source.shards} if source.has_same_rows and not has_uris else {}
        for source in earlier
    ]
    reuse = replace(no_reuse, earlier=tuple(earlier), by_content=by_content)
    sizes = SliceSizes.of(job, plan.batch_size, plan.task)
    division = divide(plan, known, reuse.row_bytes, sizes)
    few = division.num_known <= LEAST_ROWS and retry is None
    if few and not by_content:
        if division.num_known:
            count = num_of(division.num_known, "row")
            why = f"only {count} could be carried, and so few are all predicted again as a check"
        elif not reasons:
            why = f"no shard is as it was in {earlier[0].version.name}"
        return replace(no_reuse, why_not=why)
    changed = changed_versions(earlier[0].table.about.environment, environment_versions())
    return replace(
        reuse,
        plan=replace(plan, units=division.units),
        division=division,
        why_not="; ".join(reasons),
        environment=changed,
    )


def _why_not_at_all(job: Job, plan: Plan, *, is_asked: bool) -> str:
    if not is_asked:
        return "--no-reuse was given"
    if job.run.reuse == "off":
        return "run.reuse is off"
    if job.run.limit_rows is not None:
        return _LIMITED
    if job.source.has_uris and job.run.reuse == "inputs":
        return "a shard does not show what its URIs lead to; run.reuse: content goes by the bytes"
    return "" if plan.predictor_key else _NO_WEIGHTS


def _usable(
    store: Store,
    layout: Layout,
    job: Job,
    plan: Plan,
    base: Manifest | None,
    retry: Retry | None,
    *,
    by_content: bool,
) -> tuple[list[Earlier], list[str]]:
    """Return the versions to carry rows from, newest first, and why newer ones are not used."""
    usable: list[Earlier] = []
    reasons: list[str] = []
    candidates = _candidates(store, layout, base) if retry is None else iter([(layout, retry.base)])
    today = day_of(dt.datetime.now(dt.UTC))
    oldest = today - job.run.reuse_max_age_days
    while len(usable) < _MOST_SOURCES:
        try:
            where, manifest = next(candidates)
        except StopIteration:
            break
        except (PipelineError, FileNotFoundError) as error:
            reasons.append(f"earlier versions cannot be looked for: {error}")
            break
        name = f"{where.name} version {manifest.number}"
        try:
            table = read_shard_table(store, where, manifest)
        except NoKeys as error:
            reasons.append(str(error))
            continue
        except PipelineError as error:
            reasons.append(f"{name}: the table of its shards cannot be read: {error}")
            continue
        has_same_rows = table.about.row_settings == plan.row_settings
        has_hashes = table.about.kind == "content"
        if not has_same_rows and not by_content:
            changed = "source.uri, the source section or the columns of the job changed"
            reasons.append(f"{name}: {changed}")
        elif why := _why_other(table, manifest, plan, retry):
            reasons.append(f"{name}: {why} changed")
        elif plan.has_hashes and not has_hashes and retry is None:
            reasons.append(f"{name} has no hashes, which run.reuse: content asks for")
        else:
            # A future day comes from a wrong clock, and would never be too old.
            recent = (s for s in table.shards if oldest <= s.computed_day <= today)
            uncounted = plan.counts_by_reading
            known = [s for s in recent if not (s.breaks_off and uncounted)]
            shards = tuple(table.shards if retry else known)
            if retry and Reason.UNREADABLE_SHARD not in retry.reasons:
                shards = tuple(replace(shard, breaks_off=False) for shard in shards)
            days = [shard.computed_day for shard in shards]
            facts = (table.about.has_places, has_hashes, f"{min(days)}-{max(days)}" if days else "")
            version = Version(store, where.partition, manifest.number, manifest.token, *facts)
            usable.append(Earlier(version, manifest, table, shards, has_same_rows))
    return usable, reasons if not usable else []


def _why_other(table: ShardTable, manifest: Manifest, plan: Plan, retry: Retry | None) -> str:
    """Return what changed so that no prediction of a version can be carried; empty if nothing."""
    then, now = manifest.fingerprint_parts, plan.fingerprint_parts
    key = plan.predictor_key
    if key and table.about.predictor_key == key:
        return ""
    if retry is not None:
        is_same = manifest.fingerprint == plan.fingerprint
        if is_same or (key and _settings(then) == _settings(now)):
            return ""
    return why_other(manifest.model, plan.model, (then, now))


def _settings(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parts.items() if name not in _OF_CODE}


def _candidates(
    store: Store, layout: Layout, base: Manifest | None
) -> Iterator[tuple[Layout, Manifest]]:
    """Yield the versions of this partition, newest first, then current ones of earlier partitions.

    Versions that a rollback has taken back are skipped.
    """
    taken_back: set[int] = set()
    if base is not None and base.is_known:
        yield layout, base
        held = history_numbers(store, layout)
        for number in range(base.number, min(held, default=base.number) - 1, -1):
            if number in taken_back:
                continue
            is_base = number == base.number
            manifest = base if is_base else read_or_unknown(store, layout, number)
            if not manifest.is_known:
                break  # it may have taken back earlier ones
            if manifest.restored_from is not None:
                taken_back |= set(range(manifest.restored_from + 1, number))
            if not is_base and number in held:
                yield layout, manifest
    for name in earlier_names(layout.name, store.list_folders(CONTROL))[:_MOST_LOOKED_AT]:
        earlier = Layout(name)
        if (current := current_or_unknown(store, earlier)) and current.is_known:
            yield earlier, current


def day_of(time: dt.datetime) -> int:
    """Return the day of a time, counted from 1970."""
    return (time.date() - dt.date(1970, 1, 1)).days
