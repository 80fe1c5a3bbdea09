"""Prove what a version knows of its shards: a file as written, shards that follow each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest
from pipeline.commit.published.receipt import Check, verdict
from pipeline.commit.shard_table import KnownShard, NoKeys, read_shard_table
from pipeline.storage.store import Store


def check_keys(store: Store, layout: Layout, manifest: Manifest) -> Check:
    """Check what a version knows; one that knows nothing is a version all the same."""
    if not manifest.keys:
        return Check("keys", "skipped", "this version has no table of its shards")
    try:
        table = read_shard_table(store, layout, manifest)
    except NoKeys as error:
        return Check("keys", "fail", str(error))
    problems = [*_problems(table.shards, manifest)]
    return verdict("keys", problems, f"{len(table.shards)} shards, as written")


def _problems(shards: Sequence[KnownShard], manifest: Manifest) -> Iterator[str]:
    for shard in shards:
        if not all(0 <= row < shard.num_rows for row in shard.failed):
            yield f"{shard.uri} has {shard.num_rows} rows, and others that failed"
    ends = [shard.first + shard.num_rows - len(shard.failed) for shard in shards]
    for (shard, end), (other, _) in pairwise(zip(shards, ends, strict=True)):
        if end > other.first:
            yield f"{shard.uri} and {other.uri} have the same predictions"
    predicted = sum(shard.num_rows - len(shard.failed) for shard in shards)
    written = sum(part.num_rows for part in manifest.parts)
    if max(ends, default=0) > written:
        yield f"the shards have predictions beyond the {written} of the version"
    if shards and not manifest.num_unreadable_shards and predicted != written:
        yield f"the shards have {predicted} predictions, the version {written}"
