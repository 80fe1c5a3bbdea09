"""Find the rows of a version by their hashes, on any node."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.commit.keys.bucket import Bucket, buckets_of, halves, read_bucket
from pipeline.commit.keys.meta import VersionKeys, bucket_name
from pipeline.core.arrays import Numbers
from pipeline.core.cache.node_cache import cached_folder

UNKNOWN = -1
"""Instead of an ordinal: no row has this hash."""
_BLOCK_ROWS = 2**20
_FILES = ("high", "low", "ordinals")


class KeyIndex:
    """The hashes of a version; only its description travels between processes.

    Each bucket is fetched when a hash of it is looked for first, once per node, and lies in the
    node cache as arrays that processes map into their memory.
    """

    def __init__(self, keys: VersionKeys, left_out: Numbers | None = None) -> None:
        """Name the version; nothing is opened yet.

        Args:
            left_out: int64 (M, 2), ascending: first and last + 1 of ordinals that are not to be
                found; None: all are.
        """
        self._keys = keys
        self._left_out = np.zeros((0, 2), np.int64) if left_out is None else left_out
        self._opened: dict[int, Bucket] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return KeyIndex, (self._keys, self._left_out)

    def find(self, hashes: npt.NDArray[np.uint8]) -> Numbers:
        """Return the ordinals of rows with these hashes; of equal ones any.

        Args:
            hashes: uint8 (N, 16).

        Returns:
            int64 (N,); UNKNOWN where no row has the hash.

        Raises:
            NoKeys: A file is missing or damaged.
            PipelineError: The store failed, or the node cache cannot be used.
        """
        found = np.full(len(hashes), UNKNOWN, np.int64)
        if not self._keys.num_buckets:
            return found
        for start in range(0, len(hashes), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            high, low = halves(hashes[block])
            order = np.argsort(high)
            high, low = high[order], low[order]
            of = buckets_of(high, self._keys.num_buckets)
            for number in np.unique(of).tolist():
                own = of == number
                found[block][order[own]] = _look_up(self._bucket(number), high[own], low[own])
        within = np.searchsorted(self._left_out[:, 0], found, "right") - 1
        ends = np.append(self._left_out[:, 1], 0)  # at -1: before all of them
        found[found < ends[within]] = UNKNOWN
        return found

    def _bucket(self, number: int) -> Bucket:
        if number not in self._opened:
            facts = [self._keys.files[bucket_name(number)].sha256, self._keys.part_rows]
            key = f"keys-{hashlib.sha256(repr(facts).encode()).hexdigest()}"
            folder = cached_folder(key, partial(self._fetch, number))
            arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in _FILES]
            self._opened[number] = Bucket(*arrays)
        return self._opened[number]

    def _fetch(self, number: int, folder: Path) -> None:
        bucket = read_bucket(self._keys, number)
        is_small = self._keys.num_rows < 2**32
        ordinals = bucket.ordinals.astype(np.uint32 if is_small else np.int64)
        for name, array in zip(_FILES, (bucket.high, bucket.low, ordinals), strict=True):
            np.save(folder / f"{name}.npy", array)


def _look_up(bucket: Bucket, high: Numbers, low: Numbers) -> Numbers:
    """Return the ordinals, int64 (M,), of hashes, whose halves are int64 (M,)."""
    found = np.full(len(high), UNKNOWN, np.int64)
    open_rows = np.arange(len(high))
    at = np.searchsorted(bucket.high, high)
    while len(open_rows):
        # Hashes of another second half may come first.
        inside = at < len(bucket.high)
        open_rows, at = open_rows[inside], at[inside]
        same = bucket.high[at] == high[open_rows]
        open_rows, at = open_rows[same], at[same]
        hit = bucket.low[at] == low[open_rows]
        found[open_rows[hit]] = bucket.ordinals[at[hit]]
        open_rows, at = open_rows[~hit], at[~hit] + 1
    return found
