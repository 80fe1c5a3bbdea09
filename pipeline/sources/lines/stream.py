"""Read shards of lines, one after the other, and cut them into slices on the way.

A format says what the lines of a shard are and what becomes of those that are taken.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from typing import BinaryIO, Generic, Protocol, Self, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.core.arrays import Numbers
from pipeline.core.failures import Failure, Reason
from pipeline.job.source import Source
from pipeline.sources.columns.base import STAGE, Failures
from pipeline.sources.extents import Extent, UncountedPlan
from pipeline.sources.input_columns import columns_of
from pipeline.sources.rows import Reader, changed, require_unchanged
from pipeline.sources.source_format import failed_shard
from pipeline.sources.table_rows import to_rows
from pipeline.sources.whole_file import open_sequential

_MIB = 2**20
_ROOM_BYTES = 8 * _MIB
"""For all of a line that is not its text or image."""


class Lines(Protocol):
    """Some neighbouring lines of a shard, each a row, N of them."""

    @property
    def sizes(self) -> Numbers:
        """Return the bytes of each line, int64 (N,)."""
        ...

    @property
    def broken(self) -> str:
        """Return why nothing more can be read, if this is one row that stands for the rest."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: slice | Numbers) -> Self:
        """Return some of the lines, in order."""
        ...


LinesT = TypeVar("LinesT", bound=Lines)


class _Ahead(Generic[LinesT]):
    """Lines that were read and not taken, and the numbers of their rows in the shard."""

    def __init__(self, extent: Extent, lines: LinesT, rows: Sequence[int]) -> None:
        self.extent, self.lines, self.rows = extent, lines, rows

    def cut(self, num_rows: int) -> _Ahead[LinesT]:
        """Take the first lines off."""
        taken = _Ahead(self.extent, self.lines.take(slice(num_rows)), self.rows[:num_rows])
        self.lines, self.rows = self.lines.take(slice(num_rows, None)), self.rows[num_rows:]
        return taken


class LineStream(ABC, Generic[LinesT]):
    """The rows of lines in order; some lines are read ahead."""

    def __init__(
        self, reader: Reader, extents: Sequence[Extent], cut: UncountedPlan, max_line_bytes: int
    ) -> None:
        self._reader = reader
        self._extents = extents
        self._cut = cut
        self._max_line_bytes = max_line_bytes
        self._num_rows = 0
        """Rows that were taken or skipped."""
        self._blocks = self._read()
        self._ahead: _Ahead[LinesT] | None = None

    @abstractmethod
    def read_lines(self, handle: BinaryIO, path: str) -> Iterator[LinesT]:
        """Yield the lines of a shard in order; what comes at once depends on the shard alone."""

    @abstractmethod
    def parse(self, lines: LinesT, path: str) -> tuple[pa.Table, Failures]:
        """Return the columns of lines as `columns_for` names them, and the failures."""

    def take(self) -> pa.Table:
        """Return the next slice; without rows only if none are left."""
        taken: list[_Ahead[LinesT]] = []
        rows_left, bytes_left = self._cut.slice_rows, self._cut.slice_bytes
        while rows_left and not self.is_at_end():
            assert self._ahead is not None, "not at the end"
            sizes = self._held_bytes(self._ahead.lines)
            num_rows = int(np.searchsorted(np.cumsum(sizes), bytes_left, "right"))
            # A line that is too large by itself is a slice of its own.
            num_rows = min(max(num_rows, 0 if taken else 1), self._left(rows_left))
            if not num_rows:
                break
            taken.append(self._advance(num_rows))
            rows_left -= num_rows
            bytes_left -= int(sizes[:num_rows].sum())
        if not self._reader.store.is_object_store:  # an object cannot change under an open file
            for extent in {lines.extent.path: lines.extent for lines in taken}.values():
                self._check_unchanged(extent)
        pieces = [self._to_rows(lines) for lines in taken] or [self._no_rows()]
        return pa.concat_tables(pieces)

    def skip(self, num_rows: int) -> None:
        """Skip rows that are staged.

        Raises:
            InfraError: Fewer rows are left, so a shard changed since they were staged.
        """
        while num_rows:
            if self.is_at_end():
                raise changed(self._reader.store, self._extents[-1])
            num_rows -= len(self._advance(self._left(num_rows)).rows)

    def is_at_end(self) -> bool:
        """Tell whether no rows are left."""
        if self._num_rows == self._cut.max_rows:
            return True
        while self._ahead is None or not self._ahead.rows:
            self._ahead = next(self._blocks, None)
            if self._ahead is None:
                return True
        return False

    def close(self) -> None:
        """Close the open shard."""
        self._blocks.close()
        self._ahead = None

    def _left(self, num_rows: int) -> int:
        """Return how many of so many rows can be taken of the lines that are read ahead."""
        assert self._ahead is not None, "not at the end"
        left = min(num_rows, len(self._ahead.rows))
        return (
            left if self._cut.max_rows is None else min(left, self._cut.max_rows - self._num_rows)
        )

    def _advance(self, num_rows: int) -> _Ahead[LinesT]:
        assert self._ahead is not None, "not at the end"
        self._num_rows += num_rows
        return self._ahead.cut(num_rows)

    def _held_bytes(self, lines: LinesT) -> Numbers:
        """Return the bytes of lines, 0 of those that are too long to be read."""
        held: Numbers = np.where(lines.sizes > self._max_line_bytes, 0, lines.sizes)
        return held

    def _read(self) -> Generator[_Ahead[LinesT], None, None]:
        store, chosen = self._reader.store, self._cut.rows
        before = 0
        for extent in self._extents:
            self._check_unchanged(extent)
            with open_sequential(store, extent) as handle:
                first = 0
                for lines in self.read_lines(handle, extent.path):
                    if chosen.is_past(before):
                        return
                    numbers: Sequence[int] = range(first, first + len(lines))
                    first += len(lines)
                    # The row that stands for the unreadable rest of a shard is always yielded.
                    if chosen.only is not None and not lines.broken:
                        own = [
                            row for row in range(len(lines))
                            if chosen.number(before + row) is not None
                        ]  # fmt: skip
                        numbers = [numbers[row] for row in own]
                        before += len(lines)
                        lines = lines.take(np.array(own, np.int64))
                    else:
                        before += len(lines)
                    yield _Ahead(extent, lines, numbers)

    def _check_unchanged(self, extent: Extent) -> None:
        try:
            require_unchanged(self._reader.store, extent)
        except FileNotFoundError:
            raise changed(self._reader.store, extent) from None

    def _to_rows(self, ahead: _Ahead[LinesT]) -> pa.Table:
        extent = ahead.extent
        if ahead.lines.broken:
            failure = Failure(
                Reason.UNREADABLE_SHARD, STAGE, ahead.lines.broken, num_bytes=extent.size_bytes
            )
            return failed_shard(self._reader, extent, failure)
        table, failures = self.parse(ahead.lines, extent.path)
        return to_rows(self._reader, extent.path, ahead.rows, table, failures, has_integers=False)

    def _no_rows(self) -> pa.Table:
        return self._reader.schema.empty_table()


def max_line_bytes(source: Source, escaped: int) -> int:
    """Return the limit of a line: room for the largest text or image, and for what is beside it.

    Args:
        escaped: As how many bytes the format may write a byte of a text.
    """
    return _ROOM_BYTES + (columns_of(source).line_bytes(escaped) or 0)
