"""What is known of shards: whose predictions are where, whatever units, parts and failures are."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.published import DAY, Rows, make_manifest, make_plan

from pipeline.commit.keys.meta import UNITS, About, VersionKeys, read_keys, write_meta
from pipeline.commit.keys.shards import known_shards, read_shards, write_shards
from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Part
from pipeline.core.failures import Reason
from pipeline.planning.carried import KnownShard
from pipeline.planning.plan import Plan
from pipeline.sources.extents import Extent, UncountedPlan
from pipeline.sources.units import Unit
from pipeline.storage.store import Store

LAYOUT = Layout(DAY)
ABOUT = About("predictor", "settings", "inputs", {"pillow": "12.0"})
SOURCE = Store("/in")


@dataclasses.dataclass
class Shard:
    """A made-up shard: a flag per row, True if it failed."""

    failed: list[bool]
    is_whole: bool = False
    """It stands as one row, which failed."""
    is_cut_off: bool = False
    """Its last row stands for a rest that cannot be read."""


def shards(*, uncounted: bool) -> st.SearchStrategy[list[Shard]]:
    flags = st.lists(st.booleans(), min_size=0 if uncounted else 1, max_size=7)
    usual = st.builds(Shard, flags)
    cut_off = st.builds(lambda f: Shard([*f, True], is_cut_off=True), flags)
    whole = st.builds(lambda: Shard([True], is_whole=True))
    return st.lists(st.one_of(usual, cut_off if uncounted else whole), max_size=8)


def plan_of(units: Sequence[Unit]) -> Plan:
    return dataclasses.replace(make_plan(Rows()), units=tuple(units), source_root="/in")


def extents_of(index: int, shard: Shard, cuts: Sequence[int]) -> list[Extent]:
    """The shard's rows, cut into extents."""
    reason = Reason.UNREADABLE_SHARD if shard.is_whole else None
    whole = Extent(f"s{index}", 100 + index, f"v{index}", 0, len(shard.failed), 1.0, reason)
    bounds = sorted({0, len(shard.failed), *(cut % len(shard.failed) for cut in cuts)})
    return [whole.piece(a, b - a) for a, b in pairwise(bounds)]


