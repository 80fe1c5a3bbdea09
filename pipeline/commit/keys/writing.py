"""Write all that a version knows of its rows, once its parts are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from pipeline.commit.keys.meta import UNITS, About, KeyFile, write_meta
from pipeline.commit.keys.shards import write_shards
from pipeline.commit.manifest import Part
from pipeline.commit.parts.part_reader import open_part
from pipeline.commit.parts.row_positions import read_positions
from pipeline.core.arrays import Numbers
from pipeline.core.failures import Reason
from pipeline.core.slices import SliceKey
from pipeline.planning.carried import KnownShard
from pipeline.planning.plan import Plan
from pipeline.process.failpoints import failpoint
from pipeline.storage.store import Store

_THREADS = 8


@dataclass(frozen=True)
class FailedRows:
    """The rows of a version that have no prediction."""

    ranks: Numbers
    """int64 (F,), ascending: how many rows of the version come before each."""
    unread: Numbers
    """Those of them that are there because a shard cannot be read."""


def read_failed(store: Store, folder: str, parts: Sequence[Part]) -> FailedRows:
    """Read from the parts of the quarantine which rows are there.

    Args:
        folder: What the paths of the parts are relative to.
        parts: In input order.
    """

    def read(part: Part) -> tuple[Numbers, Numbers]:
        with open_part(store, f"{folder}/{part.path}") as file:
            metadata = file.metadata.metadata
            reasons = file.read(columns=["reason"]).column(0)
        ranks = read_positions(metadata, part.num_rows, part.path).ranks
        is_unread = pc.equal(reasons, Reason.UNREADABLE_SHARD.value)
        return ranks, ranks[np.asarray(is_unread)]

    with ThreadPoolExecutor(_THREADS) as pool:
        found = [(np.zeros(0, np.int64),) * 2, *pool.map(read, parts)]
    ranks, unread = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return FailedRows(ranks, unread)


def rows_of_units(plan: Plan, keys: Sequence[SliceKey]) -> list[int]:
    """Return the rows of each unit of a plan whose slices are all staged.

    Args:
        keys: Of the staged slices.
    """
    ends: dict[int, int] = {}
    for key in keys:
        ends[key.unit] = max(key.end, ends.get(key.unit, 0))
    return [
        ends.get(unit.index, 0) if unit.num_rows is None else unit.num_rows for unit in plan.units
    ]


def write_keys(
    store: Store,
    folder: str,
    about: About,
    shards: Sequence[KnownShard],
    parts: Sequence[Part],
    buckets: Mapping[str, KeyFile],
) -> dict[str, str]:
    """Write what is known of the shards, and then the list of all files.

    Args:
        folder: `Layout.keys` of the version.
        about: What its predictions depend on.
        shards: As `known_shards` says.
        parts: Of the predictions, in the order of the manifest.
        buckets: What `write_buckets` has written; empty without content.

    Returns:
        What `Manifest.keys` says of them.
    """
    part_rows = [part.num_rows for part in parts]
    units = write_shards(store, folder, shards, part_rows)
    failpoint("keys_units")
    told = write_meta(store, folder, about, part_rows, {UNITS: units, **buckets})
    failpoint("keys_written")
    return told
