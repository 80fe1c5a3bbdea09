"""The base of formats of lines: pieces of lines, which become rows once their slice is known."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, Generic, Protocol, Self, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.core.arrays import Numbers
from pipeline.core.failures import Failure, Reason
from pipeline.core.figures import READ
from pipeline.job.source import FIELDS_OF_COLUMNS, Source
from pipeline.sources.columns.input_reader import Failures
from pipeline.sources.input_columns import columns_of
from pipeline.sources.lines.line_columns import Sample
from pipeline.sources.rows import Reader, chosen, to_rows
from pipeline.sources.source_format import (
    CountsRows,
    FirstRows,
    Measured,
    RowIds,
    SourceFormat,
    failed_shard,
)
from pipeline.sources.units import Extent
from pipeline.sources.uris.policy import policy_of
from pipeline.sources.whole_file import open_sequential
from pipeline.storage.store import Store, StoredFile

NO_ROWS = "has no rows"
_MIB = 2**20
_ROOM_BYTES = 8 * _MIB
"""For everything in a line except its text or image."""


class Lines(Protocol):
    """N neighbouring lines of a shard, each of them a row."""

    @property
    def sizes(self) -> Numbers:
        """Return the bytes of each line, int64 (N,)."""
        ...

    @property
    def broken(self) -> str:
        """Return why the rest cannot be read, if this is one row in its place; otherwise ''."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: slice | Numbers) -> Self:
        """Return some of the lines, in order."""
        ...


LinesT = TypeVar("LinesT", bound=Lines)


@dataclass(frozen=True)
class LineRows(Generic[LinesT]):
    """Lines as rows, which are parsed once their slice is known."""

    lines: LinesT
    numbers: Sequence[int]
    """The numbers of the rows in the shard."""
    shard: Shard[LinesT]

    @property
    def sizes(self) -> Numbers:
        """Return the bytes of each line, 0 for one that is too long to be read."""
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
            failure = Failure(Reason.UNREADABLE_SHARD, READ, broken, num_bytes=extent.size_bytes)
            return failed_shard(reader, extent, failure)
        table, failures = self.shard.parse(self.lines)
        return to_rows(reader, extent.path, self.numbers, table, failures, has_integers=False)


@dataclass(frozen=True)
class Shard(Generic[LinesT]):
    """A shard of lines, with the functions that read and parse its lines."""

    reader: Reader
    extent: Extent
    max_line_bytes: int
    read: Callable[[BinaryIO], Iterator[LinesT]]
    """Yields the lines in order; the ends of pieces depend on the shard alone."""
    parse: Callable[[LinesT], tuple[pa.Table, Failures]]
    """Returns the columns of lines, named as by `columns_for`, and the failures."""

    def rows(self) -> Iterator[LineRows[LinesT]]:
        first = 0
        with open_sequential(self.reader.store, self.extent) as handle:
            for lines in self.read(handle):
                yield LineRows(lines, range(first, first + len(lines)), self)
                first += len(lines)


def max_line_bytes(source: Source, escaped: int) -> int:
    """Return the limit of a line: room for the largest text or image, and for the other columns.

    Args:
        escaped: Maximum bytes as which the format writes a byte of a text.
    """
    return _ROOM_BYTES + (columns_of(source).line_bytes(escaped) or 0)


class LineFormat(SourceFormat):
    """Shards of lines, plain or compressed as a whole by gzip or zstd."""

    counts_rows: CountsRows = "reading"
    fields = frozenset(FIELDS_OF_COLUMNS)

    @abstractmethod
    def sample(self, store: Store, shards: Sequence[StoredFile], source: Source) -> Sample:
        """Return the first lines of the first shard that has any."""

    def first_rows(self, store: Store, shard: StoredFile, source: Source) -> FirstRows:
        sample = self.sample(store, [shard], source)
        rows, trouble = sample.rows(), sample.trouble
        empty = NO_ROWS if shard.size_bytes else "is empty"
        return FirstRows(rows, trouble if len(rows) or trouble else empty)

    def check(self, source: Source) -> None:
        """Refuse images and clips that are not in base64, since text cannot hold them."""
        for name, part in source.parts.items():
            if columns_of(part).line_bytes(1) is None:
                where = f"input {name!r}: " if name else ""
                media, what = part.encoded.name, part.encoded.what
                raise ValueError(
                    f"{where}format {self.name!r} holds texts (text_column), features, URIs of "
                    f"{what} (uri_column) or {what} in base64 ({media}_encoding: base64): name one"
                )

    def row_ids(self, source: Source) -> RowIds:
        return "column" if source.id_column else "path#row"

    def measure(
        self, store: Store, shards: Sequence[StoredFile], source: Source, *, max_extent_rows: int
    ) -> Measured:
        """Return one extent of unknown rows per shard; the first lines declare the columns."""
        if source.has_uris:
            policy_of(source, store.uri)  # raises before anything is started
        extents = tuple(Extent(s.path, s.size_bytes, s.version, 0, 0, 0.0) for s in shards)
        pass_through, fields = self.sample(store, shards, source).declare()
        return Measured(extents, pass_through, fields=fields)
