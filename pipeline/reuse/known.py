"""Which rows of a plan are known; plain enough for Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.arrays import Numbers
from pipeline.core.slices import SliceKey
from pipeline.reuse.content import UNKNOWN, ContentIndex
from pipeline.reuse.version_rows import Version
from pipeline.sources.units import Unit

_NO_RUNS = np.zeros((0, 5), np.int64)
_NO_ROWS = np.zeros((0, 2), np.int64)


@dataclass(frozen=True)
class Known:
    """Which rows are known, and how they are read; plain enough for Ray."""

    versions: tuple[Version, ...]
    """The newest first."""
    schema: pa.Schema
    """Of staged rows."""
    source_columns: tuple[str, ...]
    """Those of them that rows have from the source."""
    inputs: tuple[str, ...]
    """The columns of the source that hold the input."""
    runs: Numbers = field(default_factory=lambda: _NO_RUNS)
    """As `known_runs`."""
    checked: Numbers = field(default_factory=lambda: _NO_ROWS)
    """int64 (S, 2): unit and row of known rows that are computed all the same; ascending."""
    counts: Mapping[int, int] = field(default_factory=dict)
    """As `known_counts`."""
    broken_off: Mapping[int, int] = field(default_factory=dict)
    """The same of units that broke off: only what is not reached any more is taken over."""
    failures: pa.Table | None = None
    """Rows that failed, and stay so: as staged, with `unit`, which ascends, and `row` in it."""
    usual_rows: int = 1
    """The most rows that a slice of computed ones has."""
    most_rows: int = 1
    """The most that one of known ones has."""
    hashes: bool = False
    """Rows get the hash of their input."""
    indices: tuple[ContentIndex, ...] = ()
    """What looks rows up by it."""
    checked_probability: float = 0.0
    """Of a row that is found by it: that it is computed all the same."""
    seed: str = "0"
    """As `are_drawn` takes it."""

    def of_unit(self, unit: int) -> Known:
        """Return what is known of one unit."""
        runs, checked = _of_unit(self.runs, unit), _of_unit(self.checked, unit)
        counts = {unit: self.counts[unit]} if unit in self.counts else {}
        failures = self._failures_of([unit])
        return replace(self, runs=runs, checked=checked, counts=counts, failures=failures)

    def of_units(self, units: Iterable[Unit]) -> Known:
        """Return what is known of some units, without what looks rows up."""
        numbers = np.array([unit.index for unit in units], np.int64)
        runs, checked = (rows[np.isin(rows[:, 0], numbers)] for rows in (self.runs, self.checked))
        failures = self._failures_of(numbers.tolist())
        return replace(self, runs=runs, checked=checked, failures=failures, indices=())

    def _failures_of(self, units: Sequence[int]) -> pa.Table | None:
        """Return a copy of the rows of some units, so that no others travel with them."""
        if self.failures is None:
            return None
        of_rows = np.asarray(self.failures.column("unit"))
        rows = [np.arange(*np.searchsorted(of_rows, (unit, unit + 1))) for unit in units]
        failures = self.failures.take(pa.array(np.concatenate(rows)))
        return failures if failures.num_rows else None

    def places(self, key: SliceKey) -> tuple[Numbers, Numbers]:
        """Return version and ordinal of the rows of a slice, (N,) both; UNKNOWN where none is."""
        version, ordinal = (np.full(key.num_rows, UNKNOWN, np.int64) for _ in range(2))
        for _, row, count, source, first in _of_unit(self.runs, key.unit).tolist():
            low, high = max(row, key.start), min(row + count, key.end)
            if low < high:
                version[low - key.start : high - key.start] = source
                ordinal[low - key.start : high - key.start] = first + np.arange(low, high) - row
        return version, ordinal

    def are_checked(self, key: SliceKey) -> npt.NDArray[np.bool_]:
        """Return which rows of a slice are computed although they are known, bool (N,)."""
        rows = _of_unit(self.checked, key.unit)[:, 1] - key.start
        mask = np.zeros(key.num_rows, bool)
        mask[rows[(rows >= 0) & (rows < key.num_rows)]] = True
        return mask

    def failed(self, key: SliceKey) -> tuple[Numbers, pa.Table | None]:
        """Return the rows of a slice that stay failed: where they are in it, and as staged."""
        if self.failures is None:
            return np.zeros(0, np.int64), None
        at = np.asarray(self.failures.column("row")) - key.start
        is_here = (np.asarray(self.failures.column("unit")) == key.unit) & (at >= 0)
        is_here &= at < key.num_rows
        return at[is_here], self.failures.filter(pa.array(is_here)).select(self.schema.names)

    def num_computed(self, key: SliceKey) -> int:
        """Return how many rows of a slice are computed, if what is known can be read."""
        version, _ = self.places(key)
        version[self.failed(key)[0]] = 0
        return int(((version == UNKNOWN) | self.are_checked(key)).sum())


def _of_unit(rows: Numbers, unit: int) -> Numbers:
    """Return the rows of a table whose first column, which ascends, is a unit."""
    return rows[slice(*np.searchsorted(rows[:, 0], [unit, unit + 1]))]
