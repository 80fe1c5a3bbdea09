"""Deduplicate the rows of a slice, and scatter the results of the unique rows to all of them.

Rows are duplicates if the SHA-256 digests of their input, as the source yields it, are equal.
Within a slice the first of them is computed; across slices an index keeps the results of earlier
rows. Each staged part still holds every row of its slice, so a resumed run does not depend on the
index.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.row_digests import row_digests
from pipeline.core.schema import DIGEST, ERROR, ROW_ID, URI
from pipeline.execution.visible_gpus import settle_gpus

INDEX_MAX_BYTES = 512 << 20
_ENTRY_BYTES = 200
"""Bytes per entry beside its columns."""


class Index(Protocol):
    """Results of earlier rows by the digests of their inputs."""

    def lookup(self, digests: Sequence[bytes]) -> tuple[list[int], pa.Table | None]:
        """Look up the results of rows.

        Args:
            digests: SHA-256 digests, 32 bytes each.

        Returns:
            Indices into `digests` of the known ones, ascending, and a table with one row of
            results per index, in that order; None if no digest is known.
        """
        ...

    def add(self, digests: Sequence[bytes], results: pa.Table) -> None:
        """Keep the results of rows: row i of `results` is that of digests[i]."""
        ...


class ResultIndex:
    """An index in memory; it drops its oldest results when it is full."""

    def __init__(self, max_bytes: int = INDEX_MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._tables: dict[int, pa.Table] = {}
        self._places: dict[bytes, tuple[int, int]] = {}
        self._order: deque[tuple[int, list[bytes], int]] = deque()
        self._next = 0

    def lookup(self, digests: Sequence[bytes]) -> tuple[list[int], pa.Table | None]:
        """Look up the results of rows, as `Index.lookup`."""
        known = [i for i, digest in enumerate(digests) if digest in self._places]
        if not known:
            return [], None
        places = [self._places[digests[i]] for i in known]
        return known, pa.concat_tables([self._tables[t].slice(row, 1) for t, row in places])

    def add(self, digests: Sequence[bytes], results: pa.Table) -> None:
        """Keep the results of rows, as `Index.add`."""
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


class RemoteIndex:
    """The index of a run, in a Ray actor that all predictors share."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def lookup(self, digests: Sequence[bytes]) -> tuple[list[int], pa.Table | None]:
        """Look up the results of rows, as `Index.lookup`."""
        import ray

        found: tuple[list[int], pa.Table | None] = ray.get(self._actor.lookup.remote(digests))
        return found

    def add(self, digests: Sequence[bytes], results: pa.Table) -> None:
        """Keep the results of rows, as `Index.add`; does not wait for the actor."""
        self._actor.add.remote(digests, results)


class HiddenIndex(ResultIndex):
    """The index of the actor's process, which sees no GPU."""

    def __init__(self) -> None:
        settle_gpus(0.0)
        super().__init__()


def start_index() -> Any:
    """Start the actor that holds a `ResultIndex`; it ends with the run."""
    import ray

    from pipeline.execution.ray_options import MAX_ACTOR_RESTARTS, MAX_TASK_RETRIES

    options = {"max_restarts": MAX_ACTOR_RESTARTS, "max_task_retries": MAX_TASK_RETRIES}
    return ray.remote(num_cpus=0, **options)(HiddenIndex).remote()


def with_digests(rows: pa.Table, fields: pa.Schema) -> pa.Table:
    """Add the column DIGEST: SHA-256 of each row's input, null for a row without one.

    Args:
        rows: The slice as the source yields it.
        fields: The columns of the source that hold the input.
    """
    digests = pa.array(row_digests(rows, fields.names), pa.binary(32))
    return rows.append_column(DIGEST, digests)


@dataclass(frozen=True)
class Deduplicated:
    """A slice of N rows, of which M have to be computed."""

    rows: pa.Table
    """All N rows."""
    compute: npt.NDArray[np.int64]
    """(M,): the rows to compute, ascending."""
    result_of: npt.NDArray[np.int64]
    """(N,): the result of each row, as its place among the M computed ones, or, from M on, in
    `known`."""
    known: pa.Table | None
    """Results that the index has; None if it has none of this slice."""

    @property
    def num_copied(self) -> int:
        """Rows that get the result of another row."""
        return len(self.result_of) - len(self.compute)

    def to_compute(self) -> pa.Table:
        """Return the M rows to compute."""
        return self.rows.take(pa.array(self.compute)) if self.num_copied else self.rows

    def scatter(self, computed: pa.Table) -> pa.Table:
        """Return the staged rows of the whole slice.

        Args:
            computed: The staged rows of `to_compute`, in its order.
        """
        if not self.num_copied:
            return computed
        results = computed
        if self.known is not None:
            results = pa.concat_tables([computed.select(self.known.column_names), self.known])
        found = results.take(pa.array(self.result_of))
        results_of = set(_result_names(computed, self.rows))
        columns = {
            name: (found if name in results_of else self.rows).column(name)
            for name in computed.column_names
        }
        return pa.table(columns, schema=computed.schema)


def deduplicate(rows: pa.Table, index: Index) -> Deduplicated:
    """Find the rows of a slice that have to be computed.

    Failed rows and rows without an input count as unique: their results are never shared.

    Args:
        rows: The slice, with the column DIGEST.
        index: Has the results of earlier slices.
    """
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
    result_of = [
        known_at[first] + len(compute) if first in known_at else computed_at[first]
        for first in stands_for
    ]
    return Deduplicated(rows, np.array(compute, np.int64), np.array(result_of, np.int64), known)


def remember(unique: Deduplicated, computed: pa.Table, index: Index) -> None:
    """Add the predictions of a slice to the index, without those that failed.

    Args:
        unique: The slice.
        computed: The staged rows of `unique.to_compute`, in its order.
        index: Gets them.
    """
    digests = unique.rows.column(DIGEST).take(pa.array(unique.compute))
    good = pc.and_(digests.is_valid(), computed.column(ERROR).is_null())
    results = computed.select(_result_names(computed, unique.rows)).filter(good)
    index.add(digests.filter(good).to_pylist(), results.combine_chunks())


def _result_names(computed: pa.Table, rows: pa.Table) -> list[str]:
    """Name the columns that depend on the input alone: those of the task, and of failures."""
    start = max(computed.column_names.index(name) for name in (ROW_ID, URI)) + 1
    names = computed.column_names[start:]
    failures = computed.column_names[computed.column_names.index(ERROR) :]
    return [name for name in names if name in failures or name not in rows.column_names]
