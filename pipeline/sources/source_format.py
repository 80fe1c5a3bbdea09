"""The protocol of source formats; other code reads its properties, never the name of a format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple, Protocol, Self, cast

import numpy as np
import pyarrow as pa

from pipeline.core.arrays import Numbers, empty_column
from pipeline.core.failures import Failure, Reason
from pipeline.core.printable import num_of
from pipeline.core.registry import SOURCES, get
from pipeline.job.section import Section
from pipeline.job.source import Source
from pipeline.sources.rows import Reader, make_rows
from pipeline.sources.units import Extent
from pipeline.storage.store import Store, StoredFile

RowIds = Literal["path", "path#row", "column", "key"]
"""The origin of row ids: the path of the shard (one row per shard), the path and the number of the
row, the value of a column, or a key inside the shard."""
CountsRows = Literal["listing", "footer", "reading"]
"""The step that counts the rows of a shard."""


class LeftOut(NamedTuple):
    """What `source.where` left out."""

    rows: int = 0
    """Rows of shards that were opened."""
    shards: int = 0
    """Shards that were not: their folders or their table tell that no row matches."""

    def describe(self) -> str:
        """Return both in words: `12 rows, and 3 shards unopened,`."""
        return f"{num_of(self.rows, 'row')} and {num_of(self.shards, 'unopened shard')}"


NONE_LEFT_OUT = LeftOut()


@dataclass(frozen=True)
class Measured:
    """Facts about the shards that are known before their rows are read."""

    extents: tuple[Extent, ...]
    """In input order; one extent of 0 rows per shard if only reading counts the rows."""
    pass_through: pa.Schema = field(default_factory=lambda: pa.schema([]))
    """The declared types of the pass-through columns."""
    fields: pa.Schema = field(kw_only=True)
    """The input columns, with the types of the shards."""
    table: pa.Schema | None = None
    """The columns that the job reads of a lake table, as `TableFile.table`; None: no table."""
    left_out: LeftOut = NONE_LEFT_OUT


class FirstRows(NamedTuple):
    """The first rows of a shard about which nothing is known yet."""

    rows: pa.Table
    """All columns, in the order of the shard."""
    trouble: str = ""
    """Why some of the first lines are no rows, or why there are no rows; '' if all is well."""
    doubt: str = ""
    """Why the names of the columns may be wrong, and what to do; '' if they look right."""


class Piece(Protocol):
    """N neighbouring rows of a shard that were read ahead."""

    @property
    def sizes(self) -> Numbers:
        """Return the bytes of each row, int64 (N,), by which slices are cut."""
        ...

    @property
    def is_rest(self) -> bool:
        """Tell whether this is one row in place of the unreadable rest of a shard."""
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
    """Rows that already are a table of `Reader.schema`."""

    table: pa.Table
    is_rest: ClassVar[bool] = False

    @property
    def sizes(self) -> Numbers:
        """Return the mean size of all rows for each."""
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
    """A format of shards; stateless, because workers load it by its name."""

    name: str
    """The value of `source.format`."""
    suffixes: tuple[str, ...]
    """Suffixes of the shards' names, in lower case, the usual one first."""
    counts_rows: CountsRows
    """The step that counts the rows; `listing` means files of one row each."""
    semantics: int
    """The version of the output; raise it when the same shard yields other rows."""
    fields: frozenset[str]
    """The format-specific fields of `source` that a job may give."""
    holds: str = "image"
    """The key of `ENCODED` for files of rows, unless a job names one."""
    file_types: frozenset[str] = frozenset()
    """Names of the `listing.refused.FILE_TYPES` that its shards have, compressed ones included;
    empty: first bytes prove nothing."""
    is_lake: ClassVar[bool] = False
    """Its shards are the files that a lake table names: it is a `LakeFormat`."""
    Options: type[Section] | None = None
    """The section that parses `source.options`; None if there are no options."""

    def check(self, source: Source) -> None:
        """Check the section of a job whose fields are known to be those of this format.

        Raises:
            ValueError: A field does not fit; the message says what would be right.
        """
        return

    @abstractmethod
    def row_ids(self, source: Source) -> RowIds:
        """Return the origin of the row ids of a job."""

    def first_rows(self, store: Store, shard: StoredFile, source: Source) -> FirstRows | None:
        """Return the first rows of a shard as a run would read them; None: rows have no columns.

        Args:
            source: The job's section, without the columns.

        Raises:
            JobError: The shard does not match `source.options`.
            ArrowException, OSError: The shard cannot be read as this format.
        """
        return None

    @abstractmethod
    def measure(
        self, store: Store, shards: Sequence[StoredFile], source: Source, *, max_extent_rows: int
    ) -> Measured:
        """Measure listed shards; an unreadable shard is an extent with a reason.

        Args:
            shards: In input order.
            max_extent_rows: Approximate maximum of rows of an extent.

        Raises:
            JobError: No shard has the columns or members that the job names.
        """

    @abstractmethod
    def read(
        self, reader: Reader, extents: Sequence[Extent], is_wanted: Callable[[int], bool]
    ) -> Iterator[Piece]:
        """Yield the rows of an extent in order; the ends of pieces depend on the extent alone.

        Args:
            extents: One extent; several only of a format whose files are one row each.
            is_wanted: Row number -> whether its content is needed, for an extent whose rows only
                reading counts; rows without content are yielded as well.

        Raises:
            InfraError: The store failed, or a shard changed since it was planned.
        """


def format_of(source: Source) -> SourceFormat:
    """Return the format of a checked `source` section."""
    return cast(SourceFormat, get(SOURCES, source.format))


def planned_ids(row_ids: RowIds, extent: Extent, skip: int = 0) -> Iterator[str]:
    """Yield the ids of an extent's rows that the plan knows, after the first `skip` rows.

    Ids by `column` and `key` are in the shards; rows that cannot be read have these ids.
    """
    if row_ids == "path" or extent.is_whole_shard:
        yield extent.path
        return
    for number in extent.numbers(skip):
        yield f"{extent.path}#{number}"


def failed_rows(reader: Reader, extent: Extent, skip: int, failure: Failure) -> pa.Table:
    """Make a failed row for each row of an extent after its first `skip` rows."""
    ids = list(planned_ids(format_of(reader.source).row_ids(reader.source), extent, skip))
    num_rows = len(ids)
    uris = [reader.store.url(extent.path)] * num_rows
    empty = {field.name: empty_column(field.type, num_rows) for field in reader.fields}
    return make_rows(reader, ids, uris, empty, [failure] * num_rows)


def failed_shard(reader: Reader, extent: Extent, failure: Failure) -> pa.Table:
    """Make one failed row in place of a shard, or the rest of it, whose rows are not counted."""
    stands_for_all = replace(extent, num_rows=1, reason=Reason.UNREADABLE_SHARD, only=None)
    return failed_rows(reader, stands_for_all, 0, failure)