def counted_plan(some: Sequence[Shard], cuts: Sequence[int], unit_cuts: Sequence[int]) -> Plan:
    extents = [each for i, shard in enumerate(some) for each in extents_of(i, shard, cuts)]
    ends = sorted({len(extents), *(cut % (len(extents) + 1) for cut in unit_cuts)} - {0})
    groups = [extents[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    rows = [sum(extent.num_rows for extent in group) for group in groups]
    return plan_of(
        [Unit(i, tuple(g), (0, n)) for i, (g, n) in enumerate(zip(groups, rows, strict=True))]
    )


def uncounted_plan(some: Sequence[Shard]) -> Plan:
    extents = [Extent(f"s{i}", 100 + i, f"v{i}", 0, 0, 1.0) for i in range(len(some))]
    return plan_of([Unit(i, (e,), (), UncountedPlan(4, 10**6)) for i, e in enumerate(extents)])


def expected(some: Sequence[Shard]) -> list[KnownShard]:
    """Row by row."""
    found, predicted = [], 0
    for index, shard in enumerate(some):
        failed = tuple(row for row, is_failed in enumerate(shard.failed) if is_failed)
        known = KnownShard(
            *(f"/in/s{index}", 100 + index, f"v{index}", len(shard.failed), predicted, failed),
            computed_day=9 - index % 2,
        )
        predicted += len(shard.failed) - len(failed)
        if not (shard.is_whole or shard.is_cut_off):
            found.append(known)
    return found


def find(some: Sequence[Shard], plan: Plan, *, is_limited: bool = False) -> list[KnownShard]:
    flags = [flag for shard in some for flag in shard.failed]
    ends = list(accumulate(len(shard.failed) for shard in some))
    unread = [e - 1 for e, s in zip(ends, some, strict=True) if s.is_whole or s.is_cut_off]
    rows = [
        len(some[unit.index].failed) if unit.num_rows is None else unit.num_rows
        for unit in plan.units
    ]
    failed = np.flatnonzero(np.array(flags, bool))
    days = {f"/in/s{index}": 8 for index in range(1, len(some), 2)}
    how: dict[str, Any] = {"is_limited": is_limited, "today": 9, "days": days}
    return known_shards(plan, rows, failed, np.array(unread, np.int64), **how)


NUMBERS = st.lists(st.integers(0, 30), max_size=5)


@given(shards(uncounted=False), NUMBERS, NUMBERS)
def test_each_readable_shard_is_one_row_whatever_it_is_cut_into(some, cuts, unit_cuts):
    assert find(some, counted_plan(some, cuts, unit_cuts)) == expected(some)


@given(shards(uncounted=True))
def test_a_shard_counted_in_reading_is_known_if_it_was_read_to_its_end(some):
    assert find(some, uncounted_plan(some)) == expected(some)


def test_of_a_limited_run_no_shard_is_known():
    some = [Shard([False, True]), Shard([False])]
    assert find(some, counted_plan(some, [], []), is_limited=True) == []
    together = plan_of([Unit(0, (Extent("a", 1, "v", 0, 0, 1.0),) * 2, (), UncountedPlan(4, 9))])
    none = np.zeros(0, np.int64)
    how: dict[str, Any] = {"is_limited": False, "today": 9, "days": {}}
    assert known_shards(together, [3], none, none, **how) == []


def keys_of(folder: Path, some: list[KnownShard], part_rows: list[int]) -> VersionKeys:
    """Write shards as those of a version with such parts."""
    store = Store(str(folder))
    where = LAYOUT.keys("000001-0123456789ab")
    files = {UNITS: write_shards(store, where, some, part_rows)}
    told = write_meta(store, where, ABOUT, part_rows, files)
    parts = tuple(Part(f"p{index}", rows, 1, "") for index, rows in enumerate(part_rows))
    manifest = make_manifest(LAYOUT, make_plan(Rows()), 1, "r", parts, ())
    keys = read_keys(store, LAYOUT, dataclasses.replace(manifest, keys=told))
    assert (keys.about, keys.num_rows, keys.num_buckets) == (ABOUT, sum(part_rows), 0)
    return keys


def written(folder: Path, some: list[KnownShard], part_rows: list[int]) -> list[KnownShard]:
    """Write shards and read them back."""
    return read_shards(keys_of(folder, some, part_rows))


def test_shards_are_read_without_what_ray_has_to_import_anyway(tmp_path: Path):
    known = expected([Shard([False, True]), Shard([False])])
    pickled = pickle.dumps(keys_of(tmp_path, known, [2]))
    program = (
        "import pickle, sys; from pipeline.commit.keys.shards import read_shards; "
        f"print(len(read_shards(pickle.loads({pickled!r}))), {{'pandas'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("2 set()", 0), done.stderr


@given(shards(uncounted=True), NUMBERS)
def test_shards_survive_their_file_wherever_parts_end(tmp_path_factory, some, cuts):
    known = expected(some)
    num_rows = sum(flag is False for shard in some for flag in shard.failed)
    bounds = sorted([0, num_rows, *(cut % (num_rows + 1) for cut in cuts)])
    part_rows = [b - a for a, b in pairwise(bounds)]
    assert written(tmp_path_factory.mktemp("keys"), known, part_rows) == known


@pytest.mark.slow
def test_a_million_files_take_seconds(tmp_path: Path):
    some = [Shard([index % 50 == 0]) for index in range(1_000_000)]
    plan = counted_plan(some, [], list(range(0, 1_000_000, 500)))
    known = find(some, plan)
    assert len(known) == 1_000_000
    assert written(tmp_path, known, [980_000]) == known
