"""Read the rows of a unit and yield them slice by slice.

A row that cannot be read becomes a row with a reason. Errors of the store are raised, because
reading again may succeed. A changed input is raised too: a new run plans it anew, so that old and
new bytes are never mixed under one fingerprint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Set

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.errors import InfraError
from pipeline.core.figures.counters import READ, Counters, StageCounters, measure
from pipeline.core.registry import SOURCES
from pipeline.core.schema import ERROR
from pipeline.core.slices import SliceKey
from pipeline.core.user_code.own_code import extension_errors
from pipeline.sources.extents import MAX_SLICE_BYTES, Extent
from pipeline.sources.rows import Reader, changed
from pipeline.sources.stream import Stream
from pipeline.sources.units import Unit


def read_slices(
    reader: Reader, unit: Unit, wanted_starts: Set[int]
) -> Iterator[tuple[SliceKey, Counters, pa.Table]]:
    """Yield the wanted slices of a unit, in order; one that is too large in pieces.

    Args:
        wanted_starts: First rows of the slices to read: those without a staged part. Ignored for
            an uncounted unit, whose `cut.done` names the slices that are staged.

    Yields:
        The slice's key, its counters (stage `read`) and its rows in `source_schema`.

    Raises:
        InfraError: The store failed, or an input changed since it was planned.
    """
    with extension_errors(SOURCES, reader.source.format):
        slices = _read_and_cut if unit.cut is not None else _read_counted
        yield from slices(reader, unit, wanted_starts)


def read_extent(reader: Reader, extent: Extent) -> tuple[Counters, pa.Table]:
    """Read the rows of one counted extent, from the first one on, as far as memory allows.

    Returns:
        The counters (stage `read`), and the rows in `source_schema`.

    Raises:
        InfraError: The store failed, or the shard changed since it was planned.
    """
    with (
        extension_errors(SOURCES, reader.source.format),
        contextlib.closing(Stream(reader, [extent])) as stream,
    ):
        counters: Counters = {}
        with measure(counters, READ) as done:
            table = stream.take(extent.num_rows, MAX_SLICE_BYTES)
            _count(reader, table, done)
        return counters, table


def _read_counted(
    reader: Reader, unit: Unit, wanted_starts: Set[int]
) -> Iterator[tuple[SliceKey, Counters, pa.Table]]:
    """Yield the wanted slices of a unit whose rows are counted."""
    with contextlib.closing(Stream(reader, unit.extents)) as stream:
        for key in unit.slices():
            if key.start not in wanted_starts:
                stream.skip(key.num_rows)
                continue
            yield from _read_pieces(reader, stream, key)


def _read_pieces(
    reader: Reader, stream: Stream, key: SliceKey
) -> Iterator[tuple[SliceKey, Counters, pa.Table]]:
    """Yield a slice whole, or, if the stream gives fewer rows at once, piece by piece."""
    position = key.start
    held: pa.Table | None = None
    while position < key.end:
        counters: Counters = {}
        with measure(counters, READ) as done:
            pieces = key.pieces_from(position)
            missing = pieces[0].num_rows - (0 if held is None else held.num_rows)
            if missing:
                taken = stream.take(missing, MAX_SLICE_BYTES)
                if not 0 < taken.num_rows <= missing:
                    raise InfraError(
                        f"slice {key.unit}-{key.start}-{key.end}: {taken.num_rows} rows were read, "
                        f"expected {missing}; nothing was written, run again"
                    )
                held = taken if held is None else pa.concat_tables([held, taken])
                del taken
            assert held is not None, "a slice has rows"
            piece = next(candidate for candidate in pieces if _is_in(candidate, held))
            table = held.slice(0, piece.num_rows)
            held = held.slice(piece.num_rows) if piece.num_rows < held.num_rows else None
            _count(reader, table, done)
        yield piece, counters, table
        position = piece.end
        del table  # not kept while the next one is read


def _is_in(piece: SliceKey, rows: pa.Table) -> bool:
    """Tell whether there are the rows of a piece, and not too many bytes of them."""
    if piece.num_rows > rows.num_rows:
        return False
    return piece.num_rows == 1 or rows.slice(0, piece.num_rows).nbytes <= 2 * MAX_SLICE_BYTES


def _read_and_cut(
    reader: Reader, unit: Unit, wanted_starts: Set[int]
) -> Iterator[tuple[SliceKey, Counters, pa.Table]]:
    """Yield the slices of an uncounted unit that are not staged."""
    cut = unit.cut
    assert cut is not None, "the unit is uncounted"
    done_at = {key.start: key for key in cut.done}
    until = cut.read_until()
    position = 0
    with contextlib.closing(Stream(reader, unit.extents, cut)) as stream:
        while position != until:
            if (passed := done_at.get(position)) is not None:
                stream.skip(passed.num_rows)
                position = passed.end
                continue
            counters: Counters = {}
            with measure(counters, READ) as done:
                table = stream.take(cut.slice_rows, cut.slice_bytes)
                is_last = stream.is_at_end()
                _count(reader, table, done)
            if table.num_rows == 0 and position:  # the slice before was not the last one
                raise changed(reader.store, unit.extents[-1])
            key = SliceKey(unit.index, position, position + table.num_rows, is_last)
            yield key, counters, table
            if is_last:
                return
            position = key.end
            del table


def _count(reader: Reader, table: pa.Table, done: StageCounters) -> None:
    done.rows_in = table.num_rows
    done.rows_out = table.column(ERROR).null_count
    done.rows_quarantined = done.rows_in - done.rows_out
    done.bytes_in = done.bytes_out = sum(
        _num_bytes(table.column(name)) for name in reader.fields.names
    )


def _num_bytes(column: pa.ChunkedArray) -> int:
    """Return the bytes of a column's values, those of texts and images without their offsets."""
    if pa.types.is_fixed_size_list(column.type):
        return int(column.nbytes)
    return pc.sum(pc.binary_length(column)).as_py() or 0
