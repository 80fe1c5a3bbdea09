"""Find the slices of a plan that are staged or missing, and check that they tile every unit.

A slice that was too large for memory is staged in pieces; it is done when all of them are there.
The plan does not know the slices of uncounted units: the names of the staged parts give the slices,
and the name that marks a last slice gives the end of the unit. If one attempt staged a slice whole
and another in pieces, the whole slice counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import islice

from pipeline.core.errors import InfraError
from pipeline.core.slices import SliceKey
from pipeline.planning.plan import Plan
from pipeline.sources.units import Unit
from pipeline.storage.store import StoredFile

Staged = Mapping[SliceKey, StoredFile]
Slices = Sequence[tuple[SliceKey, StoredFile]]


class ContradictingSlices(InfraError):
    """Two attempts read an uncounted unit differently."""

    def __init__(
        self, unit: Unit, one: SliceKey, other: SliceKey, keys: Sequence[SliceKey]
    ) -> None:
        super().__init__(
            f"unit {unit.index}: staged slices {one.start}-{one.end} and {other.start}-{other.end} "
            f"contradict each other, so {unit.extents[0].path} was read differently by two "
            "attempts; run again to read it anew"
        )
        self.keys = keys
        """All staged slices of the unit."""


def done_slices(plan: Plan, staged: Staged) -> list[SliceKey]:
    """Return the staged slices of the plan, in order.

    Raises:
        ContradictingSlices: Two of them hold the same row.
    """
    return [key for _, keys in _by_unit(plan, staged) for key in keys]


def missing_units(plan: Plan, staged: Staged) -> dict[Unit, list[int]]:
    """Return incomplete unit -> first rows of its missing slices.

    For an uncounted unit the list is empty, and `cut.done` has its staged slices.

    Raises:
        InfraError: Two staged slices hold the same row.
    """
    missing: dict[Unit, list[int]] = {}
    for unit, keys in _by_unit(plan, staged):
        if unit.cut is None:
            if starts := _missing_starts(unit, keys):
                missing[unit] = starts
        elif _first_gap(keys) is not None:
            missing[replace(unit, cut=replace(unit.cut, done=tuple(keys)))] = []
    return missing


def num_left(missing: Mapping[Unit, Sequence[int]]) -> int | None:
    """Return the number of missing slices; None if only reading counts the rows of a unit."""
    if any(unit.cut is not None for unit in missing):
        return None
    return sum(map(len, missing.values()))


def first_slices(missing: Mapping[Unit, Sequence[int]], number: int) -> frozenset[tuple[int, int]]:
    """Return (unit, first row) of the first missing slice of the first `number` units."""
    firsts = set[tuple[int, int]]()
    for unit, starts in islice(missing.items(), number):
        gap = starts[0] if unit.cut is None else _first_gap(unit.cut.done)
        if gap is not None:
            firsts.add((unit.index, gap))
    return frozenset(firsts)


def require_complete(plan: Plan, staged: Staged) -> Slices:
    """Return all slices in order, each with its part.

    Raises:
        InfraError: A slice has no part, or two hold the same row.
    """
    slices: list[tuple[SliceKey, StoredFile]] = []
    lost: list[tuple[Unit, int]] = []
    for unit, keys in _by_unit(plan, staged):
        if unit.cut is None:
            lost += [(unit, start) for start in _missing_starts(unit, keys)]
        elif (gap := _first_gap(keys)) is not None:
            lost.append((unit, gap))
        slices += [(key, staged[key]) for key in keys]
    if lost:
        unit, row = lost[0]
        raise InfraError(
            f"{len(lost)} slices have no staged part (first: unit {unit.index}, from row {row} "
            "on); run again to compute them"
        )
    return slices


def _by_unit(plan: Plan, staged: Staged) -> Iterator[tuple[Unit, list[SliceKey]]]:
    """Yield every unit with its staged slices in order; a slice in pieces has all or none."""
    by_unit: defaultdict[int, list[SliceKey]] = defaultdict(list)
    for key in staged:
        by_unit[key.unit].append(key)
    for unit in plan.units:
        if unit.cut is None:
            yield unit, [piece for key in unit.slices() for piece in _pieces(key, staged, by_unit)]
            continue
        yield unit, _outermost(unit, by_unit[unit.index])


def _outermost(unit: Unit, keys: Sequence[SliceKey]) -> list[SliceKey]:
    """Return the slices of an uncounted unit in order, without pieces of other slices."""
    outermost: list[SliceKey] = []
    for key in sorted(keys, key=lambda key: (key.start, -key.end)):
        if outermost:
            last = outermost[-1]
            if key.start < last.end and key in last.pieces_from(key.start):
                continue
            if last.is_last or key.start < last.end:
                raise ContradictingSlices(unit, last, key, keys)
        outermost.append(key)
    return outermost


def _pieces(
    key: SliceKey, staged: Staged, by_unit: Mapping[int, Sequence[SliceKey]]
) -> list[SliceKey]:
    """Return the staged pieces of a slice, usually itself; [] if one is missing."""
    if key in staged:
        return [key]
    inside = {k for k in by_unit[key.unit] if key.start <= k.start and k.end <= key.end}
    return _tiled(key, inside) or []


def _tiled(key: SliceKey, inside: Set[SliceKey]) -> list[SliceKey] | None:
    if key in inside:
        return [key]
    if key.num_rows == 1 or not inside:
        return None
    pieces: list[SliceKey] = []
    for half in key.halves():
        in_half = {k for k in inside if half.start <= k.start and k.end <= half.end}
        half_pieces = _tiled(half, in_half)
        if half_pieces is None:
            return None
        pieces += half_pieces
    return pieces


def _missing_starts(unit: Unit, done: Sequence[SliceKey]) -> list[int]:
    """Return the first rows of the slices of a counted unit that are not done."""
    starts = {key.start for key in done}
    return [key.start for key in unit.slices() if key.start not in starts]


def _first_gap(keys: Sequence[SliceKey]) -> int | None:
    """Return the first row without a slice; None if the slices reach the end of the unit."""
    position = 0
    for key in keys:
        if key.start != position:
            return position
        position = key.end
    return None if keys and keys[-1].is_last else position
