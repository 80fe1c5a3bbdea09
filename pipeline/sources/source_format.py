"""What a source format is. Everything after the registry reads these properties, never a name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, cast

import pyarrow as pa

from pipeline.core.counters import Counters
from pipeline.core.registry import SOURCES, get
from pipeline.core.schema import IMAGE_FIELDS
from pipeline.job.section import Section
from pipeline.job.source import Source
from pipeline.sources.extents import Extent, SliceCut
from pipeline.storage.store import Store, StoredFile

if TYPE_CHECKING:
    from pipeline.sources.rows import Reader

RowIds = Literal["path", "path#row", "column", "key"]
"""What a row's id is made of: the shard's path (one row per shard), the path and the row's number,
the value of a column, or a key inside the shard."""
CountsRows = Literal["listing", "footer", "reading"]
"""What must be looked at to know how many rows a shard has."""


@dataclass(frozen=True)
class Measured:
    """What is known of shards before their rows are read."""

    extents: tuple[Extent, ...]
    """In input order; of rows that only reading counts, one of 0 rows per shard."""
    pass_through: pa.Schema = field(default_factory=lambda: pa.schema([]))
    """The declared types of the pass-through columns."""
    fields: pa.Schema = IMAGE_FIELDS
    """The columns that hold the input of a row, as the shards have it."""


class RowStream(Protocol):
    """The rows of extents in order, as tables of `reader.schema`."""

    @property
    def counted(self) -> Counters:
        """Return what the last `take` counted beside its rows."""
        ...

    def take(self, num_rows: int) -> pa.Table:
        """Return exactly the next rows; one that cannot be read is a row with an error.

        Raises:
            InfraError: The store failed, or a shard changed since it was planned.
        """
        ...

    def skip(self, num_rows: int) -> None:
        """Pass over the next rows without reading more than must be."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


class SliceStream(Protocol):
    """The rows of extents in order where only reading counts them: cut into slices on the way."""

    def take(self) -> pa.Table:
        """Return the next slice as the cut says; it has no rows only if none are left.

        Raises:
            InfraError: The store failed, or a shard changed since it was planned.
        """
        ...

    def skip(self, num_rows: int) -> None:
        """Pass over rows that are staged.

        Raises:
            InfraError: There are fewer, so that this is not what was read before.
        """
        ...

    def is_at_end(self) -> bool:
        """Tell whether no rows are left."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


class SourceFormat(Protocol):
    """One kind of shard. An object without state: workers load it by its name."""

    @property
    def name(self) -> str:
        """Return the value of `source.format`."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Return the ends of the shards' names, lower case, the usual one first."""
        ...

    @property
    def counts_rows(self) -> CountsRows:
        """Return what counts the rows; for `reading`, `open_slices` is called, else `open`."""
        ...

    @property
    def semantics(self) -> int:
        """Return the version of the outputs: raised when the same shard gives other rows."""
        ...

    @property
    def fields(self) -> frozenset[str]:
        """Return which of the fields that are for some formats only a job may give."""
        ...

    @property
    def options(self) -> type[Section] | None:
        """Return what `source.options` holds; None if there are no options."""
        ...

    def check(self, source: Source) -> None:
        """Check the job's section once its fields are known to be of this format.

        Raises:
            ValueError: Something does not fit; says what would.
        """
        ...

    def row_ids(self, source: Source) -> RowIds:
        """Return what the ids of a job's rows are made of."""
        ...

    def measure(
        self, store: Store, shards: Sequence[StoredFile], source: Source, *, max_extent_rows: int
    ) -> Measured:
        """Measure listed shards; one that cannot be read is an extent with a reason.

        Args:
            store: The source.
            shards: In input order.
            source: The job's section.
            max_extent_rows: An extent has up to about this many rows.

        Raises:
            JobError: No shard has what the job names.
        """
        ...

    def remeasure(
        self,
        store: Store,
        shards: Sequence[StoredFile],
        source: Source,
        declared: pa.Schema,
        *,
        max_extent_rows: int,
    ) -> Mapping[str, tuple[Extent, ...]]:
        """Measure shards again for a retry, with pass-through types as declared; by path.

        Empty if the format never gives an extent a reason.
        """
        ...

    def open(self, reader: Reader, extents: Sequence[Extent]) -> RowStream:
        """Open extents whose rows are counted."""
        ...

    def open_slices(self, reader: Reader, extents: Sequence[Extent], cut: SliceCut) -> SliceStream:
        """Open extents whose rows are counted by reading."""
        ...


class CountedBeforeReading:
    """What formats have in common whose rows a listing or a footer counts."""

    options: type[Section] | None = None

    def open_slices(self, reader: Reader, extents: Sequence[Extent], cut: SliceCut) -> SliceStream:
        """Refuse: slices of counted rows are cut by the plan."""
        raise TypeError(f"{type(self).__name__}: its rows are counted before they are read")

    def check(self, source: Source) -> None:
        """Accept what is there."""


class CountedByReading:
    """What formats have in common whose rows only reading counts."""

    counts_rows: CountsRows = "reading"
    options: type[Section] | None = None

    def open(self, reader: Reader, extents: Sequence[Extent]) -> RowStream:
        """Refuse: where such rows begin and end is found out while they are read."""
        raise TypeError(f"{type(self).__name__}: its rows are counted while they are read")

    def check(self, source: Source) -> None:
        """Accept what is there."""

    def remeasure(
        self,
        store: Store,
        shards: Sequence[StoredFile],
        source: Source,
        declared: pa.Schema,
        *,
        max_extent_rows: int,
    ) -> Mapping[str, tuple[Extent, ...]]:
        """Return nothing: no extent says that its shard cannot be read."""
        return {}


def format_of(source: Source) -> SourceFormat:
    """Return the format of a job's section, which has been checked to be there."""
    return cast(SourceFormat, get(SOURCES, source.format))


def planned_ids(kind: RowIds, extent: Extent, skip: int = 0) -> Iterator[str]:
    """Yield the ids of an extent's rows as far as the plan knows them, from row `skip` on.

    Those of kind `column` and `key` are in the shards; rows that cannot be read have these ids.
    """
    if kind == "path" or extent.is_whole_shard:
        yield extent.path
        return
    for number in extent.numbers(skip):
        yield f"{extent.path}#{number}"
