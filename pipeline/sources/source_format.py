"""The protocol of source formats. Code reads these properties, never the name of a format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple, Protocol, Self, cast

import numpy as np
import pyarrow as pa

from pipeline.core.arrays import Numbers, empty_column
from pipeline.core.failures import Failure, Reason
from pipeline.core.registry import SOURCES, get
from pipeline.job.section import Section
from pipeline.job.source import Source
from pipeline.sources.rows import Reader, make_rows
from pipeline.sources.units import Extent
from pipeline.storage.store import Store, StoredFile

RowIds = Literal["path", "path#row", "column", "key"]
"""Where a row's id comes from: the shard's path (one row per shard), the path and the row's number,
the value of a column, or a key inside the shard."""
CountsRows = Literal["listing", "footer", "reading"]
"""What counts the rows of a shard."""


@dataclass(frozen=True)
class Measured:
    """The shards as far as they are known before their rows are read."""

    extents: tuple[Extent, ...]
    """In input order; if only reading counts the rows, one extent of 0 rows per shard."""
    pass_through: pa.Schema = field(default_factory=lambda: pa.schema([]))
    """The declared types of the pass-through columns."""
    fields: pa.Schema = field(kw_only=True)
    """The columns of a row's input, with the types of the shards."""


class FirstRows(NamedTuple):
    """Some first rows of a shard, for who knows nothing of it."""

    rows: pa.Table
    """With all columns, in the shard's order."""
    trouble: str = ""
    """What is wrong with lines among them that are no rows; or why there are no rows."""
    doubt: str = ""
    """Why the names of the columns may be none, and what to do; ''."""


class Piece(Protocol):
    """Neighbouring rows of a shard that were read and not taken, N of them."""

    @property
    def sizes(self) -> Numbers:
        """Return the bytes of each row, int64 (N,); slices are cut by them."""
        ...

    @property
    def is_rest(self) -> bool:
        """Tell whether this is one row that stands for the unreadable rest of a shard."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: slice | Numbers) -> Self:
        """Return some of the rows, in order."""
        ...

    def to_table(self) -> pa.Table:
        """Return the rows in `Reader.schema`; an unreadable row has an error."""
        ...


@dataclass(frozen=True)
class Rows:
    """Rows that are a table of `Reader.schema` already."""

    table: pa.Table
    is_rest: ClassVar[bool] = False

    @property
    def sizes(self) -> Numbers:
        """Return the mean of all rows for each."""
        num_rows = self.table.num_rows
        return np.full(num_rows, self.table.nbytes // max(1, num_rows), np.int64)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def take(self, rows: slice | Numbers) -> Rows:
        if not isinstance(rows, slice):
            return Rows(self.table.take(rows))
        return Rows(self.table[rows])

    def to_table(self) -> pa.Table:
        return self.table


class SourceFormat(ABC):
    """One kind of shard; stateless, for workers load it by its name."""

    name: str
    """The value of `source.format`."""
    suffixes: tuple[str, ...]
    """Of the shards' names, lower case, the usual one first."""
    counts_rows: CountsRows
    """What counts the rows; what a listing counts are files that are one row each."""
    semantics: int
    """The version of the output, raised when the same shard gives other rows."""
    fields: frozenset[str]
    """The format-specific fields of `source` that a job may give."""
    holds: str = "image"
    """Which of `ENCODED` the files of rows are, if a job does not say it."""
    file_types: frozenset[str] = frozenset()
    """Names of the `listing.refused.FILE_TYPES` that its shards have, compressed ones included;
    empty: first bytes prove nothing."""
    Options: type[Section] | None = None
    """The section that `source.options` is parsed as; None if there are no options."""

    def check(self, source: Source) -> None:
        """Check the job's section once its fields are known to be of this format.

        Raises:
            ValueError: A field does not fit; the message says what would.
        """
        return

    @abstractmethod
    def row_ids(self, source: Source) -> RowIds:
        """Return where the ids of a job's rows come from."""

    def first_rows(self, store: Store, shard: StoredFile, source: Source) -> FirstRows | None:
        """Return some first rows of a shard as a run would read them.

        None: rows of the format have no columns.

        Args:
            source: The job's section, without the columns.

        Raises:
            JobError: The shard is written otherwise than `source.options` say.
            ArrowException, OSError: It cannot be read as this format.
        """
        return None

    @abstractmethod
    def measure(
        self, store: Store, shards: Sequence[StoredFile], source: Source, *, max_extent_rows: int
    ) -> Measured:
        """Measure listed shards; an unreadable shard is an extent with a reason.

        Args:
            shards: In input order.
            max_extent_rows: An extent has up to about this many rows.

        Raises:
            JobError: No shard has the columns or members that the job names.
        """

    @abstractmethod
    def read(
        self, reader: Reader, extents: Sequence[Extent], is_wanted: Callable[[int], bool]
    ) -> Iterator[Piece]:
        """Yield the rows of an extent in order; where pieces end depends on the extent alone.

        Args:
            extents: One; several only of a format whose files are one row each.
            is_wanted: Of an extent whose rows only reading counts, row number -> whether its
                content is needed; rows without it are yielded, too.

        Raises:
            InfraError: The store failed, or a shard changed since it was planned.
        """


def format_of(source: Source) -> SourceFormat:
    """Return the format of a checked `source` section."""
    return cast(SourceFormat, get(SOURCES, source.format))


def planned_ids(row_ids: RowIds, extent: Extent, skip: int = 0) -> Iterator[str]:
    """Yield the ids of an extent's rows that the plan knows, without the first `skip` rows.

    Ids by `column` and `key` are in the shards; unreadable rows have the ids yielded here.
    """
    if row_ids == "path" or extent.is_whole_shard:
        yield extent.path
        return
    for number in extent.numbers(skip):
        yield f"{extent.path}#{number}"


def failed_rows(reader: Reader, extent: Extent, skip: int, failure: Failure) -> pa.Table:
    """Make a failed row per row of an extent, without its first `skip` rows."""
    ids = list(planned_ids(format_of(reader.source).row_ids(reader.source), extent, skip))
    num_rows = len(ids)
    uris = [reader.store.url(extent.path)] * num_rows
    empty = {field.name: empty_column(field.type, num_rows) for field in reader.fields}
    return make_rows(reader, ids, uris, empty, [failure] * num_rows)


def failed_shard(reader: Reader, extent: Extent, failure: Failure) -> pa.Table:
    """Make one failed row that stands for a shard, or the rest of it, of unknown row count."""
    stands_for_all = replace(extent, num_rows=1, reason=Reason.UNREADABLE_SHARD, only=None)
    return failed_rows(reader, stands_for_all, 0, failure)
