"""INT96, the timestamp of Spark, Hive and Impala: 64 bits of nanoseconds and 32 of days.

No 64-bit timestamp holds all of them, and Arrow wraps around silently. So each is read in three
units: seconds always fit, and the values in the other two units must be the same moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

UNIT = "us"
"""The unit that such a column is read in: years -290,000 to 294,000."""
_OTHER_UNITS = ("s", "ns")
_NS = pa.timestamp("ns")

Batches = Callable[[str], Iterator[pa.RecordBatch]]
"""unit -> the batches of the shard, of columns with INT96 alone, which is read in that unit."""


def int96_columns(parquet: pq.ParquetFile, columns: Sequence[str]) -> list[str]:
    """Return the columns that are INT96 or contain it."""
    leaves = [parquet.schema.column(index) for index in range(len(parquet.schema))]
    paths = [leaf.path for leaf in leaves if leaf.physical_type == "INT96"]
    return [
        name
        for name in columns
        if any(path == name or path.startswith(f"{name}.") for path in paths)
    ]


@dataclass(frozen=True)
class Moments:
    """Rows of a shard with checked timestamps."""

    rows: pa.RecordBatch
    problems: dict[int, str]
    """Row with a timestamp that the declared type cannot hold -> message."""


class Int96Reader:
    """Checks the timestamps of the batches of a shard, in order."""

    def __init__(self, columns: Sequence[str], as_ns: Sequence[str], batches: Batches) -> None:
        """Take the columns to check.

        Args:
            columns: Columns with INT96.
            as_ns: Those of them that are declared as nanoseconds.
            batches: Reads the same rows again in another unit.
        """
        self._columns, self._as_ns = columns, as_ns
        self._others = [_Rows(batches(unit)) for unit in _OTHER_UNITS]

    def check(self, batch: pa.RecordBatch) -> Moments:
        """Check the next batch."""
        seconds, nanoseconds = (other.take(batch.num_rows) for other in self._others)
        problems: dict[int, str] = {}
        for name in self._columns:
            index = batch.schema.get_field_index(name)
            exact = [batch.column(index), seconds.column(name), nanoseconds.column(name)]
            if name in self._as_ns and pa.types.is_timestamp(batch.schema.field(index).type):
                batch = batch.set_column(index, pa.field(name, _NS), exact[2])
                where = f"{name} is outside of 1677 to 2262, beyond timestamp[ns]"
                found = {row: where for row in np.flatnonzero(~_fits_ns(*exact)).tolist()}
            else:
                found = _bad_rows(name, exact)
            problems = {**found, **problems}
        return Moments(batch, problems)


class _Rows:
    """Takes a given number of rows out of batches of any size."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._rest: pa.Table | None = None

    def take(self, num_rows: int) -> Any:
        pieces = [] if self._rest is None else [self._rest]
        while sum(piece.num_rows for piece in pieces) < num_rows:
            pieces.append(pa.Table.from_batches([next(self._batches)]))
        rows = pa.concat_tables(pieces).combine_chunks()
        self._rest = rows.slice(num_rows)
        taken = rows.slice(0, num_rows).combine_chunks()
        batches = taken.to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=rows.schema)


def _bad_rows(name: str, exact: Sequence[pa.Array]) -> dict[int, str]:
    """Return the rows whose timestamps are not whole microseconds in range, with messages."""
    # `take` leaves nested arrays with the items of these rows only.
    every = pa.array(range(len(exact[0])))
    exact = [array.take(every) if pa.types.is_nested(array.type) else array for array in exact]
    leaves = [[*_leaves(array)] for array in exact]
    if all(_fits_us(*own).all() for own in zip(*leaves, strict=True)):
        return {}
    found = {}
    for row in range(len(exact[0])):
        alone = [[*_leaves(array.take(pa.array([row])))] for array in exact]
        if all(_fits_us(*own).all() for own in zip(*alone, strict=True)):
            continue
        in_reach = all(_in_reach(*own).all() for own in zip(*alone, strict=True))
        found[row] = (
            f"{name} has nanoseconds, which timestamp[us] cannot hold; declare timestamp[ns] in "
            "source.casts"
            if in_reach
            else f"{name} is beyond what timestamp[us] can hold"
        )
    return found


def _leaves(array: pa.Array) -> Iterator[pa.Array]:
    """Yield the timestamps inside a column."""
    kind = array.type
    if pa.types.is_timestamp(kind):
        yield array
    elif pa.types.is_struct(kind):
        for child in array.flatten():
            yield from _leaves(child)
    elif pa.types.is_map(kind):
        yield from _leaves(array.keys)
        yield from _leaves(array.items)
    elif pa.types.is_nested(kind):
        yield from _leaves(array.flatten())


def _whole(array: pa.Array) -> npt.NDArray[np.int64]:
    return np.asarray(array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False))


def _in_reach(us: pa.Array, s: pa.Array, ns: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(_whole(us) // 10**6 == _whole(s), np.bool_)


def _fits_us(us: pa.Array, s: pa.Array, ns: pa.Array) -> npt.NDArray[np.bool_]:
    # If both wrap around, their difference is still right.
    return np.asarray(_in_reach(us, s, ns) & (_whole(us) * 1000 == _whole(ns)), np.bool_)


def _fits_ns(us: pa.Array, s: pa.Array, ns: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(_whole(ns) // 10**9 == _whole(s), np.bool_)
