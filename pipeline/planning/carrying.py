"""Divide a plan: what is carried over from earlier versions, and the work that is left.

Pure. A shard is carried if a source knows one of equal URI, size and version; its rows without a
prediction, and those that are to be checked, are computed all the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Literal

import numpy as np

from pipeline.core.arrays import Numbers
from pipeline.planning.carried import Carried, KnownShard, Source
from pipeline.planning.plan import Plan
from pipeline.planning.slicing import SliceSizes, make_units
from pipeline.sources.extents import Extent, RowFilter
from pipeline.sources.units import Unit
from pipeline.storage.store import Store

Choose = Callable[[Numbers], Numbers]
"""Runs as `Carried.runs` -> int64 (S, 2): source and prediction of the rows to check."""
State = Literal["unchanged", "changed", "new", "gone"]


@dataclass(frozen=True)
class Known:
    """A source, and what it knows of the shards of an output."""

    source: Source
    shards: Mapping[str, KnownShard]
    """By URI."""


@dataclass(frozen=True)
class ShardRows:
    """What becomes of the rows of one shard."""

    uri: str
    state: State
    """Beside the newest source; `unchanged` shards are carried, also from an older one."""
    carried: int
    computed: int | None
    """None: only reading counts them. Of a shard that is gone 0."""
    gone: int = 0
    """Rows that the newest source has of it, if it is gone."""


@dataclass(frozen=True)
class Division:
    """A plan, divided."""

    work: Plan
    """What is computed; it has a fingerprint of its own."""
    carried: Carried
    shards: tuple[ShardRows, ...]
    """Those of the whole plan, in order, then those that are gone."""
    days: Mapping[str, int] = field(default_factory=dict)
    """URI of a shard that is carried -> when its predictions were computed, as `KnownShard`."""


@dataclass(frozen=True)
class _Shard:
    uri: str
    extents: tuple[Extent, ...]
    """One after the other."""
    unit: Unit
    """The first one that has rows of it."""
    source: int
    """Who knows it."""
    known: KnownShard | None


def divide(
    plan: Plan,
    sources: Sequence[Known],
    sizes: SliceSizes,
    choose: Choose,
    *,
    by_content: bool = False,
) -> Division:
    """Divide a plan into carried rows and work.

    Args:
        plan: All rows.
        sources: What is known, the newest first; of several that know a shard the first is taken.
        sizes: How the work is cut.
        choose: Chooses the carried rows that are checked.
        by_content: The rows of the work are looked up by their content while they are read.
    """
    shards = list(_shards(plan, sources))
    unchecked = _Draft()
    for shard in shards:
        unchecked.add(shard, ())
    checked = _rows_of(shards, choose(_table(unchecked.runs, 5)))
    draft = _Draft()
    for index, shard in enumerate(shards):
        draft.add(shard, checked.get(index, ()))
    units = draft.units if plan.counts_by_reading else make_units(draft.extents, sizes)
    work = replace(
        plan,
        units=tuple(units),
        input_bytes=sum({e.path: e.size_bytes for e in draft.extents}.values()),
    )
    starts = None
    if not plan.counts_by_reading:
        starts = np.cumsum([0, *(unit.num_rows or 0 for unit in work.units)])
    carried = Carried(
        tuple(known.source for known in sources),
        _placed(draft.runs, 5, starts),
        _placed(draft.checked, 4, starts),
        by_content,
    )
    work = replace(work, fingerprint=_fingerprint(plan, carried))
    told = (*draft.told(shards, sources), *_gone(shards, sources))
    days = {shard.uri: shard.known.computed_day for shard in shards if shard.known}
    return Division(work, carried, told, days)


def _shards(plan: Plan, sources: Sequence[Known]) -> Iterator[_Shard]:
    url = Store(plan.source_root).url
    pairs = ((unit, extent) for unit in plan.units for extent in unit.extents)
    for path, group in groupby(pairs, key=lambda pair: pair[1].path):
        own = list(group)
        extents, unit, uri = tuple(extent for _, extent in own), own[0][0], url(path)
        found = next(
            (
                (number, known)
                for number, source in enumerate(sources)
                if (known := source.shards.get(uri)) and _is_same(extents, unit, known)
            ),
            (0, None),
        )
        yield _Shard(uri, extents, unit, *found)


def _is_same(extents: Sequence[Extent], unit: Unit, known: KnownShard) -> bool:
    first = extents[0]
    if (first.size_bytes, first.exact_version) != (known.size_bytes, known.version):
        return False
    if any(extent.reason is not None for extent in extents):
        return False
    return unit.cut is not None or sum(e.num_rows for e in extents) == known.num_rows


class _Draft:
    """The work as it grows, shard by shard, and what is carried between its rows."""

    def __init__(self) -> None:
        self.extents: list[Extent] = []
        self.units: list[Unit] = []
        """Of inputs that only reading counts."""
        self.runs: list[tuple[int, int, int, int, int]] = []
        """As `Carried.runs`; of counted rows the unit is 0 and the row counts all before it."""
        self.checked: list[tuple[int, int, int, int]] = []
        self._rows: list[tuple[int, int | None]] = []
        """Carried and computed rows of each shard."""
        self._num_computed = 0

    def add(self, shard: _Shard, checked: Sequence[int]) -> None:
        """Add a shard; `checked` are numbers of rows with a prediction, ascending."""
        known, cut = shard.known, shard.unit.cut
        if known is None:
            if cut is not None:
                self.units.append(replace(shard.unit, index=len(self.units)))
            self.extents += shard.extents
            num_rows = sum(extent.num_rows for extent in shard.extents)
            self._num_computed += 0 if cut else num_rows
            self._rows.append((0, None if cut else num_rows))
            return
        computed = sorted({*known.failed, *checked})
        self._carry(known, shard.source, computed, is_counted=cut is None)
        self._rows.append((known.num_rows - len(computed), len(computed)))
        if not computed:
            return
        if cut is not None:
            rows = replace(cut, rows=RowFilter(tuple(computed)))
            self.units.append(Unit(len(self.units), shard.extents, (), rows))
            self.extents += shard.extents
            return
        for extent in shard.extents:
            end = extent.first_row + extent.num_rows
            if own := [number for number in computed if extent.first_row <= number < end]:
                self.extents.append(extent if len(own) == extent.num_rows else extent.choose(own))

    def _carry(
        self, known: KnownShard, source: int, computed: Sequence[int], *, is_counted: bool
    ) -> None:
        failed, ordinal, after = set(known.failed), known.first, 0
        for nth, row in enumerate(computed):
            place = (0, self._num_computed) if is_counted else (len(self.units), nth)
            self._run(place, source, ordinal, row - after)
            ordinal, after = ordinal + row - after, row + 1
            if row not in failed:
                self.checked.append((*place, source, ordinal))
                ordinal += 1
            self._num_computed += is_counted
        behind = (0, self._num_computed) if is_counted else (len(self.units) + bool(computed), 0)
        self._run(behind, source, ordinal, known.num_rows - after)

    def _run(self, place: tuple[int, int], source: int, first: int, num_rows: int) -> None:
        if not num_rows:
            return
        if self.runs:
            *at, of, start, length = self.runs[-1]
            if (tuple(at), of, start + length) == (place, source, first):
                self.runs[-1] = (*place, source, start, length + num_rows)
                return
        self.runs.append((*place, source, first, num_rows))

    def told(self, shards: Sequence[_Shard], sources: Sequence[Known]) -> Iterator[ShardRows]:
        newest = sources[0].shards if sources else {}
        for shard, (carried, computed) in zip(shards, self._rows, strict=True):
            state: State = "changed" if shard.uri in newest else "new"
            yield ShardRows(shard.uri, "unchanged" if shard.known else state, carried, computed)


def _gone(shards: Sequence[_Shard], sources: Sequence[Known]) -> Iterator[ShardRows]:
    here = {shard.uri for shard in shards}
    newest = sources[0].shards.values() if sources else ()
    for known in newest:
        if known.uri not in here:
            yield ShardRows(known.uri, "gone", 0, 0, known.num_rows)


def _rows_of(shards: Sequence[_Shard], chosen: Numbers) -> dict[int, list[int]]:
    """Return index of a shard -> numbers of the chosen rows in it.

    Args:
        chosen: int64 (S, 2): source and prediction.
    """
    found: dict[int, list[int]] = {}
    for source in np.unique(chosen[:, 0]).tolist():
        firsts = {
            known.first: index
            for index, shard in enumerate(shards)
            if (known := shard.known) and shard.source == source
            if known.num_rows > len(known.failed)
        }
        begins = np.array(sorted(firsts), np.int64)
        for ordinal in np.unique(chosen[chosen[:, 0] == source, 1]).tolist():
            first = int(begins[np.searchsorted(begins, ordinal, "right") - 1])
            index = firsts[first]
            found.setdefault(index, []).append(_number(shards[index].known, ordinal - first))
    return found


def _number(known: KnownShard | None, nth: int) -> int:
    """Return the number in its shard of the nth row with a prediction, from 0."""
    for failed in known.failed if known else ():
        if failed > nth:
            break
        nth += 1
    return nth


def _table(rows: Sequence[tuple[int, ...]], width: int) -> Numbers:
    return np.array(rows, np.int64).reshape(-1, width)


def _placed(rows: Sequence[tuple[int, ...]], width: int, starts: Numbers | None) -> Numbers:
    """Return int64 (N, width), counted rows by unit and row as the others are already.

    Args:
        rows: As `_Draft` has them.
        width: Columns.
        starts: int64 (U + 1,): rows before each unit of the work, and all; None: not counted.
    """
    table = _table(rows, width)
    if starts is not None:
        units = np.searchsorted(starts, table[:, 1], "right") - 1
        table[:, 0], table[:, 1] = units, table[:, 1] - starts[units]
    return table


def _fingerprint(plan: Plan, carried: Carried) -> str:
    """Return the name under which the work is staged: of the plan, and of all that is carried."""
    sources = json.dumps([asdict(source) for source in carried.sources])
    digest = hashlib.sha256(f"{plan.fingerprint} {sources} {carried.by_content}".encode())
    for numbers in (carried.runs, carried.checked):
        digest.update(np.ascontiguousarray(numbers, "<i8").tobytes())
        digest.update(b"|")
    return digest.hexdigest()
