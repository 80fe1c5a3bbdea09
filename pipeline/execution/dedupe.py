"""Deduplicate rows across slices: an index keeps the results of rows by the hash of their input.

Within a slice the reader has set copies aside (sources/lookup). Each staged part still holds every
row of its slice, so a resumed run does not depend on the index.
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

from pipeline.core.rows.aside import of_rows_going_on
from pipeline.core.schema import ERROR, INPUT_HASH, ROW_ID, URI
from pipeline.execution.visible_gpus import settle_gpus

INDEX_MAX_BYTES = 512 << 20
_ENTRY_BYTES = 200
"""Bytes per entry beside its columns."""


class Index(Protocol):
    """Results of earlier rows by the digests of their inputs."""

    def lookup(self, digests: Sequence[bytes]) -> tuple[list[int], pa.Table | None]:
        """Look up the results of rows.

        Args:
            digests: Hashes of their inputs (`core.rows.row_digests.input_hashes`).

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


@dataclass(frozen=True)
class Found:
    """M rows, of which the index has the results of some."""

    rows: pa.Table
    hashes: pa.ChunkedArray
    """(M,)."""
    is_known: npt.NDArray[np.bool_]
    """(M,)."""
    known: pa.Table | None
    """The results of those that are, in order; None if there are none."""

    @property
    def num_known(self) -> int:
        """Rows that get the result of an earlier one."""
        return int(self.is_known.sum())

    def to_compute(self) -> pa.Table:
        """Return the other rows."""
        return self.rows if self.known is None else self.rows.filter(pa.array(~self.is_known))

    def scatter(self, computed: pa.Table) -> pa.Table:
        """Return the staged rows of all M.

        Args:
            computed: The staged rows of `to_compute`, in its order.
        """
        if self.known is None:
            return computed
        names = self.known.column_names
        order = np.argsort(np.argsort(self.is_known, kind="stable"))
        results = pa.concat_tables([computed.select(names), self.known]).take(pa.array(order))
        columns = {
            name: (results if name in names else self.rows).column(name)
            for name in computed.column_names
        }
        return pa.table(columns, schema=computed.schema)


def look_up(rows: pa.Table, aside: pa.Table, index: Index) -> Found:
    """Look up the results of a slice's rows in the index; failed rows are never known.

    Args:
        rows: The M rows of the slice that were not set aside.
        aside: What was set aside of it, with the hashes of all rows.
        index: Has the results of earlier slices.
    """
    hashes = of_rows_going_on(aside, INPUT_HASH)
    asked = np.flatnonzero(hashes.is_valid().to_numpy())
    hits, known = index.lookup(hashes.drop_null().to_pylist())
    is_known = np.zeros(rows.num_rows, bool)
    is_known[asked[hits]] = True
    return Found(rows, hashes, is_known, known)


def remember(found: Found, computed: pa.Table, index: Index) -> None:
    """Add the predictions of a slice to the index, without those that failed.

    Args:
        found: The slice.
        computed: The staged rows of `found.to_compute`, in its order.
        index: Gets them.
    """
    hashes = found.hashes.filter(pa.array(~found.is_known))
    good = pc.and_(hashes.is_valid(), computed.column(ERROR).is_null())
    results = computed.select(_result_names(computed, found.rows)).filter(good)
    index.add(hashes.filter(good).to_pylist(), results.combine_chunks())


def _result_names(computed: pa.Table, rows: pa.Table) -> list[str]:
    """Name the columns that depend on the input alone: those of the task, and of failures."""
    start = max(computed.column_names.index(name) for name in (ROW_ID, URI)) + 1
    names = computed.column_names[start:]
    failures = computed.column_names[computed.column_names.index(ERROR) :]
    return [name for name in names if name in failures or name not in rows.column_names]
