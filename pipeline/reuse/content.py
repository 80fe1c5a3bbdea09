"""Find predictions of a version by the hash of what the model sees of a row, on any node."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.arrays import Numbers, as_array
from pipeline.core.cache.eviction import let_go
from pipeline.core.cache.node_cache import cached_folder
from pipeline.core.row_digests import HASH_BYTES
from pipeline.core.schema import INPUT_HASH
from pipeline.reuse.version_rows import PartReader, Version

UNKNOWN = -1
"""Instead of a place: no row has this hash."""
_FILES = ("high", "low", "ordinals")
Hashes = npt.NDArray[np.uint8]
"""(N, HASH_BYTES)."""


class ContentIndex:
    """The hashes of a version's predictions; only its name travels between processes.

    They are read from its parts when they are first looked for, once per node, and lie in the node
    cache as sorted arrays that processes map into their memory.
    """

    def __init__(self, version: Version, left_out: Numbers) -> None:
        """Name the version; nothing is read yet.

        Args:
            left_out: int64 (M, 2), ascending: first and last + 1 of ordinals that are not found.
        """
        self.version, self._left_out = version, left_out
        self._opened: tuple[Any, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return ContentIndex, (self.version, self._left_out)

    def find(self, hashes: Hashes) -> Numbers:
        """Return the ordinals of rows with these hashes, int64 (N,); UNKNOWN: there is none.

        Of rows with equal hashes any is returned.

        Raises:
            NotReadable: A part is missing, or not as it was written.
            PipelineError: The store failed, or the node cache cannot be used.
        """
        if not self._opened:
            facts = [self.version.token, [part.sha256 for part in self.version.manifest.parts]]
            key = f"hashes-{hashlib.sha256(repr(facts).encode()).hexdigest()}"
            try:
                folder = cached_folder(key, partial(_write_index, self.version))
                self._opened = tuple(np.load(folder / f"{n}.npy", mmap_mode="r") for n in _FILES)
            finally:
                let_go(key)  # what is mapped stays, also of a file that is removed
        ordinals = _look_up(self._opened, *_halves(hashes))
        within = np.searchsorted(self._left_out[:, 0], ordinals, "right") - 1
        ends = np.append(self._left_out[:, 1], 0)  # at -1: before all of them
        ordinals[ordinals < ends[within]] = UNKNOWN
        return ordinals


def _write_index(version: Version, folder: Path) -> None:
    schema = pa.schema([pa.field(INPUT_HASH, pa.binary(HASH_BYTES))])
    reader, hashes, places, first = PartReader(version, schema), [], [], 0
    for rows in reader.row_groups():
        column = as_array(rows.column(INPUT_HASH))
        is_there = np.asarray(column.is_valid())
        data = np.frombuffer(b"".join(column.drop_null().to_pylist()), np.uint8)
        hashes.append(data.reshape(-1, HASH_BYTES))
        places.append(first + np.flatnonzero(is_there))
        first += rows.num_rows
    all_hashes = np.concatenate([np.zeros((0, HASH_BYTES), np.uint8), *hashes])
    high, low = _halves(all_hashes)
    order = np.argsort(high)
    ordinals = reader.ordinals(np.concatenate([np.zeros(0, np.int64), *places]))
    for name, array in zip(_FILES, (high, low, ordinals), strict=True):
        np.save(folder / f"{name}.npy", array[order])


def _halves(hashes: Hashes) -> tuple[Numbers, Numbers]:
    """Return the halves of hashes as two int64 (N,)."""
    words = np.ascontiguousarray(hashes).view(">i8").astype(np.int64)
    return np.ascontiguousarray(words[:, 0]), np.ascontiguousarray(words[:, 1])


def _look_up(index: tuple[Any, ...], high: Numbers, low: Numbers) -> Numbers:
    """Return the ordinals, int64 (M,), of hashes, whose halves are int64 (M,)."""
    highs, lows, ordinals = index
    places = np.full(len(high), UNKNOWN, np.int64)
    open_rows = np.arange(len(high))
    at = np.searchsorted(highs, high)
    while len(open_rows):
        # Hashes of another second half may come first.
        inside = at < len(highs)
        open_rows, at = open_rows[inside], at[inside]
        same = highs[at] == high[open_rows]
        open_rows, at = open_rows[same], at[same]
        hit = lows[at] == low[open_rows]
        places[open_rows[hit]] = ordinals[at[hit]]
        open_rows, at = open_rows[~hit], at[~hit] + 1
    return places
