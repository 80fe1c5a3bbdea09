"""Prove the keys of a version: files as written, shards that follow each other, rows that exist."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from pipeline.commit.keys.bucket import read_bucket
from pipeline.commit.keys.meta import NoKeys, VersionKeys, read_keys
from pipeline.commit.keys.shards import read_shards
from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest
from pipeline.commit.published.receipt import Check, verdict
from pipeline.storage.store import Store


def check_keys(store: Store, layout: Layout, manifest: Manifest) -> Check:
    """Check what a version knows of its rows; one that has no keys is a version all the same."""
    if not manifest.keys:
        return Check("keys", "skipped", "this version has no keys")
    try:
        keys = read_keys(store, layout, manifest)
        problems = [*_shards(keys, manifest), *_hashes(keys)]
    except NoKeys as error:
        return Check("keys", "fail", str(error))
    files = f"{len(keys.files)} files as written"
    return verdict("keys", problems, f"{files}, of {keys.num_rows} predictions")


def _shards(keys: VersionKeys, manifest: Manifest) -> Iterator[str]:
    shards = read_shards(keys)
    for shard in shards:
        if not all(0 <= row < shard.num_rows for row in shard.failed):
            yield f"{shard.uri} has {shard.num_rows} rows, and keys of others that failed"
    ends = [shard.first + shard.num_rows - len(shard.failed) for shard in shards]
    for (shard, end), (other, _) in pairwise(zip(shards, ends, strict=True)):
        if end > other.first:
            yield f"{shard.uri} and {other.uri} have the same predictions, by their keys"
    predicted = sum(shard.num_rows - len(shard.failed) for shard in shards)
    is_all = bool(shards) and not manifest.num_unreadable_shards
    if (last := max(ends, default=0)) > keys.num_rows:
        yield f"the predictions of the shards end with the {last}th, the parts have {keys.num_rows}"
    if is_all and predicted != keys.num_rows:
        yield f"the shards have {predicted} predictions by their keys, the parts {keys.num_rows}"


def _hashes(keys: VersionKeys) -> Iterator[str]:
    found = 0
    for number in range(keys.num_buckets):
        ordinals = read_bucket(keys, number).ordinals
        found += len(ordinals)
        if len(ordinals) and ordinals.max() >= keys.num_rows:
            yield f"hash bucket {number} names predictions that are not there"
    if found > keys.num_rows:
        yield f"there are {found} hashes of {keys.num_rows} predictions"
