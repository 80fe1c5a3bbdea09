"""What the keys of a retry's version are made from: its shards, their rows, and what it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.core.arrays import Numbers
from pipeline.core.failures import Reason
from pipeline.planning.carried import KnownShard
from pipeline.planning.plan import Plan
from pipeline.runs.retry.matching import Match
from pipeline.runs.retry.plan import Replan
from pipeline.sources.extents import Extent
from pipeline.storage.store import Store


def plan_as_predicted(replan: Replan, shards: Sequence[KnownShard]) -> Plan:
    """Return the plan of all rows, with the sizes and versions of shards as they were predicted.

    A shard that was mended is read as it is now, and stays in the plan as it was planned.

    Args:
        replan: What is retried.
        shards: Of the version that is retried.
    """
    root, known = Store(replan.accounts.source_root), {shard.uri: shard for shard in shards}
    read = {extent.path: extent for unit in replan.plan.units for extent in unit.extents}

    def as_predicted(planned: Extent) -> Extent:
        shard, now = known.get(root.url(planned.path)), read.get(planned.path)
        if shard and (now is None or _is_of(shard, now)):
            return replace(planned, size_bytes=shard.size_bytes, version=shard.version)
        if now is None or (now.size_bytes, now.version) == (planned.size_bytes, planned.version):
            return planned
        return replace(planned, size_bytes=now.size_bytes, version=now.exact_version)

    units = (
        replace(unit, extents=tuple(map(as_predicted, unit.extents)))
        for unit in replan.accounts.units
    )
    return replace(replan.accounts, units=tuple(units))


def _is_of(shard: KnownShard, now: Extent) -> bool:
    """Tell whether a shard is what was known of it; rows of before may be of another ctime."""
    version = shard.version
    is_same = version == now.version or version.startswith(f"{now.version}/")
    return is_same and shard.size_bytes == now.size_bytes


def rows_of_units(replan: Replan, match: Match, shards: Sequence[KnownShard]) -> Numbers:
    """Return, int64 (U,), the rows of each unit of the next version.

    Args:
        replan: What is retried.
        match: The rows that were.
        shards: Of the version that is retried.
    """
    plan, base = replan.accounts, replan.base
    if not plan.counts_by_reading:
        return np.array([unit.num_rows for unit in plan.units], np.int64)
    root, known = Store(plan.source_root), {shard.uri: shard.num_rows for shard in shards}
    uris = (root.url(unit.extents[0].path) for unit in plan.units)
    rows = np.array([known.get(uri, 0) for uri in uris], np.int64)
    # What is not known ends with a row that stands for the rest.
    rests = base.positions.take(base.is_there_for(Reason.UNREADABLE_SHARD.value))
    np.maximum.at(rows, rests.units, rests.rows + 1)
    came, left = match.entries[match.is_admitted], match.gone
    for entries, sign in ((came, 1), (left, -1)):
        rows += sign * np.bincount(base.positions.units[entries], minlength=len(rows))
    return rows


def kept_runs(match: Match, predicted_before: Numbers, num_predicted: int) -> Numbers:
    """Return what the next version keeps, between the retried rows: int64 (K, 5) as `Carried.runs`.

    Args:
        match: The retried rows.
        predicted_before: int64 (E,): predictions before each entry of the quarantine.
        num_predicted: Predictions of the version that is retried.
    """
    is_new = match.is_admitted & match.is_good
    before = np.where(is_new, predicted_before[match.entries], 0)
    before = np.maximum.accumulate(np.append(0, before))
    counts = np.diff(before, append=num_predicted)
    rows = np.flatnonzero(counts)
    units = [key.unit for key, _ in match.slices]
    starts = [key.start for key, _ in match.slices]
    firsts = np.cumsum([0, *(key.num_rows for key, _ in match.slices)])
    slices = np.searchsorted(firsts, rows, "right") - 1
    units_of, starts_of = np.append(units, units[-1] + 1), np.append(starts, 0)
    return np.stack(
        [
            units_of[slices],
            starts_of[slices] + rows - firsts[slices],
            np.zeros(len(rows), np.int64),
            before[rows],
            counts[rows],
        ],
        axis=1,
    )
