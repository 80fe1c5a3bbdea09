"""Slices that were staged in pieces: whole if the pieces tile them, otherwise computed again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.plan_examples import planned, shard_extents

from pipeline.core.errors import InfraError
from pipeline.core.slices import SliceKey
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import done_slices, missing_units, require_complete
from pipeline.storage.store import StoredFile


@pytest.fixture(scope="module")
def plan() -> Plan:
    return planned(shard_extents([[40], [13]], 10.0), run__slice_rows=16)


def staged(keys: list[SliceKey]) -> dict[SliceKey, StoredFile]:
    return {key: StoredFile(f"{key}", 1, "1", None) for key in keys}


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
