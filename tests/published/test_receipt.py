"""A table of shards that is as it was written, and wrong all the same: what it says cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.runs.published import DAY, Rows, make_manifest, make_plan

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Part
from pipeline.commit.parts.compaction import Compacted
from pipeline.commit.shard_table import About, KnownShard, write_shard_table
from pipeline.published.verify import Check, check_keys
from pipeline.storage.store import Store

LAYOUT, ABOUT = Layout(DAY), About("predictor", "settings", "content")
SOUND = (
    KnownShard("a", 10, "1", 3, 0, (1,)),
    KnownShard("b", 10, "1", 2, 2, (0, 1)),
    KnownShard("c", 10, "1", 5, 2),
)
"""Seven predictions in two parts."""


def check(
    folder: Path, shards: tuple[KnownShard, ...] = SOUND, unreadable_shards: int = 0
) -> Check:
    """Write what is known as given, and prove it."""
    store, parts = Store(str(folder)), (Part("part-0", 3, 1, ""), Part("part-1", 4, 1, ""))
    keys = write_shard_table(store, LAYOUT.keys("1"), ABOUT, shards, Compacted(parts, ()))
    manifest = replace(
        make_manifest(LAYOUT, make_plan(Rows()), 1, "run", parts, ()),
        keys=keys,
        num_predicted=7,
        num_unreadable_shards=unreadable_shards,
    )
    return check_keys(store, LAYOUT, manifest)


def changed(number: int, **how: object) -> tuple[KnownShard, ...]:
    return tuple(replace(s, **how) if n == number else s for n, s in enumerate(SOUND))


def test_what_is_sound_passes_and_shards_that_could_not_be_read_may_be_missing(tmp_path: Path):
    result = check(tmp_path)
    assert (result.status, result.message) == ("pass", "3 shards, as written")
    assert check(tmp_path, ()).status == "pass"
    assert check(tmp_path, SOUND[:2]).status == "fail"
    assert check(tmp_path, SOUND[:2], unreadable_shards=1).status == "pass"


BEYOND = "the shards have predictions beyond the 7 of the version"


@pytest.mark.parametrize(
    ("shards", "unreadable", "message"),
    [
        (changed(0, failed=(3,)), 0, "a has 3 rows, and others that failed"),
        (changed(0, failed=(-1,)), 0, "a has 3 rows, and others that failed"),
        (changed(2, first=1), 0, "b and c have the same predictions"),
        (changed(0, failed=()), 0, "a and b have the same predictions (and 1 more)"),
        (changed(2, num_rows=4), 0, "the shards have 6 predictions, the version 7"),
        (changed(2, first=3), 0, BEYOND),
        (changed(2, num_rows=6), 1, BEYOND),
    ],
)
def test_shards_whose_rows_cannot_be_are_named(
    tmp_path: Path, shards: tuple[KnownShard, ...], unreadable: int, message: str
):
    result = check(tmp_path, shards, unreadable)
    assert (result.status, result.message) == ("fail", message)
