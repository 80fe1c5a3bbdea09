"""Look rows up by their content while they are read: which of them need no model.

Rows that an earlier version has a prediction of, and copies of a row of the same slice if the job
merges them, are set aside (`core/rows/aside.py`). If a look-up fails, its rows are computed, and
counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.arrays import Numbers
from pipeline.core.failures import failure_columns
from pipeline.core.figures.counters import Counters, measure
from pipeline.core.figures.slice_figures import LookedUp, SliceFigures
from pipeline.core.printable import clean_message
from pipeline.core.rows.aside import NO_RESULT, set_aside
from pipeline.core.rows.row_digests import HASH_BYTES, input_hashes
from pipeline.core.schema import CARRIED_ROW, CARRIED_SOURCE, INPUT_HASH
from pipeline.core.slices import SliceKey, pack, unpack
from pipeline.sources.columns.base import STAGE

Hashes = npt.NDArray[np.uint8]
"""(N, HASH_BYTES)."""
_UNKNOWN = -1
_FAILED = "predictions of an earlier version could not be looked up, so rows were computed: {}"
_WORD_BYTES = 8


class Index(Protocol):
    """The row keys of an earlier version; can be pickled."""

    def find(self, hashes: Hashes) -> Numbers:
        """Return the number of each row's prediction in that version, (N,) int64; -1: unknown."""
        ...


@dataclass(frozen=True)
class LookUp:
    """What is done with the rows of each slice when they have been read; plain enough for Ray."""

    names: tuple[str, ...]
    """The columns of the source that hold the input."""
    indices: tuple[tuple[int, Index], ...] = ()
    """Earlier versions, the newest first, each with its number among the sources of the plan."""
    checked_probability: float = 0.0
    """Of each known row: that it is computed all the same, to be compared."""
    seed: str = "0"
    """As `core.rows.drawn_rows` takes it."""
    computed: Numbers = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    """int64 (K, 2): unit and row of rows that are not looked up, ascending: the plan has chosen
    them to be compared."""

    def of_unit(self, unit: int) -> LookUp:
        """Return what is done with the rows of one unit."""
        low, high = np.searchsorted(self.computed[:, 0], [unit, unit + 1])
        return replace(self, computed=self.computed[low:high])

    def slices(self, packed: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield packed slices without the rows that are set aside, and with these beside them.

        A version whose look-up fails is not asked again here: each try may take as long as a store
        that cannot be reached.
        """
        broken: set[int] = set()
        for block in packed:
            for key, counters, rows, _ in unpack(block):
                with measure(counters, STAGE):
                    found, aside = self._looked_up(key, rows, counters, broken)
                yield pack(key, counters, found, aside)

    def _looked_up(
        self, key: SliceKey, rows: pa.Table, counters: Counters, broken: set[int]
    ) -> tuple[pa.Table, pa.Table]:
        started = perf_counter()
        hashes = input_hashes(rows, [*self.names])
        facts: dict[str, pa.Array] = {INPUT_HASH: hashes}
        result_of = np.arange(rows.num_rows)
        if self.indices:
            asked = np.setdiff1d(np.flatnonzero(np.asarray(hashes.is_valid())), self._left_out(key))
            keys = np.frombuffer(b"".join(hashes.take(pa.array(asked)).to_pylist()), np.uint8)
            keys = keys.reshape(-1, HASH_BYTES)
            source, place, num_failed = self._find(keys, counters, broken)
            is_known = source != _UNKNOWN
            for name, values, kind in (
                (CARRIED_SOURCE, source, pa.int8()),
                (CARRIED_ROW, place, pa.int64()),
            ):
                of_all = np.full(rows.num_rows, _UNKNOWN, np.int64)
                of_all[asked] = values
                facts[name] = pa.array(of_all, kind, mask=of_all == _UNKNOWN)
            are_checked = are_drawn(keys, self.checked_probability, self.seed)
            result_of[asked[is_known & ~are_checked]] = NO_RESULT
            num_known = int(is_known.sum())
            figure = LookedUp(len(asked), num_known, num_failed, perf_counter() - started)
            SliceFigures(looked_up=figure).add_to(counters)
        apart = {*self.names, *failure_columns([])}
        staged = [name for name in rows.column_names if name not in apart]
        return set_aside(rows, result_of, staged, facts)

    def _find(
        self, keys: Hashes, counters: Counters, broken: set[int]
    ) -> tuple[Numbers, Numbers, int]:
        """Return where rows are known, source and number, (K,) each, and how many are not certain.

        A row is not certain if it is found nowhere, and a look-up failed.
        """
        source = np.full(len(keys), _UNKNOWN, np.int64)
        place = np.full(len(keys), _UNKNOWN, np.int64)
        for number, index in self.indices:
            left = np.flatnonzero(source == _UNKNOWN)
            if number in broken or not len(left):
                continue
            try:
                found = index.find(keys[left])
            except Exception as error:  # noqa: BLE001  # whatever it is, the rows are computed
                broken.add(number)
                advice = {_FAILED.format(clean_message(str(error) or repr(error), 200)): 0}
                SliceFigures(advice=advice).add_to(counters)
                continue
            is_found = found != _UNKNOWN
            source[left[is_found]] = number
            place[left[is_found]] = found[is_found]
        return source, place, int((source == _UNKNOWN).sum()) if broken else 0

    def _left_out(self, key: SliceKey) -> Numbers:
        """Return which rows of a slice are not looked up, (L,)."""
        rows: Numbers = self.computed[self.computed[:, 0] == key.unit, 1] - key.start
        return rows[(rows >= 0) & (rows < key.num_rows)]


def are_drawn(
    hashes: npt.NDArray[np.uint8], probability: float, seed: str
) -> npt.NDArray[np.bool_]:
    """Draw rows; of equal rows all or none, and for another seed others.

    Args:
        hashes: uint8 (N, 16).
        probability: Of each row, from 0 to 1.
        seed: 16 hexadecimal digits or more: the fingerprint of the whole plan, so that each run of
            it draws the same rows, and the next partition others.

    Returns:
        bool (N,).
    """
    if probability >= 1.0:
        return np.ones(len(hashes), bool)
    words = np.ascontiguousarray(hashes[:, -_WORD_BYTES:]).view("<u8").reshape(-1)
    mixed = (words ^ np.uint64(int(seed[:16], 16))) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return (mixed ^ (mixed >> np.uint64(32))) < np.uint64(int(probability * 2**64))
