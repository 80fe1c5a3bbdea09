"""Read the rows of a unit and yield them slice by slice.

A row that cannot be read becomes a row with a reason. Errors of the store are raised, because
reading again may succeed. So are changed inputs: a new run plans them anew, so that old and new
bytes are never mixed under one fingerprint.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence, Set

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.errors import InfraError
from pipeline.core.figures import READ, Counters, StageCounters, measure
from pipeline.core.registry import SOURCES
from pipeline.core.schema import ERROR
from pipeline.core.slices import SliceKey
from pipeline.core.user_code import extension_errors
from pipeline.sources.rows import Reader
from pipeline.sources.source_format import Piece, format_of
from pipeline.sources.units import (
    MAX_SLICE_BYTES,
    Extent,
    UncountedPlan,
    Unit,
    changed,
    require_as_planned,
)

_FILES_AT_ONCE = 64


def read_slices(
    reader: Reader, unit: Unit, wanted_starts: Set[int]
) -> Iterator[tuple[SliceKey, Counters, pa.Table]]:
    """Yield the wanted slices of a unit in order; a slice that is too large comes in pieces.

    Args:
        wanted_starts: First rows of the slices to read, which have no staged part. Ignored for an
            uncounted unit, whose `cut.done` names the staged slices.

    Yields:
        The slice's key, its counters (stage `read`) and its rows in `source_schema`.

    Raises:
        InfraError: The store failed, or an input changed since it was planned.
    """
    with extension_errors(SOURCES, reader.source.format):
        slices = _read_and_cut if unit.cut is not None else _read_counted
        yield from slices(reader, unit, wanted_starts)


def read_extent(reader: Reader, extent: Extent) -> tuple[Counters, pa.Table]:
    """Read the rows of one counted extent from its first row on, as far as memory allows.

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
    """Yield a slice whole, or piece by piece if the stream gives fewer rows at once."""
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
    """Tell whether the rows of a piece are there, and are not too many bytes."""
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
    """Return the bytes of a column's values; of texts and images without their offsets."""
    if pa.types.is_fixed_size_list(column.type):
        return int(column.nbytes)
    return pc.sum(pc.binary_length(column)).as_py() or 0


class Stream:
    """The rows of extents in order, whatever the format; some of them are read ahead."""

    def __init__(
        self, reader: Reader, extents: Sequence[Extent], cut: UncountedPlan | None = None
    ) -> None:
        """Open nothing yet.

        Args:
            cut: The rows to read, if only reading counts them.
        """
        self._reader, self._cut = reader, cut
        self._form = format_of(reader.source)
        self._last = extents[-1]
        self._left = deque(extents)
        """Extents that are still to be opened."""
        self._open: Generator[Piece, None, None] | None = None
        self._ahead: Piece | None = None
        self._num_read = self._num_taken = 0
        self._unchecked: list[Extent] = []
        """Extents that are open, or were opened since rows were last taken."""

    def take(self, max_rows: int, max_bytes: int) -> pa.Table:
        """Return the next rows, at least one even if it is too large; none only at the end.

        Raises:
            InfraError: The store failed, or a shard changed since it was planned.
        """
        if self._cut is not None and self._cut.max_rows is not None:
            max_rows = min(max_rows, self._cut.max_rows - self._num_taken)
        taken: list[Piece] = []
        while max_rows and not self.is_at_end(max_rows):
            assert self._ahead is not None, "not at the end"
            is_more = len(self._ahead) > max_rows
            sizes = (self._ahead.take(slice(max_rows)) if is_more else self._ahead).sizes
            num_rows = int(np.searchsorted(np.cumsum(sizes), max_bytes, "right"))
            num_rows = max(num_rows, 0 if taken else 1)  # one that is too large by itself
            if not num_rows:
                break
            taken.append(self._advance(num_rows))
            max_rows -= len(taken[-1])
            max_bytes -= int(sizes[:num_rows].sum())
        for extent in self._unchecked:
            require_as_planned(self._reader.store, extent)
        del self._unchecked[:-1]
        tables = [piece.to_table() for piece in taken]
        return pa.concat_tables(tables or [self._reader.schema.empty_table()])

    def skip(self, num_rows: int) -> None:
        """Skip the next rows and read as little as possible.

        Raises:
            InfraError: Fewer rows are left: a shard changed since they were staged.
        """
        while num_rows:
            if not self._has_ahead() and self._left and self._left[0].num_rows:
                extent = self._left.popleft()
                if num_rows < extent.num_rows:
                    self._left.appendleft(extent.piece(num_rows, extent.num_rows - num_rows))
                num_rows -= min(num_rows, extent.num_rows)
            elif self.is_at_end():
                raise changed(self._reader.store, self._last)
            else:
                num_rows -= len(self._advance(num_rows))

    def is_at_end(self, max_rows: int = 1) -> bool:
        """Tell whether no rows are left; if some are, read ahead, at most `max_rows` files."""
        if self._cut is not None and self._num_taken == self._cut.max_rows:
            return True
        while not self._has_ahead():
            if not self._left:
                return True
            is_file = self._form.counts_rows == "listing"
            at_once = min(max_rows, _FILES_AT_ONCE, len(self._left)) if is_file else 1
            self._open = self._read([self._left.popleft() for _ in range(at_once)])
        return False

    def close(self) -> None:
        """Close the open shard, which a reference cycle would otherwise keep open."""
        if self._open is not None:
            self._open.close()
        self._open = self._ahead = None

    def _has_ahead(self) -> bool:
        """Read on in the open extent if nothing is read ahead; tell whether rows are there."""
        while not self._ahead and self._open is not None:
            self._ahead = next(self._open, None)
            if self._ahead is None:
                self._open = None
        return bool(self._ahead)

    def _advance(self, num_rows: int) -> Piece:
        """Take at most `num_rows` of the rows that are read ahead."""
        piece = self._ahead
        assert piece is not None, "not at the end"
        self._ahead = None
        if num_rows < len(piece):
            piece, self._ahead = piece.take(slice(num_rows)), piece.take(slice(num_rows, None))
        self._num_taken += len(piece)
        return piece

    def _read(self, extents: Sequence[Extent]) -> Generator[Piece, None, None]:
        cut = self._cut
        if self._form.counts_rows == "reading":  # other formats look themselves
            require_as_planned(self._reader.store, extents[0])
            if not self._reader.store.is_object_store:  # an object cannot change while it is open
                self._unchecked += extents
        if cut is None:
            yield from self._form.read(self._reader, extents, lambda row: True)
            return
        before = self._num_read
        for piece in self._form.read(self._reader, extents, lambda row: cut.needs(before + row)):
            if cut.rows.is_past(self._num_read):
                self._left.clear()
                return
            rows = range(self._num_read, self._num_read + len(piece))
            self._num_read = rows.stop
            # A row in place of the unreadable rest of a shard is always yielded.
            if cut.rows.only is not None and not piece.is_rest:
                chosen = [i for i, row in enumerate(rows) if cut.rows.number(row) is not None]
                piece = piece.take(np.array(chosen, np.int64))
            yield piece
