"""Decide which rows of a plan are known, and cut the plan by that.

A shard is known if a version knows one of equal URI, size and version. Its rows without a
prediction are computed, and so are the rows of the checked sample. Nothing here reads or writes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.commit.shard_table import KnownShard, version_in
from pipeline.core.arrays import Numbers
from pipeline.core.ranges import Ranges
from pipeline.core.slices import SliceKey
from pipeline.planning.plan import Plan
from pipeline.planning.slicing import SliceSizes, mean_row_bytes
from pipeline.reuse.version_rows import UNKNOWN, ContentIndex, Version
from pipeline.sources.units import Extent, Unit
from pipeline.storage.store import Store

_MOST_ROWS, _FEWEST_ROWS, _ASIDE_BYTES = 65_536, 1_024, 16 * 2**20
"""Most and fewest rows of a slice with known rows, and about the most bytes of these."""
State = Literal["unchanged", "changed", "new", "gone"]
KnownPaths = Mapping[str, tuple[int, KnownShard]]
"""Path of a shard -> number of the version that knows it, and the shard as known."""
_NO_RUNS = np.zeros((0, 5), np.int64)
_NO_ROWS = np.zeros((0, 2), np.int64)


@dataclass(frozen=True)
class ShardRows:
    """How many rows of one shard are carried, computed and gone."""

    uri: str
    state: State
    """Compared with the newest version; `unchanged` shards are known to that or an older one."""
    carried: int
    computed: int | None
    """None: only reading counts them; 0 for a shard that is gone."""
    gone: int = 0
    """Rows of the newest version, if the shard is gone."""


@dataclass(frozen=True)
class Division:
    """A plan divided by what versions know of its shards."""

    units: tuple[Unit, ...]
    """Units of the plan, cut so that slices have the usual number of rows to compute."""
    known: KnownPaths
    shards: tuple[ShardRows, ...]
    """The shards of the plan, in order, then those that are gone."""

    @property
    def num_known(self) -> int:
        """Number of rows that versions know."""
        return sum(shard.carried for shard in self.shards)


def divide(
    plan: Plan,
    versions: Sequence[Mapping[str, KnownShard]],
    row_bytes: float,
    sizes: SliceSizes,
) -> Division:
    """Decide which rows of a plan are known.

    Args:
        plan: The plan of all rows.
        versions: URI -> shard, for each version; the first that knows a shard is taken.
        row_bytes: About the size of a prediction.
        sizes: The sizes of slices without known rows.
    """
    root = Store(plan.source_root)
    pairs = ((unit, extent) for unit in plan.units for extent in unit.extents)
    known: dict[str, tuple[int, KnownShard]] = {}
    shards: list[ShardRows] = []
    for path, group in groupby(pairs, key=lambda pair: pair[1].path):
        pieces = list(group)
        uri, unit, extents = root.url(path), pieces[0][0], [extent for _, extent in pieces]
        counted = None if unit.cut is not None else sum(extent.num_rows for extent in extents)
        match = next(
            ((n, v[uri]) for n, v in enumerate(versions)
             if uri in v and _is_same(plan, extents[0], counted, v[uri])), None
        )  # fmt: skip
        is_alone = unit.cut is None or len(unit.extents) == 1
        if match is None or not is_alone or any(extent.reason is not None for extent in extents):
            state: State = "changed" if versions and uri in versions[0] else "new"
            shards.append(ShardRows(uri, state, 0, counted))
            continue
        known[path] = match
        if match[1].breaks_off and counted is None:  # rows that can be read now are computed
            shards.append(ShardRows(uri, "changed", 0, counted))
            continue
        failed = len(match[1].failed)
        if counted is not None:
            failed = sum(_num_computed(extent, known) for extent in extents)
        total = match[1].num_rows if counted is None else counted
        shards.append(ShardRows(uri, "unchanged", total - failed, failed))
    uris = {shard.uri for shard in shards}
    newest = versions[0].values() if versions else ()
    gone = (ShardRows(s.uri, "gone", 0, 0, s.num_rows) for s in newest if s.uri not in uris)
    units = [*_recut(plan.units, known, row_bytes, sizes)] if known else plan.units
    return Division(tuple(units), known, (*shards, *gone))


def known_runs(units: Sequence[Unit], known: KnownPaths) -> Numbers:
    """Return the known rows of divided units.

    Returns:
        int64 (K, 5): unit, row, number, version and first ordinal of consecutive rows; ascending.
    """
    runs = np.array([*_runs(units, known)], np.int64).reshape(-1, 5)
    if not len(runs):
        return runs
    unit, row, count, version, ordinal = runs.T
    follows = (np.diff(unit) == 0) & (np.diff(version) == 0)
    follows &= (row[1:] == (row + count)[:-1]) & (ordinal[1:] == (ordinal + count)[:-1])
    heads = np.flatnonzero(np.append(True, ~follows))
    joined = runs[heads]
    joined[:, 2] = np.add.reduceat(count, heads)
    return joined


def known_counts(
    units: Sequence[Unit], known: KnownPaths, *, break_off: bool = False
) -> dict[int, int]:
    """Return index -> rows of the uncounted units whose rows a version has counted.

    Args:
        units: Units of a divided plan.
        known: Its known shards.
        break_off: Only units whose last row stood for a rest; otherwise only the others.
    """
    return {
        unit.index: known[unit.extents[0].path][1].num_rows
        for unit in units
        if unit.cut is not None
        and unit.extents[0].path in known
        and known[unit.extents[0].path][1].breaks_off == break_off
    }


def slice_rows(row_bytes: float) -> int:
    """Return the most rows of a slice with known rows, by the size of a prediction."""
    return int(min(_MOST_ROWS, max(_FEWEST_ROWS, _ASIDE_BYTES / max(1.0, row_bytes))))


def _is_same(plan: Plan, extent: Extent, num_rows: int | None, known: KnownShard) -> bool:
    version = version_in(plan, extent)
    if (version, extent.size_bytes) != (known.version, known.size_bytes):
        return False
    # Not every row of a shard has to be input, in the version or now.
    return plan.has_gaps or num_rows is None or known.num_rows <= num_rows


def _recut(
    units: Sequence[Unit], known: KnownPaths, row_bytes: float, sizes: SliceSizes
) -> Iterator[Unit]:
    """Cut counted rows into slices with as many computed rows as a run of these alone would have.

    Uncounted units stay, and so do units without known rows whose slices are small enough.
    """
    most = slice_rows(row_bytes)
    counted = (extent for unit in units if unit.cut is None for extent in unit.extents)
    left = sum(_num_computed(extent, known) for extent in counted)
    index, held, num_rows, num_computed = 0, list[Extent](), 0, 0
    for unit in units:
        input_bytes = mean_row_bytes(unit.extents)
        if _stays(unit, known, sizes.at(left, input_bytes)):
            if held:
                yield Unit(index, tuple(held), (0, num_rows))
                index, held, num_rows, num_computed = index + 1, [], 0, 0
            yield replace(unit, index=index)
            index, left = index + 1, left - (unit.num_rows or 0)
            continue
        for start, end in pairwise(unit.bounds):
            near = min(end - start, sizes.at(left, input_bytes))
            for piece in _pieces(unit.extents, start, end, known, near):
                computed = _num_computed(piece, known)
                is_full = num_computed + computed > near or num_rows + piece.num_rows > most
                if held and is_full:
                    yield Unit(index, tuple(held), (0, num_rows))
                    index, held, num_rows, num_computed = index + 1, [], 0, 0
                held.append(piece)
                num_rows, num_computed = num_rows + piece.num_rows, num_computed + computed
                left -= computed
    if held:
        yield Unit(index, tuple(held), (0, num_rows))


def _stays(unit: Unit, known: KnownPaths, near: int) -> bool:
    """Tell whether a unit keeps its cuts: it is uncounted, or new with slices of `near` rows."""
    if unit.cut is not None:
        return True
    is_known = any(extent.path in known for extent in unit.extents)
    return not is_known and all(end - start <= near for start, end in pairwise(unit.bounds))


def _pieces(
    extents: Sequence[Extent], start: int, end: int, known: KnownPaths, near: int
) -> Iterator[Extent]:
    """Yield the rows [start, end) of extents in pieces of at most about `near` computed rows."""
    first = 0
    for extent in extents:
        low, high = max(start, first), min(end, first + extent.num_rows)
        if low < high:
            is_whole = high - low == extent.num_rows
            rows = extent if is_whole else extent.piece(low - first, high - low)
            step = max(1, rows.num_rows * near // max(near, _num_computed(rows, known)))
            for skip in range(0, rows.num_rows, step):
                few = min(step, rows.num_rows - skip)
                yield rows if few == rows.num_rows else rows.piece(skip, few)
        first += extent.num_rows


def _num_computed(extent: Extent, known: KnownPaths) -> int:
    if extent.path not in known:
        return extent.num_rows
    shard = known[extent.path][1]
    failed, beyond = shard.failed, extent.num_rows - bisect_left(extent.numbers(), shard.num_rows)
    if extent.only is None:
        return len(failed.within(extent.first_row, extent.end_row)) + beyond
    return len(Ranges.in_at_least(2, [failed, extent.only])) + beyond


def _runs(units: Sequence[Unit], known: KnownPaths) -> Iterator[tuple[int, int, int, int, int]]:
    for unit in units:
        row = 0
        for extent in unit.extents:
            if extent.path in known:
                version, shard = known[extent.path]
                rows = Ranges.of(extent.numbers() if unit.cut is None else range(shard.num_rows))
                for run in rows.ranges():
                    # Known rows lie between failed ones, and before what the version has not.
                    first, end = run.start, min(run.stop, shard.num_rows)
                    before = bisect_left(shard.failed, first)
                    for gap in (*shard.failed.within(first, end).ranges(), range(end, end)):
                        if (at := gap.start) > first:
                            ordinal = shard.first + first - before
                            yield unit.index, row + first - run.start, at - first, version, ordinal
                        first, before = gap.stop, before + len(gap)
                    row += len(run)
            else:
                row += extent.num_rows


def known_slices(
    unit: Unit, starts: frozenset[int], num_rows: int | None, most_rows: int
) -> list[SliceKey]:
    """Return the slices of a unit to stage.

    Args:
        unit: A counted unit, or one of `known_counts`, whose `cut.done` tells what is staged.
        starts: First rows of the slices of a counted unit.
        num_rows: Rows of an uncounted unit, from `known_counts`.
        most_rows: The most rows of its slices.
    """
    if unit.cut is None:
        return [key for key in unit.slices() if key.start in starts]
    assert num_rows is not None, "the number of rows is unknown"
    slices, position, total = list[SliceKey](), 0, num_rows
    done = sorted((key.start, key.end) for key in unit.cut.done)
    for start, end in [*done, (total, total)]:
        while position < start:
            until = min(start, position + most_rows)
            slices.append(SliceKey(unit.index, position, until, is_last=until == total))
            position = until
        position = max(position, end)
    return slices or ([] if done else [SliceKey(unit.index, 0, 0, is_last=True)])


@dataclass(frozen=True)
class Known:
    """Which rows are known, and how they are read; can be pickled."""

    versions: tuple[Version, ...]
    """Newest first."""
    schema: pa.Schema
    """Columns of staged rows."""
    source_columns: tuple[str, ...]
    """Columns of the schema that come from the source."""
    inputs: tuple[str, ...]
    """Columns of the source that hold the input of the model."""
    runs: Numbers = field(default_factory=lambda: _NO_RUNS)
    """What `known_runs` returned."""
    checked: Numbers = field(default_factory=lambda: _NO_ROWS)
    """int64 (S, 2), ascending: unit and row of known rows that are computed as a check."""
    counts: Mapping[int, int] = field(default_factory=dict)
    """What `known_counts` returned."""
    broken_off: Mapping[int, int] = field(default_factory=dict)
    """The same for units that broke off: only rows that are no longer reached are carried."""
    failures: pa.Table | None = None
    """Staged rows that stay failed, with `unit`, ascending, and `row` in the unit."""
    usual_rows: int = 1
    """The most rows of a slice of computed rows."""
    most_rows: int = 1
    """The most rows of a slice of known rows."""
    hashes: bool = False
    """Whether rows get the hash of their input."""
    indices: tuple[ContentIndex, ...] = ()
    """Indexes that look rows up by that hash."""
    checked_probability: float = 0.0
    """Probability that a row found by its hash is computed as a check."""
    seed: str = "0"
    """Seed for `are_drawn`."""

    def of_unit(self, unit: int) -> Known:
        """Return the known rows of one unit."""
        runs, checked = _of_unit(self.runs, unit), _of_unit(self.checked, unit)
        counts = {unit: self.counts[unit]} if unit in self.counts else {}
        failures = self._failures_of([unit])
        return replace(self, runs=runs, checked=checked, counts=counts, failures=failures)

    def of_units(self, units: Iterable[Unit]) -> Known:
        """Return the known rows of some units, without indexes."""
        numbers = np.array([unit.index for unit in units], np.int64)
        runs, checked = (rows[np.isin(rows[:, 0], numbers)] for rows in (self.runs, self.checked))
        failures = self._failures_of(numbers.tolist())
        return replace(self, runs=runs, checked=checked, failures=failures, indices=())

    def _failures_of(self, units: Sequence[int]) -> pa.Table | None:
        """Return a copy of the failed rows of some units, so that no others are pickled."""
        if self.failures is None:
            return None
        of_rows = np.asarray(self.failures.column("unit"))
        rows = [np.arange(*np.searchsorted(of_rows, (unit, unit + 1))) for unit in units]
        failures = self.failures.take(pa.array(np.concatenate(rows)))
        return failures if failures.num_rows else None

    def places(self, key: SliceKey) -> tuple[Numbers, Numbers]:
        """Return version and ordinal of the rows of a slice, (N,) each; UNKNOWN if not known."""
        version, ordinal = (np.full(key.num_rows, UNKNOWN, np.int64) for _ in range(2))
        for _, row, count, source, first in _of_unit(self.runs, key.unit).tolist():
            low, high = max(row, key.start), min(row + count, key.end)
            if low < high:
                version[low - key.start : high - key.start] = source
                ordinal[low - key.start : high - key.start] = first + np.arange(low, high) - row
        return version, ordinal

    def are_checked(self, key: SliceKey) -> npt.NDArray[np.bool_]:
        """Return which known rows of a slice are computed as a check, bool (N,)."""
        rows = _of_unit(self.checked, key.unit)[:, 1] - key.start
        mask = np.zeros(key.num_rows, bool)
        mask[rows[(rows >= 0) & (rows < key.num_rows)]] = True
        return mask

    def failed(self, key: SliceKey) -> tuple[Numbers, pa.Table | None]:
        """Return the rows of a slice that stay failed: their index in it, and as staged."""
        if self.failures is None:
            return np.zeros(0, np.int64), None
        at = np.asarray(self.failures.column("row")) - key.start
        is_here = (np.asarray(self.failures.column("unit")) == key.unit) & (at >= 0)
        is_here &= at < key.num_rows
        return at[is_here], self.failures.filter(pa.array(is_here)).select(self.schema.names)

    def num_computed(self, key: SliceKey) -> int:
        """Return how many rows of a slice are computed if all known rows can be read."""
        version, _ = self.places(key)
        version[self.failed(key)[0]] = 0
        return int(((version == UNKNOWN) | self.are_checked(key)).sum())


def _of_unit(rows: Numbers, unit: int) -> Numbers:
    """Return the rows of a table for a unit, by its first column, which ascends."""
    return rows[slice(*np.searchsorted(rows[:, 0], [unit, unit + 1]))]
