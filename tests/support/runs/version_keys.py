"""Write what a made-up version knows of its rows, the way a run does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.commit.keys.meta import About, KeyFile, Kind
from pipeline.commit.keys.row_keys import KeyWriter, write_buckets
from pipeline.commit.keys.shards import known_shards
from pipeline.commit.keys.writing import read_failed, rows_of_units, write_keys
from pipeline.commit.layout import Layout
from pipeline.commit.parts.compaction import Compacted, Compactor, SizedSlice
from pipeline.core.slices import SliceKey
from pipeline.planning.carried import no_runs
from pipeline.planning.plan import Plan


def hash_of(row_id: str) -> bytes:
    """The hash of what the model sees of a made-up row."""
    return hashlib.sha256(row_id.encode()).digest()[:16]


def run_here(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Do what a run does with Ray tasks, one call after the other."""
    return [function(*arguments) for arguments in calls]


def write_version_keys(
    compactor: Compactor,
    layout: Layout,
    kind: Kind,
    plan: Plan,
    done: Compacted,
    slices: list[SizedSlice],
    duplicates: dict[SliceKey, tuple[int, ...]],
) -> dict[str, str]:
    """Write the keys of a version whose rows are all computed."""
    store, folder = compactor.store, layout.keys(compactor.version)
    failed = read_failed(store, compactor.folder, done.quarantine)
    counts = rows_of_units(plan, [key for key, _, _ in slices])
    shards = known_shards(
        plan, counts, failed.ranks, failed.unread, is_limited=False, today=0, days={}
    )
    buckets: dict[str, KeyFile] = {}
    if kind == "content":
        part_rows = tuple(part.num_rows for part in done.predictions)
        writer = KeyWriter(store, folder, f"{compactor.folder}/keys", part_rows, duplicates)
        buckets = write_buckets(writer, slices, no_runs(), run_here)
    about = About("made-up", "made-up", kind, {"pillow": "12.0"})
    return write_keys(store, folder, about, shards, done.predictions, buckets)
