"""Test that staged slices, whole or in pieces, are published only if they tile the plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.plan_examples import planned, shard_extents

from pipeline.core.errors import InfraError
from pipeline.core.slices import SliceKey
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import (
    ContradictingSlices,
    done_slices,
    first_slices,
    missing_units,
    num_left,
    require_complete,
)
from pipeline.sources.units import UncountedPlan, Unit
from pipeline.storage.store import StoredFile

COUNTED = planned(shard_extents([[10], [10], [10]]), 4, run__slice_rows=4)
KEYS = [*COUNTED.slices()]
UNCOUNTED: Plan = replace(
    COUNTED,
    units=tuple(
        Unit(unit.index, unit.extents, (), UncountedPlan(4, 1000)) for unit in COUNTED.units
    ),
)


def staged(keys: list[SliceKey]) -> dict[SliceKey, StoredFile]:
    return {key: StoredFile(f"{key.unit}-{key.start}-{key.end}", 1, "v", None) for key in keys}


def test_the_example_has_units_of_several_slices():
    assert len(COUNTED.units) > 1
    assert any(len(unit.slices()) > 1 for unit in COUNTED.units)


@pytest.mark.parametrize("plan", [COUNTED, UNCOUNTED], ids=["counted", "uncounted"])
def test_slices_that_tile_every_unit_are_returned_in_order(plan: Plan):
    parts = staged(KEYS[::-1])
    assert require_complete(plan, parts) == [(key, parts[key]) for key in KEYS]
    assert done_slices(plan, parts) == KEYS
    assert missing_units(plan, parts) == {}


@pytest.mark.parametrize("plan", [COUNTED, UNCOUNTED], ids=["counted", "uncounted"])
@pytest.mark.parametrize("lost", KEYS, ids=str)
def test_a_slice_without_a_part_is_never_passed_over(plan: Plan, lost: SliceKey):
    parts = staged([key for key in KEYS if key != lost])
    where = rf"1 slices have no staged part \(first: unit {lost.unit}, from row {lost.start} on\)"
    with pytest.raises(InfraError, match=where):
        require_complete(plan, parts)
    (missing,) = missing_units(plan, parts).items()
    assert missing[0].index == lost.unit
    assert missing[1] == ([lost.start] if plan is COUNTED else [])
    assert first_slices(dict([missing]), 9) == {(lost.unit, lost.start)}
    assert num_left(dict([missing])) == (1 if plan is COUNTED else None)


def test_all_slices_without_a_part_are_counted_and_the_first_is_named():
    where = rf"{len(KEYS)} slices have no staged part \(first: unit 0, from row 0 on\)"
    with pytest.raises(InfraError, match=where):
        require_complete(COUNTED, {})
    with pytest.raises(InfraError, match=r"3 slices have no staged part \(first: unit 0"):
        require_complete(replace(UNCOUNTED, units=UNCOUNTED.units[:3]), {})


def test_a_part_of_no_slice_of_a_counted_unit_is_left_out():
    strangers = [SliceKey(0, 1, 4, is_last=False), SliceKey(99, 0, 4, is_last=True)]
    slices = require_complete(COUNTED, staged([*KEYS, *strangers]))
    assert [key for key, _ in slices] == KEYS


def last(start: int, end: int) -> SliceKey:
    return SliceKey(0, start, end, is_last=True)


def inner(start: int, end: int) -> SliceKey:
    return SliceKey(0, start, end, is_last=False)


ONE_UNIT = replace(UNCOUNTED, units=UNCOUNTED.units[:1])


@pytest.mark.parametrize(
    ("keys", "gap"),
    [
        ([], 0),
        ([inner(0, 4)], 4),
        ([inner(4, 8), inner(0, 4)], 8),
        ([inner(0, 4), last(5, 9)], 4),
        ([last(4, 8)], 0),
        ([last(1, 8)], 0),
    ],
)
def test_an_uncounted_unit_is_complete_only_from_its_first_row_to_a_last_slice(
    keys: list[SliceKey], gap: int
):
    with pytest.raises(InfraError, match=f"first: unit 0, from row {gap} on"):
        require_complete(ONE_UNIT, staged(keys))
    ((unit, starts),) = missing_units(ONE_UNIT, staged(keys)).items()
    assert unit.cut is not None
    assert unit.cut.done == tuple(sorted(keys, key=lambda key: key.start))
    assert starts == []
    assert first_slices({unit: starts}, 1) == {(0, gap)}


@pytest.mark.parametrize(
    "keys",
    [
        [inner(0, 4), inner(0, 5)],
        [inner(0, 4), last(3, 6)],
        [last(0, 4), last(4, 6)],
        [last(0, 4), inner(4, 6)],
        [last(0, 0), inner(0, 4)],
        [inner(0, 9), inner(2, 4), last(9, 10)],
    ],
)
def test_two_slices_of_one_row_or_rows_behind_a_last_slice_are_refused(keys: list[SliceKey]):
    for function in (done_slices, missing_units, require_complete):
        with pytest.raises(ContradictingSlices, match="contradict each other, so s00000") as caught:
            function(ONE_UNIT, staged(keys))
        assert {*caught.value.keys} == {*keys}


@pytest.mark.parametrize(
    "pieces", [[inner(0, 4)], [inner(0, 2), last(4, 8)], [inner(0, 4), last(4, 8), last(7, 8)]]
)
def test_of_a_slice_that_is_staged_whole_and_in_pieces_the_whole_one_counts(
    pieces: list[SliceKey],
):
    whole = last(0, 8)
    assert all(piece in whole.pieces_from(piece.start) for piece in pieces)
    parts = staged([*pieces, whole])
    assert require_complete(ONE_UNIT, parts) == [(whole, parts[whole])]
    assert done_slices(ONE_UNIT, parts) == [whole]
    assert missing_units(ONE_UNIT, parts) == {}


def test_an_empty_unit_is_complete_with_its_one_empty_slice():
    only = last(0, 0)
    assert [key for key, _ in require_complete(ONE_UNIT, staged([only]))] == [only]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return planned(shard_extents([[40], [13]], 10.0), run__slice_rows=16)


def cut(data: st.DataObject, key: SliceKey) -> list[SliceKey]:
    """Cut a slice into pieces at random."""
    if key.num_rows == 1 or data.draw(st.booleans()):
        return [key]
    return [piece for half in key.halves() for piece in cut(data, half)]


@given(data=st.data())
def test_pieces_are_taken_for_their_slice_if_none_is_missing(plan: Plan, data: st.DataObject):
    cuts = {key: cut(data, key) for key in plan.slices()}
    # A second attempt may have cut a slice otherwise, and have ended in the midst of it.
    others = [piece for key in plan.slices() for piece in cut(data, key)]
    extra = data.draw(st.lists(st.sampled_from(others), unique=True)) if others else []
    gone = data.draw(st.sets(st.sampled_from([*cuts]), max_size=len(cuts)))
    kept = [piece for key, pieces in cuts.items() for piece in pieces if key not in gone]
    for key in gone:
        kept += data.draw(st.lists(st.sampled_from(cuts[key]), unique=True))[: len(cuts[key]) - 1]

    whole = staged([*kept, *extra])
    rows = [(key.unit, row) for key in done_slices(plan, whole) for row in range(*_span(key))]
    missing = {
        (u.index, start) for u, starts in missing_units(plan, whole).items() for start in starts
    }
    by_start = {(key.unit, key.start): key for key in cuts}
    left = [(unit, row) for unit, start in missing for row in range(*_span(by_start[unit, start]))]
    every = [(key.unit, row) for key in plan.slices() for row in range(*_span(key))]
    assert sorted(rows + left) == every
    assert not {(key.unit, key.start) for key in cuts if key not in gone} & missing
    if missing:
        with pytest.raises(InfraError, match="have no staged part"):
            require_complete(plan, whole)
    else:
        assert [key for key, _ in require_complete(plan, whole)] == done_slices(plan, whole)


def _span(key: SliceKey) -> tuple[int, int]:
    return key.start, key.end
