"""Keys that are as they were written, and wrong all the same: what they say cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.runs.published import DAY, Rows, make_manifest, make_plan

from pipeline.commit.keys.bucket import Bucket, write_bucket
from pipeline.commit.keys.meta import UNITS, About, bucket_name, write_meta
from pipeline.commit.keys.shards import write_shards
from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Part
from pipeline.commit.published.key_check import check_keys
from pipeline.commit.published.receipt import Check
from pipeline.planning.carried import KnownShard
from pipeline.storage.store import Store

LAYOUT, ABOUT = Layout(DAY), About("predictor", "settings", "content")
PART_ROWS = (3, 4)
SOUND = (
    KnownShard("a", 10, "1", 3, 0, (1,)),
    KnownShard("b", 10, "1", 2, 2, (0, 1)),
    KnownShard("c", 10, "1", 5, 2),
)
"""Seven predictions in two parts."""


def check(
    folder: Path,
    shards: tuple[KnownShard, ...] = SOUND,
    hashes: tuple[int, ...] = (0, 2, 6),
    unreadable_shards: int = 0,
) -> Check:
    """Write keys as given, and prove them."""
    store, keys = Store(str(folder)), LAYOUT.keys(1)
    numbers = np.array(hashes, np.int64)
    rows = Bucket(np.arange(len(hashes)), np.arange(len(hashes)), numbers)
    files = {
        UNITS: write_shards(store, keys, shards, PART_ROWS),
        bucket_name(0): write_bucket(store, keys, 0, rows, PART_ROWS),
    }
    parts = tuple(Part(f"part-{n}", rows, 1, "") for n, rows in enumerate(PART_ROWS))
    manifest = replace(
        make_manifest(LAYOUT, make_plan(Rows()), 1, "run", parts, ()),
        keys=write_meta(store, keys, ABOUT, PART_ROWS, files),
        num_unreadable_shards=unreadable_shards,
    )
    return check_keys(store, LAYOUT, manifest)


def changed(number: int, **how: object) -> tuple[KnownShard, ...]:
    return tuple(replace(s, **how) if n == number else s for n, s in enumerate(SOUND))


def test_sound_keys_pass_and_say_how_many_files_and_predictions_there_are(tmp_path: Path):
    found = check(tmp_path)
    assert (found.status, found.message) == ("pass", "2 files as written, of 7 predictions")


def test_that_nothing_is_known_of_any_shard_is_no_fault(tmp_path: Path):
    assert check(tmp_path, ()).status == "pass"


def test_shards_that_could_not_be_read_may_be_missing(tmp_path: Path):
    assert check(tmp_path, SOUND[:2]).status == "fail"
    assert check(tmp_path, SOUND[:2], unreadable_shards=1).status == "pass"


@pytest.mark.parametrize(
    ("shards", "said"),
    [
        (changed(0, failed=(3,)), "a has 3 rows, and keys of others that failed"),
        (changed(0, failed=(-1,)), "a has 3 rows, and keys of others that failed"),
        (changed(2, first=1), "b and c have the same predictions, by their keys"),
        (changed(0, failed=()), "a and b have the same predictions, by their keys (and 1 more)"),
        (changed(2, num_rows=4), "the shards have 6 predictions by their keys, the parts 7"),
        (changed(2, first=3), "the predictions of the shards end with the 8th, the parts have 7"),
    ],
)
def test_shards_whose_rows_cannot_be_are_named(
    tmp_path: Path, shards: tuple[KnownShard, ...], said: str
):
    found = check(tmp_path, shards)
    assert (found.status, found.message) == ("fail", said)


def test_shards_beyond_the_last_prediction_are_wrong_though_others_could_not_be_read(
    tmp_path: Path,
):
    found = check(tmp_path, changed(2, num_rows=6), unreadable_shards=1)
    said = "the predictions of the shards end with the 8th, the parts have 7"
    assert (found.status, found.message) == ("fail", said)


@pytest.mark.parametrize(
    ("hashes", "said"),
    [
        ((0, 7), "hash bucket 0 names predictions that are not there"),
        ((*range(7), 6), "there are 8 hashes of 7 predictions"),
    ],
)
def test_hashes_of_predictions_that_are_not_there_are_found(
    tmp_path: Path, hashes: tuple[int, ...], said: str
):
    found = check(tmp_path, hashes=hashes)
    assert (found.status, found.message) == ("fail", said)


def test_every_prediction_may_have_a_hash(tmp_path: Path):
    assert check(tmp_path, hashes=tuple(range(7))).status == "pass"
