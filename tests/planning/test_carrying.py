"""A divided plan: carried and computed rows together are all rows, each once and in order."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.plan_examples import planned, shard_extents

from pipeline.core.arrays import Numbers
from pipeline.core.failures import Reason
from pipeline.planning.carried import KnownShard, Source
from pipeline.planning.carrying import Division, Known, divide
from pipeline.planning.plan import Plan
from pipeline.planning.slicing import SliceSizes
from pipeline.sources.extents import UncountedPlan
from pipeline.sources.units import Unit

Row = tuple[str, int]
"""Path of a shard, and a number in it."""
SIZES = SliceSizes(16)
NOTHING = np.zeros((0, 2), np.int64)


def check_nothing(runs: Numbers) -> Numbers:
    return NOTHING


def known_of(plan: Plan, failed: dict[str, tuple[int, ...]], names: set[str]) -> Known:
    """What a version knows that was made of some shards of a plan, in their order."""
    rows: dict[str, int] = {}
    for unit in plan.units:
        for extent in unit.extents:
            rows[extent.path] = rows.get(extent.path, 0) + extent.num_rows
    shards, first = {}, 0
    for path, num_rows in rows.items():
        if path not in names:
            continue
        size_bytes = next(e.size_bytes for u in plan.units for e in u.extents if e.path == path)
        own = failed.get(path, ())
        uri = f"/in/{path}"
        shards[uri] = KnownShard(uri, size_bytes, "v1", num_rows, first, own)
        first += num_rows - len(own)
    return Known(Source("date=2026-11-23", 1, "token"), shards)


def predictions_of(known: Known) -> list[Row]:
    """The row of each prediction of a version, in order."""
    return [
        (shard.uri.removeprefix("/in/"), number)
        for shard in known.shards.values()
        for number in range(shard.num_rows)
        if number not in shard.failed
    ]


def rows_of(units: tuple[Unit, ...]) -> list[list[Row]]:
    """The rows of each unit."""
    return [[(e.path, number) for e in unit.extents for number in e.numbers()] for unit in units]


def put_together(division: Division, sources: list[Known]) -> tuple[list[Row], list[bool]]:
    """All rows in the order of the output, and whether each is carried."""
    predicted = [predictions_of(known) for known in sources]
    units = rows_of(division.work.units)
    begun = [0, *accumulate(len(rows) for rows in units)]
    computed = [row for rows in units for row in rows]
    found: list[Row] = []
    is_carried: list[bool] = []
    taken = 0
    for unit, row, source, first, num_rows in division.carried.runs.tolist():
        until = begun[unit] + row
        found += computed[taken:until]
        is_carried += [False] * (until - taken)
        taken = until
        found += predicted[source][first : first + num_rows]
        is_carried += [True] * num_rows
    found += computed[taken:]
    return found, is_carried + [False] * (len(computed) - taken)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Plan, list[Known], int]:
    groups = draw(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3), max_size=12))
    plan = planned(shard_extents(groups, 10.0), run__slice_rows=16)
    paths = [f"s{index:05d}.parquet" for index in range(len(groups))]
    sources = []
    for _ in range(draw(st.integers(0, 3))):
        names = {path for path in paths if draw(st.booleans())}
        failed = {}
        for path, rows in zip(paths, groups, strict=True):
            chosen = draw(st.sets(st.integers(0, sum(rows) - 1), max_size=sum(rows)))
            failed[path] = tuple(sorted(chosen)) if draw(st.booleans()) else ()
        sources.append(known_of(plan, failed, names))
    return plan, sources, draw(st.integers(0, 5))


@given(case=cases(), data=st.data())
def test_carried_and_computed_rows_are_all_rows_in_input_order(
    case: tuple[Plan, list[Known], int], data: st.DataObject
):
    plan, sources, num_checked = case
    seen: list[Numbers] = []

    def choose(runs: Numbers) -> Numbers:
        seen.append(runs)
        every = [(s, f + i) for _, _, s, f, n in runs.tolist() for i in range(n)]
        chosen = data.draw(st.lists(st.sampled_from(every), max_size=num_checked)) if every else []
        seen.append(np.array(chosen, np.int64).reshape(-1, 2))
        return seen[-1]

    division = divide(plan, sources, SIZES, choose)
    found, is_carried = put_together(division, sources)
    assert found == [row for rows in rows_of(plan.units) for row in rows]
    # Carried is what some source has predicted, but for the rows that are checked.
    predictable = int(seen[0][:, 4].sum())
    assert sum(is_carried) == predictable - len(division.carried.checked)
    known = {row for one in sources for row in predictions_of(one)}
    assert {row for row, carried in zip(found, is_carried, strict=True) if carried} <= known
    # A checked row of the work is the row that the source has predicted there.
    units = rows_of(division.work.units)
    assert len(division.carried.checked) == len(set(map(tuple, seen[1].tolist())))
    for unit, row, source, ordinal in division.carried.checked.tolist():
        assert units[unit][row] == predictions_of(sources[source])[ordinal]
    told = division.shards
    assert sum(shard.carried for shard in told) == sum(is_carried)
    assert sum(shard.computed or 0 for shard in told) == len(is_carried) - sum(is_carried)


@given(case=cases())
def test_the_newest_source_that_knows_a_shard_is_taken(case: tuple[Plan, list[Known], int]):
    plan, sources, _ = case
    division = divide(plan, sources, SIZES, check_nothing)
    for _, _, source, first, _ in division.carried.runs.tolist():
        path = predictions_of(sources[source])[first][0]
        assert not any(f"/in/{path}" in newer.shards for newer in sources[:source])


def test_shards_of_another_size_version_or_row_count_are_computed():
    plan = planned(shard_extents([[10], [10], [10], [10]], 10.0))
    known = known_of(plan, {}, {f"s{index:05d}.parquet" for index in range(4)})
    shards = list(known.shards.values())
    shards[0] = replace(shards[0], size_bytes=11)
    shards[1] = replace(shards[1], version="v2")
    shards[2] = replace(shards[2], num_rows=9)
    sources = [replace(known, shards={shard.uri: shard for shard in shards})]
    division = divide(plan, sources, SIZES, check_nothing)
    assert [shard.state for shard in division.shards] == ["changed"] * 3 + ["unchanged"]
    assert rows_of(division.work.units)[-1][-1] == ("s00002.parquet", 9)
    assert division.carried.num_rows == 10


def test_what_is_gone_and_what_is_new_is_told():
    both = planned(shard_extents([[4], [5], [6]], 10.0))
    known = known_of(both, {}, {"s00000.parquet", "s00001.parquet"})
    now = planned([e for e in shard_extents([[4], [5], [6]], 10.0) if e.path != "s00000.parquet"])
    told = {s.uri: (s.state, s.carried, s.computed, s.gone)
            for s in divide(now, [known], SIZES, check_nothing).shards}  # fmt: skip
    assert told == {
        "/in/s00001.parquet": ("unchanged", 5, 0, 0),
        "/in/s00002.parquet": ("new", 0, 6, 0),
        "/in/s00000.parquet": ("gone", 0, 0, 4),
    }


@pytest.mark.parametrize("num_rows", [4, 1])
def test_a_shard_that_cannot_be_read_now_is_not_carried(num_rows: int):
    """It stands as one row, which may be as many as it had."""
    extents = shard_extents([[num_rows], [5]], 10.0)
    plan = planned(extents)
    known = known_of(plan, {}, {"s00000.parquet", "s00001.parquet"})
    unread = replace(extents[0], num_rows=1, reason=Reason.UNREADABLE_SHARD, message="no footer")
    division = divide(planned([unread, extents[1]]), [known], SIZES, check_nothing)
    assert division.carried.num_rows == 5
    assert rows_of(division.work.units) == [[("s00000.parquet", 0)]]


def test_carried_rows_that_follow_each_other_are_one_run_and_say_when_they_were_computed():
    plan = planned(shard_extents([[4], [5]], 10.0))
    known = known_of(plan, {}, {"s00000.parquet", "s00001.parquet"})
    dated = [replace(shard, computed_day=n + 7) for n, shard in enumerate(known.shards.values())]
    division = divide(
        plan, [replace(known, shards={s.uri: s for s in dated})], SIZES, check_nothing
    )
    assert division.carried.runs.tolist() == [[0, 0, 0, 0, 9]]
    assert division.days == {"/in/s00000.parquet": 7, "/in/s00001.parquet": 8}


def test_of_a_tar_only_rows_without_a_prediction_and_checked_ones_are_read():
    plan = planned(shard_extents([[9], [5], [7]], 10.0))
    units = tuple(
        Unit(index, (replace(extent, num_rows=0),), (), UncountedPlan(4, 1000))
        for index, extent in enumerate(e for unit in plan.units for e in unit.extents)
    )
    known = known_of(plan, {"s00001.parquet": (1, 4)}, {"s00000.parquet", "s00001.parquet"})
    uncounted = replace(plan, units=units)
    division = divide(uncounted, [known], SIZES, lambda runs: np.array([[0, 10], [0, 0]], np.int64))
    assert [unit.cut and unit.cut.rows.only for unit in division.work.units] == [
        (0,), (1, 2, 4), None,
    ]  # fmt: skip
    assert [unit.index for unit in division.work.units] == [0, 1, 2]
    assert division.work.input_bytes == plan.input_bytes
    # Predictions 0-8 are of the first tar, 9 and 10 and 11 of rows 0, 2 and 3 of the second.
    assert division.carried.runs.tolist() == [[1, 0, 0, 1, 9], [1, 2, 0, 11, 1]]
    assert division.carried.checked.tolist() == [[0, 0, 0, 0], [1, 1, 0, 10]]


def test_the_work_has_another_name_if_other_rows_are_carried():
    plan = planned(shard_extents([[4], [5], [6]], 10.0))
    names = {"s00000.parquet", "s00001.parquet"}
    known = known_of(plan, {}, names)
    other = replace(known, source=replace(known.source, token="another"))
    few = known_of(plan, {}, {"s00000.parquet"})
    prints = [
        divide(plan, sources, SIZES, check_nothing).work.fingerprint
        for sources in ([known], [other], [few], [known])
    ]
    assert len(set(prints[:3])) == 3
    assert prints[0] == prints[3]
    assert plan.fingerprint not in prints
