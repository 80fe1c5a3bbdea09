"""Compute rows of identical bytes once: take duplicates out of a slice, and put their results in.

Rows are the same when the SHA-256 of their encoded images is. Within a slice the first one stands
for the others; across slices an index keeps the results of what was predicted before. Each staged
part still holds every row of its slice, so nothing depends on the index when a run is resumed.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.schema import DIGEST, ERROR, IMAGE, ROW_ID, URI

INDEX_MAX_BYTES = 512 << 20
_ENTRY_BYTES = 200
"""What an entry takes beside its columns."""


class Index(Protocol):
    """What knows the results of earlier rows."""

    def lookup(self, digests: Sequence[bytes]) -> tuple[list[int], pa.Table | None]:
        """Return which of the digests are known, and the results of those, in that order."""
        ...

    def add(self, digests: Sequence[bytes], results: pa.Table) -> None:
        """Keep the results of rows, one a digest."""
        ...


class ResultIndex:
    """An index in memory; the oldest results go when it is full."""

    def __init__(self, max_bytes: int = INDEX_MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._tables: dict[int, pa.Table] = {}
        self._places: dict[bytes, tuple[int, int]] = {}
        self._order: deque[tuple[int, list[bytes], int]] = deque()
        self._next = 0

    def lookup(self, digests: Sequence[bytes]) -> tuple[list[int], pa.Table | None]:
        """Return which of the digests are known, and the results of those, in that order."""
        known = [i for i, digest in enumerate(digests) if digest in self._places]
        if not known:
            return [], None
        places = [self._places[digests[i]] for i in known]
        return known, pa.concat_tables([self._tables[t].slice(row, 1) for t, row in places])

    def add(self, digests: Sequence[bytes], results: pa.Table) -> None:
        """Keep the results of rows, one a digest."""
        new = [digest for digest in digests if digest not in self._places]
        if not new:
            return
        number, self._next = self._next, self._next + 1
        for row, digest in enumerate(digests):
            self._places.setdefault(digest, (number, row))
        num_bytes = results.nbytes + _ENTRY_BYTES * len(new)
        self._tables[number] = results
        self._order.append((number, new, num_bytes))
        self._num_bytes += num_bytes
        while self._num_bytes > self._max_bytes:
            oldest, gone, freed = self._order.popleft()
            self._num_bytes -= freed
            del self._tables[oldest]
            for digest in gone:
                del self._places[digest]


def with_digests(rows: pa.Table) -> pa.Table:
    """Add the digest of each encoded image, null where there is none."""
    digests = [
        hashlib.sha256(image.as_buffer()).digest() if image.is_valid else None
        for image in rows.column(IMAGE)
    ]
    return rows.append_column(DIGEST, pa.array(digests, pa.binary(32)))


@dataclass(frozen=True)
class Slimmed:
    """A slice without what is known or comes twice."""

    rows: pa.Table
    """All rows."""
    compute: npt.NDArray[np.int64]
    """Which rows have to be computed."""
    place: npt.NDArray[np.int64]
    """(N,) where the result of each row is: in what was computed, or behind that in `known`."""
    known: pa.Table | None

    @property
    def num_copied(self) -> int:
        """Rows that get the result of another one."""
        return len(self.place) - len(self.compute)

    def to_compute(self) -> pa.Table:
        """Return the rows to compute."""
        return self.rows.take(pa.array(self.compute)) if self.num_copied else self.rows

    def fill(self, computed: pa.Table) -> pa.Table:
        """Return the staged rows of the whole slice, given those of `to_compute`."""
        if not self.num_copied:
            return computed
        results = computed
        if self.known is not None:
            results = pa.concat_tables([computed.select(self.known.column_names), self.known])
        found = results.take(pa.array(self.place))
        results_of = set(_result_names(computed, self.rows))
        columns = {
            name: (found if name in results_of else self.rows).column(name)
            for name in computed.column_names
        }
        return pa.table(columns, schema=computed.schema)


def slim(rows: pa.Table, index: Index) -> Slimmed:
    """Find what has to be computed of a slice with digests."""
    digests = rows.column(DIGEST).to_pylist()
    failed = rows.column(ERROR).is_valid().to_pylist()
    seen: dict[bytes, int] = {}
    stands_for = []
    for row, (digest, has_failed) in enumerate(zip(digests, failed, strict=True)):
        is_alone = digest is None or has_failed
        stands_for.append(row if is_alone else seen.setdefault(digest, row))
    asked = list(seen.items())
    hits, known = index.lookup([digest for digest, _ in asked])
    known_at = {asked[hit][1]: position for position, hit in enumerate(hits)}
    compute = [row for row, first in enumerate(stands_for) if row == first and row not in known_at]
    computed_at = {row: position for position, row in enumerate(compute)}
    place = [
        known_at[first] + len(compute) if first in known_at else computed_at[first]
        for first in stands_for
    ]
    return Slimmed(rows, np.array(compute, np.int64), np.array(place, np.int64), known)


def remember(slimmed: Slimmed, computed: pa.Table, index: Index) -> None:
    """Give the index what was predicted of a slice."""
    digests = slimmed.rows.column(DIGEST).take(pa.array(slimmed.compute))
    good = pc.and_(digests.is_valid(), computed.column(ERROR).is_null())
    results = computed.select(_result_names(computed, slimmed.rows)).filter(good)
    index.add(digests.filter(good).to_pylist(), results.combine_chunks())


def _result_names(computed: pa.Table, rows: pa.Table) -> list[str]:
    """Name the columns that depend on the image alone: those of the task, and of failures."""
    start = max(computed.column_names.index(name) for name in (ROW_ID, URI)) + 1
    names = computed.column_names[start:]
    failures = computed.column_names[computed.column_names.index(ERROR) :]
    return [name for name in names if name in failures or name not in rows.column_names]
