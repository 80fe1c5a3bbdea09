"""The rows of shards of lines: a format says what the lines of a shard are and become."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, Generic, Protocol, Self, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.core.arrays import Numbers
from pipeline.core.failures import Failure, Reason
from pipeline.job.source import Source
from pipeline.sources.columns.base import STAGE, Failures
from pipeline.sources.extents import Extent
from pipeline.sources.input_columns import columns_of
from pipeline.sources.rows import Reader, chosen
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


@dataclass(frozen=True)
class LineRows(Generic[LinesT]):
    """Lines as rows; they are parsed once it is known in which slice they are."""

    lines: LinesT
    numbers: Sequence[int]
    """Of the rows in the shard."""
    shard: Shard[LinesT]

    @property
    def sizes(self) -> Numbers:
        """Return the bytes of each line, 0 of one that is too long to be read."""
        sizes = self.lines.sizes
        held: Numbers = np.where(sizes > self.shard.max_line_bytes, 0, sizes)
        return held

    @property
    def is_rest(self) -> bool:
        return bool(self.lines.broken)

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: slice | Numbers) -> LineRows[LinesT]:
        return replace(self, lines=self.lines.take(rows), numbers=chosen(self.numbers, rows))

    def to_table(self) -> pa.Table:
        reader, extent = self.shard.reader, self.shard.extent
        if broken := self.lines.broken:
            failure = Failure(Reason.UNREADABLE_SHARD, STAGE, broken, num_bytes=extent.size_bytes)
            return failed_shard(reader, extent, failure)
        table, failures = self.shard.parse(self.lines)
        return to_rows(reader, extent.path, self.numbers, table, failures, has_integers=False)


@dataclass(frozen=True)
class Shard(Generic[LinesT]):
    """How the lines of a shard are read, and what becomes of them."""

    reader: Reader
    extent: Extent
    max_line_bytes: int
    read: Callable[[BinaryIO], Iterator[LinesT]]
    """Yields the lines in order; what comes at once depends on the shard alone."""
    parse: Callable[[LinesT], tuple[pa.Table, Failures]]
    """Returns the columns of lines as `columns_for` names them, and the failures."""

    def rows(self) -> Iterator[LineRows[LinesT]]:
        first = 0
        with open_sequential(self.reader.store, self.extent) as handle:
            for lines in self.read(handle):
                yield LineRows(lines, range(first, first + len(lines)), self)
                first += len(lines)


def max_line_bytes(source: Source, escaped: int) -> int:
    """Return the limit of a line: room for the largest text or image, and for what is beside it.

    Args:
        escaped: As how many bytes the format may write a byte of a text.
    """
    return _ROOM_BYTES + (columns_of(source).line_bytes(escaped) or 0)
