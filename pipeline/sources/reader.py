"""Read the rows of a unit and yield them slice by slice.

A row that cannot be read is a row with a reason. Trouble with the store is raised, because
reading again may cure it. An input that is no longer the one that was planned is raised too:
a new run plans it anew, so that old and new bytes are never mixed under one fingerprint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Set

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.counters import Counters, Measurement, measure
from pipeline.core.schema import ERROR
from pipeline.core.slices import SliceKey
from pipeline.sources.extents import SliceCut
from pipeline.sources.rows import STAGE, Reader, changed
from pipeline.sources.units import Unit


def read_slices(
    reader: Reader, unit: Unit, wanted_starts: Set[int]
) -> Iterator[tuple[SliceKey, Counters, pa.Table]]:
    """Yield the wanted slices of a unit, in order.

    Args:
        reader: How to read.
        unit: What to read.
        wanted_starts: First rows of the slices that have no staged part yet; of a unit whose rows
            are known only when it has been read, `unit.cut.done` says it the other way round.

    Yields:
        The slice's key, its counters (stage `read`) and its rows in `source_schema`.

    Raises:
        InfraError: The store failed, or an input changed since it was planned.
    """
    if unit.cut is not None:
        yield from _read_and_cut(reader, unit, unit.cut)
        return
    stream = reader.format.open(reader, unit.extents)
    with contextlib.closing(stream):
        for key in unit.slices():
            if key.start not in wanted_starts:
                stream.skip(key.num_rows)
                continue
            counters: Counters = {}
            with measure(counters, STAGE) as done:
                table = stream.take(key.num_rows)
                _count(reader, table, done)
            counters |= stream.counted
            yield key, counters, table
            del table  # not kept while the next one is read


def _read_and_cut(
    reader: Reader, unit: Unit, cut: SliceCut
) -> Iterator[tuple[SliceKey, Counters, pa.Table]]:
    """Yield the slices of a unit that are not done, finding out on the way which there are."""
    done_at = {key.start: key for key in cut.done}
    until = cut.read_until()
    position = 0
    with contextlib.closing(reader.format.open_slices(reader, unit.extents, cut)) as stream:
        while position != until:
            if (passed := done_at.get(position)) is not None:
                stream.skip(passed.num_rows)
                position = passed.end
                continue
            counters: Counters = {}
            with measure(counters, STAGE) as done:
                table = stream.take()
                is_last = stream.is_at_end()
                _count(reader, table, done)
            if table.num_rows == 0 and position:  # a slice before is no last one: more must follow
                raise changed(reader.store, unit.extents[-1])
            key = SliceKey(unit.index, position, position + table.num_rows, is_last)
            yield key, counters, table
            if is_last:
                return
            position = key.end
            del table


def _count(reader: Reader, table: pa.Table, done: Measurement) -> None:
    done.rows_in = table.num_rows
    done.rows_out = table.column(ERROR).null_count
    done.rows_quarantined = done.rows_in - done.rows_out
    done.bytes_in = done.bytes_out = sum(
        _num_bytes(table.column(name)) for name in reader.fields.names
    )


def _num_bytes(column: pa.ChunkedArray) -> int:
    """Return the bytes of a column's values: of texts and images without what marks their ends."""
    if pa.types.is_fixed_size_list(column.type):
        return int(column.nbytes)
    return pc.sum(pc.binary_length(column)).as_py() or 0
