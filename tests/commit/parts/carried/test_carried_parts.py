"""A run that takes predictions over publishes what a full recompute would, row for row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st
from support.runs.carried_nights import (
    OWN,
    Content,
    Night,
    Old,
    Shard,
    compactor_of,
    divide,
    look_up,
    publish_shards,
    recompute,
    rows_of,
    stage,
)
from support.runs.published import run_here

from pipeline.commit.layout import Layout
from pipeline.commit.parts.carried.figures import find_carried_duplicates
from pipeline.commit.parts.carried.parts import compact_carried
from pipeline.commit.parts.carried.version import Traffic
from pipeline.commit.parts.compaction import Compacted, Compactor
from pipeline.commit.parts.row_ids import read_hashes
from pipeline.storage.store import Store

TODAY, YESTERDAY = Layout("date=2"), Layout("date=1")
TODAY, YESTERDAY = Layout("date=2"), Layout("date=1")


@dataclass(frozen=True)
class Case:
    """Two earlier versions and tonight: most shards stay as they are."""

    seed: int
    num_shards: int
    num_changes: int
    num_broken: int
    num_cuts: int
    target_bytes: float
    by_content: bool
    row_group_rows: int
    num_ids: int
    """Ids are of a column, and so many are different; 1: they are made of the shard and the row."""

    def shards(self, rng: np.random.Generator, before: list[Shard]) -> list[Shard]:
        named = {shard.name: shard for shard in before}
        for number in rng.integers(0, 99, self.num_changes if before else self.num_shards):
            name = f"s{number:02d}"
            if name in named and rng.random() < 0.5:
                del named[name]
            else:
                values = rng.integers(0, 40, rng.integers(1, 9))
                ids = [f"id-{number}" for number in rng.integers(0, self.num_ids, len(values))]
                own_ids = tuple(ids) if self.num_ids > 1 else ()
                named[name] = Shard(name, tuple(values.tolist()), own_ids)
        return [named[name] for name in sorted(named)]

    def broken(self, rng: np.random.Generator, shards: list[Shard]) -> frozenset[str]:
        ids = [place for shard in shards for place in shard.places]
        return frozenset(rng.choice(ids, self.num_broken).tolist() if ids else [])


CASES = st.builds(
    Case,
    seed=st.integers(0, 10**6),
    num_shards=st.integers(0, 40),
    num_changes=st.integers(0, 4),
    num_broken=st.integers(0, 4),
    num_cuts=st.integers(0, 9),
    target_bytes=st.sampled_from([1e9, 3e3, 4e3, 5e3, 2e4]),
    by_content=st.booleans(),
    row_group_rows=st.integers(1, 9),
    num_ids=st.sampled_from([1, 1, 30, 1000]),
)


def make(store: Store, case: Case) -> tuple[Night, list[Old]]:
    """Publish the earlier versions, and divide the input of tonight."""
    rng = np.random.default_rng(case.seed)
    shards, olds = case.shards(rng, []), list[Old]()
    for number, layout in ((3, YESTERDAY), (4, TODAY)):
        old = publish_shards(
            store, layout, number, shards, case.broken(rng, shards),
            rng.integers(0, 999, case.num_cuts).tolist(),
            row_group_rows=case.row_group_rows,
            is_replaced=rng.random() < 0.3,
            compression="snappy" if rng.random() < 0.2 else "zstd",
        )  # fmt: skip
        olds.insert(0, old)
        shards = case.shards(rng, shards)
    checked = case.broken(rng, shards)
    still = frozenset(place for place in sorted(olds[0].broken) if rng.random() < 0.7)
    broken = case.broken(rng, shards) | still
    night = divide(shards, broken, olds, checked=checked, unit_rows=int(rng.integers(1, 20)))
    if case.by_content:
        night = look_up(night, olds, rng.integers(0, 4, 10).tolist())
    return night, olds


def compact(
    store: Store, night: Night, olds: list[Old], compactor: Compactor, rows: Sequence[int] = (7, 2)
) -> tuple[Compacted, Traffic]:
    slices = stage(store, "work", night.work, rows)
    versions = [old.version for old in olds]
    hashes = [read_hashes(store, path) for _, path, _ in slices]
    found, gone = find_carried_duplicates(store, slices, hashes, night.carried, versions, run_here)
    return compact_carried(
        compactor, slices, rows_of(found), night.carried, versions, OWN, night.unit_rows, run_here,
        gone=gone,
    )  # fmt: skip


@settings(max_examples=20)
@given(CASES)
def test_the_same_rows_and_places_as_of_a_full_recompute(case: Case):
    with TemporaryDirectory() as folder:
        store = Store(folder)
        night, olds = make(store, case)
        compactor = compactor_of(store, "new", target_bytes=case.target_bytes)
        done, traffic = compact(store, night, olds, compactor)
        event(f"copied parts: {min(3, traffic.parts_copied)}")
        assert Content.of(compactor, done) == Content.of(*recompute(store, night))
