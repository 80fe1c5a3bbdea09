"""Find what a run can take over from earlier versions, and divide its plan by that.

Out: a `Reuse`: the work that is left, what is carried, and why nothing is if nothing is. Nothing is
written and no row is read. What cannot be looked up is computed; it never counts as unchanged.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np

from pipeline.commit.keys.key_index import KeyIndex
from pipeline.commit.keys.meta import NoKeys, VersionKeys, read_keys
from pipeline.commit.keys.shards import read_shards
from pipeline.commit.layout import Layout, earlier_names
from pipeline.commit.manifest import Manifest, current_manifest, read_manifest
from pipeline.commit.parts.carried.version import CarriedVersion
from pipeline.commit.published.rollback import history_numbers
from pipeline.core.errors import PipelineError
from pipeline.core.printable import num_of
from pipeline.core.versions import changed_versions, environment_versions
from pipeline.planning.carried import KnownShard, Source, day_of
from pipeline.planning.carrying import Division, Known, divide
from pipeline.planning.checked_rows import check_probability, choose_checked
from pipeline.planning.plan import Plan
from pipeline.planning.predictor import predictor_key, why_other
from pipeline.planning.slicing import SliceSizes
from pipeline.runs.context import RunContext
from pipeline.sources.lookup import LookUp

_MOST_SOURCES, _MOST_LOOKED_AT = 4, 8
_NO_WEIGHTS = "the tensors of the model come from code, so nothing proves that they are the same"


@dataclass(frozen=True)
class Earlier:
    """A version that rows may be taken from."""

    version: CarriedVersion
    keys: VersionKeys
    shards: tuple[KnownShard, ...]
    """Those whose predictions are not too old to be carried, nor of a day to come."""
    has_same_rows: bool
    """Its row ids and pass-through columns are made as those of this run."""

    @property
    def manifest(self) -> Manifest:
        """Of the version."""
        return self.version.manifest

    def index(self) -> KeyIndex:
        """Return what finds its rows by their content, but for those of other shards."""
        spans = [(s.first, s.first + s.num_rows - len(s.failed)) for s in self.shards]
        left_out = np.array([0, *chain(*spans), self.keys.num_rows], np.int64).reshape(-1, 2)
        return KeyIndex(self.keys, left_out[left_out[:, 0] < left_out[:, 1]])

    @property
    def name(self) -> str:
        """Return what people call it."""
        return f"{self.version.layout.name} version {self.manifest.number}"


@dataclass(frozen=True)
class Reuse:
    """What a run takes over."""

    division: Division | None
    """None: nothing."""
    earlier: tuple[Earlier, ...] = ()
    """The sources, in the order of `division.carried.sources`."""
    why_not: str = ""
    """Why nothing is taken over, or not from the newest version."""
    looked_at: int = 0
    """Earlier versions that were looked at. The summary of a run says why nothing is taken over if
    there are some: of a first run, and where it was asked for, that is no news."""
    environment: tuple[str, ...] = ()
    """Libraries whose version is another one than then."""
    lookup: LookUp | None = None
    """Looks up rows of the work by their content."""


def find_reuse(run: RunContext, plan: Plan, base: Manifest | None) -> Reuse:
    """Divide a plan into what is taken over and the work that is left.

    Args:
        plan: All rows.
        base: What is published of the partition now.
    """
    if why := _why_not_at_all(run, plan):
        is_news = base is not None and run.options.reuse and run.job.run.reuse != "off"
        return Reuse(None, why_not=why, looked_at=int(is_news))
    is_asked = run.job.run.reuse == "content"
    earlier, reasons = _usable(run, plan, base, by_content=is_asked)
    by_content = is_asked and any(one.keys.num_buckets for one in earlier)
    why = "; ".join(reasons) or "nothing earlier is published"
    looked_at = len(earlier) + len(reasons)
    if not earlier:
        return Reuse(None, why_not=why, looked_at=looked_at)
    has_uris = run.job.source.has_uris  # a shard says nothing of what its URIs lead to
    known = [
        Known(
            Source(one.version.layout.partition, one.manifest.number, one.manifest.token),
            {s.uri: s for s in one.shards} if one.has_same_rows and not has_uris else {},
        )
        for one in earlier
    ]
    changed = changed_versions(earlier[0].keys.about.environment, environment_versions())
    parts = [one.keys.part_rows for one in earlier]
    choose = partial(choose_checked, parts=parts, seed=plan.fingerprint, is_thorough=bool(changed))
    sizes = SliceSizes.of(run.job, plan.batch_size, plan.task, are_mostly_known=by_content)
    division = divide(plan, known, sizes, choose, by_content=by_content)
    if not division.carried.num_rows and not by_content:
        if len(division.carried.checked):
            few = num_of(len(division.carried.checked), "row")
            why = f"only {few} could be, and of so few all are predicted again as a check"
        elif not reasons:
            why = f"no shard is as it was in {earlier[0].name}"
        return Reuse(None, why_not=why, looked_at=looked_at)
    lookup = None
    if by_content:
        known_rows = sum(one.keys.num_rows for one in earlier)
        num_rows = min(division.work.num_rows or known_rows, known_rows)
        indices = [(n, one.index()) for n, one in enumerate(earlier) if one.keys.num_buckets]
        lookup = LookUp(
            tuple(plan.fields.names),
            tuple(indices),
            check_probability(num_rows, is_thorough=bool(changed)),
            plan.fingerprint,
            division.carried.checked[:, :2],
        )
    why = "; ".join(reasons)
    return Reuse(division, tuple(earlier), why, looked_at, changed, lookup)


def _why_not_at_all(run: RunContext, plan: Plan) -> str:
    job = run.job
    if not run.options.reuse:
        return "--no-reuse was given"
    if job.run.reuse == "off":
        return "run.reuse is off"
    if job.run.limit_rows is not None:
        return "run.limit_rows is set"
    if job.sink.partition_columns:
        return "sink.partition_columns sorts the rows by value"
    if job.source.has_uris and job.run.reuse == "inputs":
        return "a shard does not show what its URIs lead to; run.reuse: content goes by the bytes"
    return "" if plan.predictor else _NO_WEIGHTS


def _usable(
    run: RunContext, plan: Plan, base: Manifest | None, *, by_content: bool
) -> tuple[list[Earlier], list[str]]:
    """Return the versions to take rows from, newest first, and why newer ones are none."""
    found: list[Earlier] = []
    reasons: list[str] = []
    candidates = _candidates(run, base)
    today = day_of(dt.datetime.now(dt.UTC))
    oldest = today - run.job.run.reuse_max_age_days
    while len(found) < _MOST_SOURCES:
        try:
            layout, manifest = next(candidates)
        except StopIteration:
            break
        except (PipelineError, FileNotFoundError) as error:
            reasons.append(f"earlier versions cannot be looked for: {error}")
            break
        name = f"{layout.name} version {manifest.number}"
        try:
            keys = read_keys(run.store, layout, manifest)
            why, has_same_rows = _why_other(keys, manifest, plan, by_content=by_content)
            known = () if why else read_shards(keys)
            # A day to come is of a clock that was wrong, and would never be too old.
            shards = tuple(shard for shard in known if oldest <= shard.computed_day <= today)
        except NoKeys as error:
            reasons.append(str(error))
            continue
        except PipelineError as error:
            reasons.append(f"{name}: its keys cannot be read: {error}")
            continue
        if why:
            reasons.append(f"{name}: {why} changed")
            continue
        found.append(Earlier(CarriedVersion(layout, manifest), keys, shards, has_same_rows))
    return found, reasons if not found else []


def _why_other(
    keys: VersionKeys, manifest: Manifest, plan: Plan, *, by_content: bool
) -> tuple[str, bool]:
    """Return what changed so that no row of a version can be taken, "" if nothing did; and whether
    its rows have the columns of this run.
    """
    has_same_rows = keys.about.row_settings == plan.row_settings
    if keys.about.predictor_key != predictor_key(plan.predictor):
        parts = (manifest.fingerprint_parts, plan.fingerprint_parts)
        return why_other(manifest.model, plan.model, parts), has_same_rows
    if not has_same_rows and not (by_content and keys.num_buckets):
        return "the source section or the columns of the job", has_same_rows
    return "", has_same_rows


def _candidates(run: RunContext, base: Manifest | None) -> Iterator[tuple[Layout, Manifest]]:
    """Yield what is published of this partition, newest first, then of earlier partitions.

    Versions that a rollback has taken back are left out.
    """
    store, layout = run.store, run.layout
    taken_back: set[int] = set()
    if base is not None:
        yield layout, base
        held = history_numbers(store, layout)
        # Pins may keep a version that was taken back for longer than the one that restored another.
        for number in range(base.number, min(held, default=base.number) - 1, -1):
            if number in taken_back:
                continue
            manifest = base if number == base.number else read_manifest(store, layout, number)
            if manifest.restored_from is not None:
                taken_back |= set(range(manifest.restored_from + 1, number))
            if number != base.number and number in held:
                yield layout, manifest
    for name in earlier_names(layout.name, store.list_folders("_control"))[:_MOST_LOOKED_AT]:
        earlier = Layout(name)
        if (current := current_manifest(store, earlier)) is not None:
            yield earlier, current
