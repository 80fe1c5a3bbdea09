"""Ranks and ranges, compared with lists in which every row stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.carried_nights import SCHEMA, publish_parts

from pipeline.commit.layout import Layout
from pipeline.commit.parts.carried.order import Order, Ranges, joined, put_in_order
from pipeline.commit.parts.carried.version import CarriedVersion, NotReadable
from pipeline.core.errors import InfraError
from pipeline.core.slices import SliceKey
from pipeline.planning.carried import Carried, Source
from pipeline.storage.store import Store

Listed = list[tuple[int, int]]


def ranges_of(gaps: list[tuple[int, int, int]]) -> Ranges:
    """Ranges that ascend: of each how many ranks lie before it, its first number, its length."""
    ranks, rank = [], 0
    for gap, _, count in gaps:
        ranks.append(rank + gap)
        rank += gap + count
    numbers = np.array(gaps, np.int64).reshape(-1, 3)
    return Ranges(np.array(ranks, np.int64), numbers[:, 1], numbers[:, 2])


def listed(ranges: Ranges) -> Listed:
    """Rank and number of each row."""
    rows = zip(ranges.ranks.tolist(), ranges.firsts.tolist(), ranges.counts.tolist(), strict=True)
    return [(rank + n, first + n) for rank, first, count in rows for n in range(count)]


SOME = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 6)), max_size=8)
BOUNDS = st.lists(st.integers(0, 40), max_size=8)


@given(SOME.map(ranges_of), BOUNDS)
def test_cut_ranges_hold_the_same_rows_and_no_bound(ranges: Ranges, bounds: list[int]):
    places = np.array(bounds, np.int64)
    for by in ("ranks", "firsts"):
        cut = ranges.cut(getattr(ranges, by), places)
        assert listed(cut) == listed(ranges)
        for place, count in zip(getattr(cut, by).tolist(), cut.counts.tolist(), strict=True):
            assert not any(place < bound < place + count for bound in bounds)


@given(SOME.map(ranges_of), BOUNDS, st.randoms())
def test_joined_ranges_are_as_few_as_can_be_and_hold_the_same_rows(ranges, bounds, random):
    pieces = ranges.cut(ranges.ranks, np.array(bounds, np.int64))
    order = list(range(len(pieces)))
    random.shuffle(order)
    some = [pieces.take(np.array([index])) for index in order] or [pieces]
    found = joined(*some)
    assert listed(found) == listed(ranges)
    assert (found.counts > 0).all()
    assert not found.go_on().any()


@given(SOME.map(ranges_of), st.integers(0, 40), st.integers(0, 40))
def test_ranges_cover_their_ranks_and_lie_between_others(ranges: Ranges, one: int, other: int):
    ranks = {rank for rank, _ in listed(ranges)}
    assert ranges.cover(np.arange(60)).tolist() == [rank in ranks for rank in range(60)]
    start, end = sorted((one, other))
    inside = [rank for rank in ranges.ranks.tolist() if start <= rank < end]
    assert ranges.between(start, end).ranks.tolist() == inside


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=7), st.integers(1, 5))
def test_each_work_row_and_each_carried_row_has_its_rank(steps: list[tuple[int, int]], more: int):
    """Of each place: how many work rows lie before it, and how many carried rows are there."""
    kinds, places, counts, work = list[str](), list[int](), list[int](), 0
    for before, count in [*steps, (more, 0)]:
        kinds += ["work"] * before + ["carried"] * count
        work += before
        places.append(work)
        counts.append(count)
    order = Order(np.array(places), np.append(0, np.cumsum(counts)))
    ranks = [rank for rank, kind in enumerate(kinds) if kind == "work"]
    assert order.rank_of(np.arange(work)).tolist() == ranks
    before = [kinds[:rank].count("work") for rank in range(len(kinds) + 1)]
    assert order.work_before(np.arange(len(kinds) + 1)).tolist() == before
    for start in range(work):
        part = order.between(start, start + 2)
        own = np.arange(start, min(work, start + 2))
        assert part.rank_of(own).tolist() == ranks[start : start + 2]


@pytest.fixture
def version(tmp_path: Path) -> CarriedVersion:
    table = SCHEMA.empty_table()
    return publish_parts(Store(str(tmp_path)), Layout("date=1"), 1, table)


@pytest.mark.parametrize(
    ("runs", "error"),
    [
        ([[0, 2, 0, 0, 0], [0, 1, 0, 0, 0]], InfraError),
        ([[0, 4, 0, 0, 0]], InfraError),
        ([[0, 0, 0, 0, 1]], NotReadable),
        ([[0, 0, 0, -1, 1]], NotReadable),
    ],
    ids=["descending", "beyond the work", "beyond the version", "before the version"],
)
def test_runs_that_cannot_be_are_refused(runs: list[list[int]], error, version: CarriedVersion):
    slices = [(SliceKey(0, 0, 3, is_last=True), "x", 1.0)]
    none = np.zeros((0, 4), np.int64)
    carried = Carried((Source(None, 1, "t"),), np.array(runs), none)
    with pytest.raises(error):
        put_in_order(slices, carried, [version])
