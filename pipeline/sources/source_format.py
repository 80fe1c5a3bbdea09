"""The protocol of source formats. Code reads these properties, never the name of a format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol, cast

import pyarrow as pa

from pipeline.core.arrays import empty_column
from pipeline.core.failures import Failure, Reason
from pipeline.core.registry import SOURCES, get
from pipeline.job.section import Section
from pipeline.job.source import Source
from pipeline.sources.extents import Extent, UncountedPlan
from pipeline.sources.rows import Reader, make_rows
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


class RowStream(Protocol):
    """The rows of extents in order, as tables of `reader.schema`."""

    def take(self, num_rows: int) -> pa.Table:
        """Return the next `num_rows` rows; an unreadable row has an error.

        Fewer rows, but at least one, if these are many bytes already (`MAX_SLICE_BYTES`).

        Raises:
            InfraError: The store failed, or a shard changed since it was planned.
        """
        ...

    def skip(self, num_rows: int) -> None:
        """Skip the next rows, reading as little as possible."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class SliceStream(Protocol):
    """The rows of uncounted extents in order, cut into slices while they are read."""

    def take(self) -> pa.Table:
        """Return the next slice as its `UncountedPlan` says; without rows only if none are left.

        Raises:
            InfraError: The store failed, or a shard changed since it was planned.
        """
        ...

    def skip(self, num_rows: int) -> None:
        """Skip rows that are staged.

        Raises:
            InfraError: Fewer rows are left, so a shard changed since they were staged.
        """
        ...

    def is_at_end(self) -> bool:
        """Tell whether no rows are left."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class SourceFormat(Protocol):
    """One kind of shard; stateless, for workers load it by its name."""

    @property
    def name(self) -> str:
        """Return the value of `source.format`."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Return the suffixes of the shards' names, lower case, the usual one first."""
        ...

    @property
    def counts_rows(self) -> CountsRows:
        """Return what counts the rows; `open_slices` is for `reading`, `open` for the others."""
        ...

    @property
    def semantics(self) -> int:
        """Return the version of the output, raised when the same shard gives other rows."""
        ...

    @property
    def fields(self) -> frozenset[str]:
        """Return the format-specific fields of `source` that a job may give."""
        ...

    @property
    def holds(self) -> str:
        """Return which of `ENCODED` the files of rows are, if a job does not say it."""
        ...

    @property
    def kinds(self) -> frozenset[str]:
        """Return the names of the kinds of `first_bytes.KINDS` that its shards are, with those of
        compressed ones; empty: first bytes tell nothing of them."""
        ...

    @property
    def Options(self) -> type[Section] | None:
        """Return the section that `source.options` is parsed as; None if there are no options."""
        ...

    def check(self, source: Source) -> None:
        """Check the job's section once its fields are known to be of this format.

        Raises:
            ValueError: A field does not fit; the message says what would.
        """
        ...

    def row_ids(self, source: Source) -> RowIds:
        """Return where the ids of a job's rows come from."""
        ...

    def first_rows(self, store: Store, shard: StoredFile, source: Source) -> FirstRows | None:
        """Return some first rows of a shard as a run would read them.

        None: rows of the format have no columns.

        Args:
            source: The job's section, without the columns.

        Raises:
            JobError: The shard is written otherwise than `source.options` say.
            ArrowException, OSError: It cannot be read as this format.
        """
        ...

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
        """Measure shards again for a retry, with `declared` pass-through types; path -> extents.

        Empty if the format never gives an extent a reason.
        """
        ...

    def open(self, reader: Reader, extents: Sequence[Extent]) -> RowStream:
        """Open counted extents."""
        ...

    def open_slices(
        self, reader: Reader, extents: Sequence[Extent], cut: UncountedPlan
    ) -> SliceStream:
        """Open uncounted extents."""
        ...


class WithoutColumns:
    """Base of formats of whose columns nothing can be said before a job names them."""

    holds: str = "image"

    def first_rows(self, store: Store, shard: StoredFile, source: Source) -> FirstRows | None:
        """Return None."""
        return None


class MeasuredOnce:
    """Base of formats whose shards are not read when they are listed, so no extent has a reason."""

    def remeasure(
        self,
        store: Store,
        shards: Sequence[StoredFile],
        source: Source,
        declared: pa.Schema,
        *,
        max_extent_rows: int,
    ) -> Mapping[str, tuple[Extent, ...]]:
        """Return {}: no extent has a reason."""
        return {}


class CountedBeforeReading(WithoutColumns):
    """Base of formats whose rows a listing or a footer counts."""

    Options: type[Section] | None = None
    kinds = frozenset[str]()

    def open_slices(
        self, reader: Reader, extents: Sequence[Extent], cut: UncountedPlan
    ) -> SliceStream:
        """Raise TypeError: the plan cuts counted rows into slices."""
        raise TypeError(f"{type(self).__name__}: its rows are counted before they are read")

    def check(self, source: Source) -> None:
        """Accept any section."""


class CountedByReading(MeasuredOnce, WithoutColumns):
    """Base of formats whose rows only reading counts."""

    counts_rows: CountsRows = "reading"
    Options: type[Section] | None = None
    kinds = frozenset[str]()

    def open(self, reader: Reader, extents: Sequence[Extent]) -> RowStream:
        """Raise TypeError: the bounds of uncounted slices are found by reading."""
        raise TypeError(f"{type(self).__name__}: its rows are counted while they are read")

    def check(self, source: Source) -> None:
        """Accept any section."""


def format_of(source: Source) -> SourceFormat:
    """Return the format of a checked `source` section."""
    return cast(SourceFormat, get(SOURCES, source.format))


def planned_ids(kind: RowIds, extent: Extent, skip: int = 0) -> Iterator[str]:
    """Yield the ids of an extent's rows that the plan knows, without the first `skip` rows.

    Ids of kind `column` and `key` are in the shards; unreadable rows have the ids yielded here.
    """
    if kind == "path" or extent.is_whole_shard:
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
