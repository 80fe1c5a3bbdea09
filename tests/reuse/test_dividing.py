"""Promise: known rows are those of a plain model, for any cut of the plan."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from support.runs.plan_examples import planned, shard_extents

from pipeline.commit.shard_table import KnownShard
from pipeline.core.failures import Reason
from pipeline.core.ranges import Ranges
from pipeline.planning.plan import Plan
from pipeline.planning.slicing import SliceSizes
from pipeline.reuse.dividing import Known, divide, known_counts, known_runs, known_slices
from pipeline.sources.units import UncountedPlan, Unit
from pipeline.storage.store import Store

SIZES = SliceSizes(8, few=2, is_fixed=False)
SHARDS = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([None, 0, 1]), st.sets(st.integers(0, 39))),
    min_size=1,
    max_size=6,
)
"""Rows of each shard, the version that knows it, and the rows that failed there."""


def versions_of(
    plan: Plan, shards: list[tuple[int, int | None, set[int]]]
) -> list[dict[str, KnownShard]]:
    root, versions = Store(plan.source_root), [dict[str, KnownShard](), dict[str, KnownShard]()]
    extents = {e.path: e for unit in plan.units for e in unit.extents}
    first = [0, 0]
    for (rows, version, failed), (path, extent) in zip(shards, extents.items(), strict=True):
        if version is not None:
            lost = Ranges.of(sorted(row for row in failed if row < rows))
            facts = (extent.size_bytes, extent.exact_version, rows, first[version], lost)
            versions[version][root.url(path)] = KnownShard(root.url(path), *facts)
            first[version] += rows - len(lost)
    return versions


def by_row(plan: Plan, units: tuple[Unit, ...], runs: np.ndarray) -> dict[tuple[str, int], object]:
    """Path and number of each row -> version and ordinal, or None."""
    known = {
        (unit, row + at): (version, ordinal + at)
        for unit, row, count, version, ordinal in runs.tolist()
        for at in range(count)
    }
    return {
        place: known.get((unit.index, row))
        for unit in units
        for row in range(unit.num_rows or 0)
        if (place := unit.place_of(row))
    }


@given(SHARDS, st.floats(1, 1e9))
def test_known_rows_are_those_of_known_shards_for_any_cut_of_the_plan(
    shards: list[tuple[int, int | None, set[int]]], row_bytes: float
):
    plan = planned(shard_extents([[rows] for rows, _, _ in shards]))
    versions = versions_of(plan, shards)
    division = divide(plan, versions, row_bytes, SIZES)
    actual = by_row(plan, division.units, known_runs(division.units, division.known))
    expected: dict[tuple[str, int], object] = {}
    root = Store(plan.source_root)
    for path, number in by_row(plan, plan.units, np.zeros((0, 5), np.int64)):
        shard = next(
            ((n, v[root.url(path)]) for n, v in enumerate(versions) if root.url(path) in v), None
        )
        expected[path, number] = None
        if shard is not None and number not in shard[1].failed:
            before = sum(row < number for row in shard[1].failed)
            expected[path, number] = (shard[0], shard[1].first + number - before)
    assert list(actual) == list(expected), "all rows, in the order of the input"
    assert actual == expected
    assert division.num_known == sum(place is not None for place in actual.values())
    assert [unit.index for unit in division.units] == list(range(len(division.units)))
    if division.known and not any(failed for _, _, failed in shards):
        computed = Counter(place for place, version in actual.items() if version is None)
        near = SIZES.at(computed.total(), 100.0)
        for key in (key for unit in division.units for key in unit.slices()):
            rows = [division.units[key.unit].place_of(row) for row in range(key.start, key.end)]
            assert sum(computed[row] for row in rows) <= near, "actors share what is computed"


def test_a_shard_of_another_size_version_or_number_of_rows_is_not_known():
    plan = planned(shard_extents([[5], [7]]))
    [known, _] = versions_of(plan, [(5, 0, set()), (7, 0, set())])
    uri = next(iter(known))
    for other in (
        replace(known[uri], size_bytes=known[uri].size_bytes + 1),
        replace(known[uri], version="another"),
        replace(known[uri], num_rows=6),
    ):
        division = divide(plan, [{**known, uri: other}], 1.0, SIZES)
        assert [shard.state for shard in division.shards] == ["changed", "unchanged"]
    broken = [replace(e, reason=Reason.UNREADABLE_SHARD) for e in plan.units[0].extents[:1]]
    unit = replace(plan.units[0], extents=(*broken, *plan.units[0].extents[1:]))
    division = divide(replace(plan, units=(unit, *plan.units[1:])), [known], 1.0, SIZES)
    assert [shard.state for shard in division.shards] == ["changed", "unchanged"]
    gone = replace(known[uri], uri="gone")
    states = [shard.state for shard in divide(plan, [{**known, "gone": gone}], 1.0, SIZES).shards]
    assert states == ["unchanged", "unchanged", "gone"]


@given(st.integers(0, 50), st.integers(1, 20), st.sets(st.integers(0, 49), max_size=6))
def test_slices_of_an_uncounted_shard_fill_what_is_not_staged(
    num_rows: int, most_rows: int, bounds: set[int]
):
    [extent] = [e for unit in planned(shard_extents([[9]])).units for e in unit.extents]
    empty = Unit(0, (extent,), (), UncountedPlan(9, 1 << 20))
    every = known_slices(empty, frozenset(), num_rows, most_rows)
    assert [key.start for key in every[1:]] == [key.end for key in every[:-1]]
    assert [key.is_last for key in every] == [False] * (len(every) - 1) + [True]
    assert (every[0].start, every[-1].end) == (0, num_rows)
    done = tuple(key for key in every if key.start in bounds)
    unit = replace(empty, cut=replace(empty.cut, done=done))
    left = known_slices(unit, frozenset(), num_rows, most_rows)
    assert sorted([*left, *done], key=lambda key: key.start) == every
    known = KnownShard("u", extent.size_bytes, extent.exact_version, num_rows, 0)
    assert known_counts([empty], {extent.path: (0, known)}) == {0: num_rows}


def test_a_task_gets_only_the_failed_rows_of_its_units():
    units = [Unit(index, (), ()) for index in range(400)]
    rows = pa.table({"unit": np.repeat(np.arange(400), 50), "row": np.tile(np.arange(50), 400)})
    failures = rows.append_column("message", pa.array(["it cannot be decoded"] * len(rows)))
    known = Known((), pa.schema([]), (), (), failures=failures)
    for of_task, expected in (
        (known.of_unit(7), [7]),
        (known.of_units([units[7], units[9]]), [7, 9]),
    ):
        assert of_task.failures is not None
        assert of_task.failures.column("unit").to_pylist() == [
            u for u in expected for _ in range(50)
        ]
        assert len(pickle.dumps(of_task)) < 20_000 < len(pickle.dumps(known))
