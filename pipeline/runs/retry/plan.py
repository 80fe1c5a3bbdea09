"""The plan of a retry: the chosen rows of the quarantine as extents of their shards.

Pure over a store of inputs. Rows of shards that are no longer what was planned stay where they are.
A shard that could not be read stands as one row in the quarantine: if it can be read now, all its
rows replace it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate, groupby

import numpy as np

from pipeline.commit.plan_store import plan_to_json
from pipeline.commit.row_positions import MAX_MINOR, minor_of
from pipeline.core.arrays import Numbers
from pipeline.core.failures import Reason
from pipeline.core.schema import FEATURES
from pipeline.core.semantics import SEMANTICS
from pipeline.job.job import Job
from pipeline.plan.plan import Plan
from pipeline.plan.slicing import MAX_SLICE_BYTES, SliceSizes, make_units
from pipeline.runs.retry.quarantine import Base, Chosen
from pipeline.sources.extents import Cut, Extent
from pipeline.sources.source_format import format_of
from pipeline.sources.units import Unit
from pipeline.storage.store import Store, StoredFile

_STAT_THREADS = 16


@dataclass(frozen=True)
class Replan:
    """What is retried, and which entry each row replaces."""

    base: Base
    chosen: Chosen
    plan: Plan
    accounts: Plan
    """Of all rows that the next version has."""
    counts: Numbers
    """(E,) rows of each chosen row of the quarantine: 1, or those of its shard. Of a row that
    stands for the rest of a tar they are unknown: -1."""


@dataclass(frozen=True)
class _Piece:
    """Chosen rows of one extent."""

    extent: Extent
    numbers: tuple[int, ...]
    """In the shard."""
    entries: tuple[int, ...]
    """Which rows of the quarantine they are."""


def replan(base: Base, chosen: Chosen, job: Job, inputs: Store) -> Replan:
    """Make the plan of a retry.

    Args:
        base: What is published.
        chosen: The rows of its quarantine that are asked for.
        job: The job; it asks for what was published.
        inputs: The source.
    """
    make = _replan_uncounted if base.plan.counts_by_reading else _replan_extents
    return make(base, chosen, job, inputs)


# ---------------------------------------------------------------------------- rows counted before


def _replan_extents(base: Base, chosen: Chosen, job: Job, inputs: Store) -> Replan:
    pieces = list(_pieces(base, chosen.entries))
    by_path = {piece.extent.path: piece.extent for piece in pieces}
    found = _look_up(inputs, list(by_path.values()))
    fresh = _measure(base, job, inputs, [found[path] for path in found if by_path[path].reason])
    extents: list[Extent] = []
    entries: list[int] = []
    counts: list[int] = []
    lost: dict[str, int] = {}
    for piece in pieces:
        path = piece.extent.path
        again = _again(piece, fresh) if path in found and _is_open(piece, job, fresh) else None
        if again is None:
            lost[path] = lost.get(path, 0) + len(piece.entries)
            continue
        extents += again
        entries += piece.entries
        num_rows = sum(extent.num_rows for extent in again)
        counts += [num_rows] if piece.extent.is_whole_shard else [1] * len(piece.entries)
    readable = {
        path: extents for path, extents in fresh.items()
        if path in found and not _is_unread(extents) and by_path[path].is_whole_shard
        and path not in lost
    }  # fmt: skip
    units = tuple(make_units(extents, SliceSizes.of(job, base.plan.batch_size)))
    kept = replace(
        chosen,
        entries=np.array(entries, np.int64),
        changed=sum(lost.values()),
        shards=tuple(lost)[:3],
    )
    return _finish(base, kept, units, counts, _account(base, readable))


def _pieces(base: Base, entries: Numbers) -> Iterator[_Piece]:
    """Find the extents of rows of the quarantine, those of one extent together."""
    expanded = {path: _Rows(extents) for path, extents in _expanded(base).items()}
    units = {unit.index: _Rows(unit.extents) for unit in base.plan.units}

    def locate(unit: int, row: int, minor: int) -> tuple[Extent, int]:
        extent, row = units[unit].locate(row)
        if extent.is_whole_shard and extent.path in expanded:
            return expanded[extent.path].locate(minor)
        return extent, row

    wanted = base.positions.take(entries)
    columns = (entries, wanted.units, wanted.rows, minor_of(wanted.keys))
    rows_of = zip(*(column.tolist() for column in columns), strict=True)
    located = ((entry, *locate(*position)) for entry, *position in rows_of)
    for extent, group in groupby(located, key=lambda found: found[1]):
        rows = list(group)
        numbers = tuple(extent.first_row + row for _, _, row in rows)
        yield _Piece(extent, numbers, tuple(entry for entry, _, _ in rows))


class _Rows:
    """The rows of extents, one after the other."""

    def __init__(self, extents: Sequence[Extent]) -> None:
        self._extents = extents
        self._ends = list(accumulate(extent.num_rows for extent in extents))

    def locate(self, row: int) -> tuple[Extent, int]:
        """Return the extent that holds a row, and its number there."""
        index = bisect_right(self._ends, row)
        return self._extents[index], row - (self._ends[index - 1] if index else 0)


def _expanded(base: Base) -> Mapping[str, tuple[Extent, ...]]:
    """Return the extents of the shards that became readable since the first run."""
    if base.accounts is base.plan:
        return {}
    whole = {e.path for unit in base.plan.units for e in unit.extents if e.is_whole_shard}
    found: dict[str, tuple[Extent, ...]] = {}
    for unit in base.accounts.units:
        for path, group in groupby(unit.extents, key=lambda extent: extent.path):
            extents = tuple(group)
            if path in whole and not _is_unread(extents):
                found[path] = extents
    return found


def _is_unread(extents: Sequence[Extent]) -> bool:
    return any(extent.is_whole_shard for extent in extents)


def _look_up(inputs: Store, extents: Sequence[Extent]) -> dict[str, StoredFile]:
    """Return the shards that are still what was planned."""
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        found = pool.map(lambda extent: inputs.stat(extent.path), extents)
        return {
            extent.path: file
            for extent, file in zip(extents, found, strict=True)
            if file and (file.size_bytes, file.version) == (extent.size_bytes, extent.version)
        }


def _measure(
    base: Base, job: Job, inputs: Store, shards: Sequence[StoredFile]
) -> Mapping[str, tuple[Extent, ...]]:
    """Measure again the shards that were not readable, or did not fit."""
    source, plan = job.source, base.plan
    # If no shard was readable, the types of columns were unknown, and predictions have none.
    is_declared = list(source.pass_through) == plan.pass_through.names
    if not shards or not is_declared or bool(source.features) != (FEATURES in plan.fields.names):
        return {}
    rows_max = SliceSizes.of(job, plan.batch_size).most
    form = format_of(source)
    return form.remeasure(inputs, shards, source, plan.pass_through, max_extent_rows=rows_max)


def _is_open(piece: _Piece, job: Job, fresh: Mapping[str, tuple[Extent, ...]]) -> bool:
    """Tell whether rows can be retried; `run.limit_rows` admits none that it left out."""
    if piece.extent.reason is None:
        return True
    if piece.extent.path not in fresh:
        return False
    extents = fresh[piece.extent.path]
    if not piece.extent.is_whole_shard:
        return not _is_unread(extents)
    num_rows = sum(extent.num_rows for extent in extents)
    return _is_unread(extents) or (job.run.limit_rows is None and num_rows < MAX_MINOR)


def _again(piece: _Piece, fresh: Mapping[str, tuple[Extent, ...]]) -> list[Extent]:
    """Return the extents that read the rows of a piece."""
    if piece.extent.reason is None:
        is_all = len(piece.numbers) == piece.extent.num_rows
        return [piece.extent if is_all else piece.extent.choose(piece.numbers)]
    extents = fresh[piece.extent.path]
    if piece.extent.is_whole_shard:
        return list(extents)
    chosen = [
        (extent, [n for n in piece.numbers if n in range(extent.first_row, _end(extent))])
        for extent in extents
    ]
    return [extent.choose(numbers) for extent, numbers in chosen if numbers]


def _end(extent: Extent) -> int:
    return extent.first_row + extent.num_rows


def _account(base: Base, readable: Mapping[str, tuple[Extent, ...]]) -> Plan:
    """Return the plan of all rows, in which shards that can be read now stand with their rows."""
    if not readable:
        return base.accounts
    units = []
    for unit in base.accounts.units:
        extents = tuple(
            extent
            for old in unit.extents
            for extent in (readable.get(old.path, (old,)) if old.is_whole_shard else (old,))
        )
        units.append(Unit(unit.index, extents, (0, sum(extent.num_rows for extent in extents))))
    return _sealed(replace(base.accounts, units=tuple(units)), base.accounts.fingerprint)


# ---------------------------------------------------------------------------- counted in reading


def _replan_uncounted(base: Base, chosen: Chosen, job: Job, inputs: Store) -> Replan:
    units: list[Unit] = []
    entries: list[int] = []
    counts: list[int] = []
    lost: dict[str, int] = {}
    slice_rows = SliceSizes.of(job, base.plan.batch_size).most
    of = {unit.index: unit for unit in base.plan.units}
    numbers = base.positions.units[chosen.entries].tolist()
    needed = [extent for number in dict.fromkeys(numbers) for extent in of[number].extents]
    found = _look_up(inputs, needed)
    is_rest = base.is_there_for(Reason.UNREADABLE_SHARD.value)
    grouped = groupby(zip(numbers, chosen.entries.tolist(), strict=True), key=lambda pair: pair[0])
    for number, group in grouped:
        unit, own = of[number], [entry for _, entry in group]
        rests = [entry for entry in own if is_rest[entry]]
        if job.run.limit_rows is not None:  # what follows is limited, so nothing can come in
            own = [entry for entry in own if entry not in rests]
            _count(lost, unit, len(rests))
            rests = []
        if any(extent.path not in found for extent in unit.extents):
            _count(lost, unit, len(own))
            own = []
        if not own:
            continue
        rows = tuple(base.positions.rows[[e for e in own if e not in rests]].tolist())
        beyond = int(base.positions.rows[rests[0]]) if rests else None
        cut = Cut(slice_rows, MAX_SLICE_BYTES, None, (), rows, beyond)
        units.append(Unit(len(units), unit.extents, (), cut))
        entries += own
        counts += [1] * len(rows) + [-1] * len(rests)
    kept = replace(
        chosen,
        entries=np.array(entries, np.int64),
        changed=sum(lost.values()),
        shards=tuple(path for path in lost if lost[path])[:3],
    )
    return _finish(base, kept, tuple(units), counts, base.accounts)


def _count(lost: dict[str, int], unit: Unit, num_rows: int) -> None:
    path = unit.extents[0].path
    lost[path] = lost.get(path, 0) + num_rows


# ---------------------------------------------------------------------------- both


def _finish(
    base: Base, chosen: Chosen, units: tuple[Unit, ...], counts: Sequence[int], accounts: Plan
) -> Replan:
    plan = replace(
        base.plan,
        units=units,
        input_bytes=sum({e.path: e.size_bytes for u in units for e in u.extents}.values()),
        created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )
    versions = json.dumps(SEMANTICS, sort_keys=True)
    plan = _sealed(plan, f"{base.manifest.number} {base.manifest.token} {versions}")
    return Replan(base, chosen, plan, accounts, np.array(counts, np.int64))


def _sealed(plan: Plan, salt: str) -> Plan:
    """Give a plan a fingerprint of what it holds, and of what it is for."""
    content = plan_to_json(replace(plan, fingerprint="", created_at=""), "")
    return replace(plan, fingerprint=hashlib.sha256(salt.encode() + content).hexdigest())
