"""The base of formats of lines: pieces of lines, which become rows once their slice is known."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, BinaryIO, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.core.arrays import Numbers, as_array
from pipeline.core.errors import JobError
from pipeline.core.failures import Failure, Reason
from pipeline.core.figures import READ
from pipeline.core.ranges import Ranges
from pipeline.job.source import FIELDS_OF_COLUMNS, Source
from pipeline.sources.columns.input_reader import Failures
from pipeline.sources.columns.matching import TypedCondition, comparable, matches, typed
from pipeline.sources.input_columns import columns_of, folder_columns
from pipeline.sources.lines.line_columns import (
    COMPARED,
    Column,
    Sample,
    columns_for,
    compared_columns,
)
from pipeline.sources.rows import Reader, chosen, to_rows
from pipeline.sources.source_format import (
    CountsRows,
    FirstRows,
    LeftOut,
    Measured,
    Piece,
    RowIds,
    Rows,
    SourceFormat,
    failed_shard,
)
from pipeline.sources.units import Extent, require_as_planned
from pipeline.sources.uris.policy import policy_of
from pipeline.sources.whole_file import open_sequential
from pipeline.storage.store import Store, StoredFile

NO_ROWS = "has no rows"
_MIB = 2**20
_ROOM_BYTES = 8 * _MIB
"""For everything in a line except its text or image."""
_FILES_AT_ONCE = 4
_TYPES = {"text": pa.string(), "number": pa.float64(), "presence": pa.bool_()}
"""Roles of compared columns -> the type in which they are compared."""


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
            return failed_shard(reader, extent, unreadable_shard(extent, broken))
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

    def counted_rows(self) -> Iterator[LineRows[LinesT]]:
        """Yield the rows of a counted extent."""
        wanted = Ranges.of(self.extent.numbers())
        for lines in self.rows():
            rows = lines.take(np.flatnonzero(wanted.mask_of(np.array(lines.numbers))))
            if len(rows):
                yield rows
            if lines.numbers[-1] >= wanted[-1]:
                return


def unreadable_shard(extent: Extent, message: str) -> Failure:
    """Return the failure of a shard, or of its rest."""
    return Failure(Reason.UNREADABLE_SHARD, READ, message, num_bytes=extent.size_bytes)


def max_line_bytes(source: Source, escaped: int) -> int:
    """Return the limit of a line: room for the largest text or image, and for the other columns.

    Args:
        escaped: Maximum bytes as which the format writes a byte of a text.
    """
    return _ROOM_BYTES + (columns_of(source).line_bytes(escaped) or 0)


class LineFormat(SourceFormat):
    """Shards of lines, plain or compressed as a whole by gzip or zstd."""

    counts_rows: CountsRows = "reading"
    fields = frozenset([*FIELDS_OF_COLUMNS, "where"])
    has_types: ClassVar[bool] = True
    """Otherwise all values are texts."""

    @abstractmethod
    def sample(self, store: Store, shards: Sequence[StoredFile], source: Source) -> Sample:
        """Return the first lines of the first shard that has any."""

    @abstractmethod
    def shard(self, reader: Reader, extent: Extent, columns: Mapping[str, Column]) -> Shard[Any]:
        """Return a shard with the functions that read its lines and parse some of their columns."""

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
        """Return one extent of unknown rows per shard; the first lines declare the columns.

        With `source.where` each line is parsed, and the chosen rows are counted.
        """
        if source.has_uris:
            policy_of(source, store.uri)  # raises before anything is started
        num_shards = len(shards)
        if source.where is not None:
            shards = [s for s in shards if self._condition(source, s.path) is not False]
        facts = [(s.path, s.size_bytes, s.version, 0, 0, 0.0) for s in shards]
        extents = [Extent(*of, ctime_ns=s.ctime_ns) for of, s in zip(facts, shards, strict=True)]
        declared, fields = self.sample(store, shards, source).declare()
        if source.where is None:
            return Measured(tuple(extents), declared, fields=fields)
        choose = partial(self._choose, Reader(store, source, declared, fields))
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            counts = [*pool.map(choose, extents)]
        extents = [extent for chosen, _ in counts for extent in chosen]
        left_out = LeftOut(sum(num for _, num in counts), num_shards - len(shards))
        return Measured(tuple(extents), declared, fields=fields, left_out=left_out)

    def _condition(self, source: Source, path: str) -> TypedCondition:
        """Return `source.where` for a shard; False if its folders leave no row."""
        columns = compared_columns(source, path, has_types=self.has_types).values()
        types = [(column.name, column.dtype or _TYPES[column.role]) for column in columns]
        known = {name: (None, value) for name, value in folder_columns(source, path).items()}
        assert source.condition is not None, "the job chooses rows"
        try:
            condition = typed(source.condition, pa.schema(types), known)
        except ValueError as error:
            hint = "" if self.has_types else "; source.casts declares the type of a column"
            raise JobError(f"source.where: {error}{hint}") from None
        assert condition is not None, "its columns are known"
        return condition

    def _choose(self, reader: Reader, extent: Extent) -> tuple[list[Extent], int]:
        """Return the chosen rows of a shard, and how many it leaves out.

        Lines, and compared values, that cannot be judged are chosen, and fail when they are read.
        If the shard cannot be read to its end, one row stands for the rest.
        """
        condition = self._condition(reader.source, extent.path)
        columns = compared_columns(reader.source, extent.path, has_types=self.has_types)
        shard = self.shard(reader, extent, columns)
        pieces, rest, misfits = list[Ranges](), list[Extent](), list[int]()
        num_rows = num_bytes = 0
        for read in shard.rows():
            if read.is_rest:
                facts = {"reason": Reason.UNREADABLE_SHARD, "message": read.lines.broken}
                rest.append(replace(extent, first_row=num_rows, num_rows=1, **facts))
                break
            table, failures = shard.parse(read.lines)
            is_chosen = matches(condition, partial(_compared, table), len(read))
            is_chosen |= np.array([failure is not None for failure in failures])
            are_misfits = [of is not None and of.reason is Reason.BAD_SCHEMA for of in failures]
            misfits += (num_rows + np.flatnonzero(are_misfits)).tolist()
            pieces.append(Ranges.of(num_rows + np.flatnonzero(is_chosen)))
            num_rows, num_bytes = num_rows + len(read), num_bytes + int(read.sizes[is_chosen].sum())
        require_as_planned(reader.store, extent)
        rows = Ranges.in_at_least(1, pieces)
        row_bytes = round(num_bytes / max(1, len(rows)), 1)
        # Without the condition these rows may have been predicted: see `version_in`.
        digest = hashlib.sha256(np.array(misfits, "<i8").tobytes()).hexdigest()
        given = (digest,) if misfits else ()
        chosen = [replace(extent.choose(rows), row_bytes=row_bytes, given=given)] if rows else []
        return [*chosen, *rest], num_rows - len(rows)

    def read(
        self, reader: Reader, extents: Sequence[Extent], is_wanted: Callable[[int], bool]
    ) -> Iterator[Piece]:
        [extent] = extents
        if extent.reason is not None:
            failure = unreadable_shard(extent, extent.message)
            return iter([Rows(failed_shard(reader, extent, failure))])
        columns = columns_for(reader, extent.path, has_types=self.has_types)
        shard = self.shard(reader, extent, columns)
        return shard.counted_rows() if extent.num_rows else shard.rows()


def _compared(table: pa.Table, name: str) -> pa.Array:
    """Return the values of a column as they are compared, (N,)."""
    column = as_array(table.column(COMPARED + name))
    is_wide = pa.types.is_large_string(column.type)
    return column.cast(pa.large_binary()).cast(pa.binary()) if is_wide else comparable(column)
