"""The plan of a retry: the chosen rows of the quarantine as extents of their shards.

Pure over a store of inputs. A shard that could not be read stands as one row in the quarantine: if
it can be read now, all its rows replace it. A shard that has changed since it was planned is read
if nothing was predicted of it: then it has been mended, and no version of a row is mixed with rows
of another version of its shard. Rows of other changed shards stay where they are.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby

import numpy as np
import numpy.typing as npt

from pipeline.commit.parts.row_positions import MAX_MINOR, ordinal_within_entry
from pipeline.commit.plan_store import plan_to_json
from pipeline.core.arrays import Numbers
from pipeline.core.failures import Reason
from pipeline.core.registry import SOURCES
from pipeline.core.user_code.own_code import errors_told
from pipeline.job.job import Job
from pipeline.models.spec import ModelSpec
from pipeline.planning.plan import Plan, job_extensions, job_semantics
from pipeline.planning.slicing import SliceSizes, make_units
from pipeline.runs.retry.quarantine import Base, Selection
from pipeline.runs.retry.shards import as_found, look_up
from pipeline.sources.extents import MAX_SLICE_BYTES, Extent, RowFilter, UncountedPlan
from pipeline.sources.input_columns import are_measured
from pipeline.sources.source_format import format_of
from pipeline.sources.units import Unit
from pipeline.storage.store import Store, StoredFile

UNKNOWN_ROWS = -1
"""Of an entry that stands for the rest of a tar."""


@dataclass(frozen=True)
class Replan:
    """What is retried, and which entry each row replaces."""

    base: Base
    chosen: Selection
    plan: Plan
    accounts: Plan
    """Of all rows that the next version has."""
    counts: Numbers
    """int64 (E,): rows of each chosen row of the quarantine: 1, or those of its shard, or
    UNKNOWN_ROWS."""
    is_same_code: bool = True
    """Whether what computes is of the same semantics as what computed the version."""


@dataclass(frozen=True)
class _Piece:
    """Chosen rows of one extent."""

    extent: Extent
    numbers: tuple[int, ...]
    """In the shard."""
    entries: tuple[int, ...]
    """Which rows of the quarantine they are."""


@dataclass(frozen=True)
class _Retried:
    """Entries of one shard that are retried, and how many cannot be."""

    path: str
    extents: tuple[Extent, ...] = ()
    """They read the rows."""
    entries: tuple[int, ...] = ()
    """Rows of the quarantine."""
    counts: tuple[int, ...] = ()
    """Rows of each entry, as `Replan.counts`."""
    cut: UncountedPlan | None = None
    """If only reading counts rows: which of them."""
    num_lost: int = 0
    """Entries whose input is gone, changed, or beyond `run.limit_rows`."""


def replan(base: Base, chosen: Selection, job: Job, model: ModelSpec, inputs: Store) -> Replan:
    """Make the plan of a retry.

    Args:
        base: What is published.
        chosen: The rows of its quarantine that are asked for.
        job: The job; it asks for what was published.
        inputs: The source.
    """
    make = _replan_uncounted if base.plan.counts_by_reading else _replan_extents
    found = make(base, chosen, job, inputs)
    # The same rows predicted by other code are staged elsewhere.
    code = {**job_semantics(job, model), **job_extensions(job, model)}
    versions = json.dumps(code, sort_keys=True)
    salt = f"{base.manifest.number} {base.manifest.token} {versions}"
    parts = base.plan.fingerprint_parts
    then = {**parts.get("semantics", {}), **parts.get("extensions", {})}
    return replace(found, plan=_sealed(found.plan, salt), is_same_code=code == then)


# ---------------------------------------------------------------------------- rows counted before


def _replan_extents(base: Base, chosen: Selection, job: Job, inputs: Store) -> Replan:
    pieces = list(_pieces(base, chosen.entries))
    by_path = {piece.extent.path: piece.extent for piece in pieces}
    is_one_row = format_of(job.source).counts_rows == "listing"
    found = look_up(inputs, by_path.values(), lambda e: is_one_row or e.is_whole_shard)
    fresh = _measure(base, job, inputs, [found[path] for path in found if by_path[path].reason])
    retried = [_retry_piece(piece, job, fresh, found.get(piece.extent.path)) for piece in pieces]
    kept = _kept(chosen, retried)
    lost = {each.path for each in retried if each.num_lost}
    readable = {
        path: extents for path, extents in fresh.items()
        if path in found and not _is_unread(extents) and by_path[path].is_whole_shard
        and path not in lost
    }  # fmt: skip
    extents = [extent for each in retried for extent in each.extents]
    sizes = SliceSizes.of(job, base.plan.batch_size, base.plan.task)
    units = tuple(make_units(extents, sizes))
    return _finish(base, kept, units, _counts(retried), _account(base, readable))


def _retry_piece(
    piece: _Piece, job: Job, fresh: Mapping[str, tuple[Extent, ...]], found: StoredFile | None
) -> _Retried:
    """Return what can be retried of a piece: all of it, or nothing."""
    path = piece.extent.path
    if found is None or not _is_open(piece, job, fresh):
        return _Retried(path, num_lost=len(piece.entries))
    extents = tuple(_again(piece, fresh, found))
    num_rows = sum(extent.num_rows for extent in extents)
    counts = (num_rows,) if piece.extent.is_whole_shard else (1,) * len(piece.entries)
    return _Retried(path, extents, piece.entries, counts)


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
    columns = (entries, wanted.units, wanted.rows, ordinal_within_entry(wanted.keys))
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


def _measure(
    base: Base, job: Job, inputs: Store, shards: Sequence[StoredFile]
) -> Mapping[str, tuple[Extent, ...]]:
    """Measure again the shards that were not readable, or did not fit."""
    source, plan = job.source, base.plan
    # If no shard was readable, the types of columns were unknown, and predictions have none.
    is_declared = list(source.pass_through) == plan.pass_through.names
    if not shards or not is_declared or not are_measured(source, plan.fields):
        return {}
    rows_max = SliceSizes.of(job, plan.batch_size, plan.task).most
    form = format_of(source)
    with errors_told(SOURCES, source.format):
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


def _again(
    piece: _Piece, fresh: Mapping[str, tuple[Extent, ...]], found: StoredFile
) -> list[Extent]:
    """Return the extents that read the rows of a piece."""
    if piece.extent.reason is None:
        is_all = len(piece.numbers) == piece.extent.num_rows
        extent = as_found(piece.extent, found)
        return [extent if is_all else extent.choose(piece.numbers)]
    extents = fresh[piece.extent.path]
    if piece.extent.is_whole_shard:
        return list(extents)
    chosen = [
        (extent, [number for number in piece.numbers if number in extent.numbers()])
        for extent in extents
    ]
    return [extent.choose(numbers) for extent, numbers in chosen if numbers]


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


def _replan_uncounted(base: Base, chosen: Selection, job: Job, inputs: Store) -> Replan:
    of = {unit.index: unit for unit in base.plan.units}
    numbers = base.positions.units[chosen.entries].tolist()
    needed = [extent for number in dict.fromkeys(numbers) for extent in of[number].extents]
    is_rest = base.is_there_for(Reason.UNREADABLE_SHARD.value)
    unread = set(base.positions.units[is_rest & (base.positions.rows == 0)].tolist())
    empty = {extent.path for number in unread for extent in of[number].extents}
    found = look_up(inputs, needed, lambda extent: extent.path in empty)
    grouped = groupby(zip(numbers, chosen.entries.tolist(), strict=True), key=lambda pair: pair[0])
    retried = [
        _retry_unit(base, of[number], [entry for _, entry in group], job, found, is_rest)
        for number, group in grouped
    ]
    some = [each for each in retried if each.entries]
    units = tuple(Unit(index, each.extents, (), each.cut) for index, each in enumerate(some))
    return _finish(base, _kept(chosen, retried), units, _counts(retried), base.accounts)


def _retry_unit(
    base: Base,
    unit: Unit,
    entries: list[int],
    job: Job,
    found: Mapping[str, StoredFile],
    is_rest: npt.NDArray[np.bool_],
) -> _Retried:
    """Return what can be retried of the entries of a unit whose rows only reading counts.

    Args:
        base: What is published.
        unit: Of its plan.
        entries: Rows of the quarantine, ascending.
        found: The shards that may be read, as they are now.
        is_rest: bool (N,): which rows of the quarantine stand for the rest of a tar.
    """
    is_limited = job.run.limit_rows is not None  # then what follows is limited, too
    kept = [entry for entry in entries if not (is_limited and is_rest[entry])]
    if any(extent.path not in found for extent in unit.extents):
        kept = []
    path, num_lost = unit.extents[0].path, len(entries) - len(kept)
    if not kept:
        return _Retried(path, num_lost=num_lost)
    rests = [entry for entry in kept if is_rest[entry]]
    rows = base.positions.rows[[entry for entry in kept if not is_rest[entry]]].tolist()
    beyond = int(base.positions.rows[rests[0]]) if rests else None
    slice_rows = SliceSizes.of(job, base.plan.batch_size, base.plan.task).most
    cut = UncountedPlan(slice_rows, MAX_SLICE_BYTES, rows=RowFilter(tuple(rows), beyond))
    counts = (1,) * len(rows) + (UNKNOWN_ROWS,) * len(rests)
    extents = tuple(as_found(extent, found[extent.path]) for extent in unit.extents)
    return _Retried(path, extents, tuple(kept), counts, cut, num_lost)


# ---------------------------------------------------------------------------- both


def _kept(chosen: Selection, retried: Sequence[_Retried]) -> Selection:
    """Return the chosen rows that are retried; the others count as changed."""
    lost = {each.path: None for each in retried if each.num_lost}
    return replace(
        chosen,
        entries=np.array([entry for each in retried for entry in each.entries], np.int64),
        changed=sum(each.num_lost for each in retried),
        shards=tuple(lost)[:3],
    )


def _counts(retried: Sequence[_Retried]) -> list[int]:
    return [count for each in retried for count in each.counts]


def _finish(
    base: Base, chosen: Selection, units: tuple[Unit, ...], counts: Sequence[int], accounts: Plan
) -> Replan:
    plan = replace(
        base.plan,
        units=units,
        input_bytes=sum({e.path: e.size_bytes for u in units for e in u.extents}.values()),
        created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )
    return Replan(base, chosen, plan, accounts, np.array(counts, np.int64))


def _sealed(plan: Plan, salt: str) -> Plan:
    """Give a plan a fingerprint of its content and of `salt`."""
    content = plan_to_json(replace(plan, fingerprint="", created_at=""), "")
    return replace(plan, fingerprint=hashlib.sha256(salt.encode() + content).hexdigest())
