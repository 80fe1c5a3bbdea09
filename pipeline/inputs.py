"""List the inputs of a job, once: which shards there are, how many rows they hold, and where
each can be cut. Knows file names and Parquet footers; reads no row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import JobError
from pipeline.job import Source
from pipeline.schema import RESERVED_COLUMNS, Reason
from pipeline.storage import Store, StoredFile

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp")
PARQUET_SUFFIXES = (".parquet", ".pq")
_FOOTER_THREADS = 16
_GLOB_CHARACTERS = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Extent:
    """A run of rows [first_row, first_row + num_rows) of one shard, the atom of planning."""

    path: str
    size_bytes: int
    version: str
    first_row: int
    num_rows: int
    row_bytes: float
    """Mean encoded bytes of a row, for bounding the memory of a slice."""
    reason: Reason | None = None
    """Set when the rows cannot be read; `message` says why."""
    message: str = ""

    @property
    def is_whole_shard(self) -> bool:
        """Tell whether this one row stands for a shard whose row count is unknown."""
        return self.reason in (Reason.UNREADABLE_SHARD, Reason.MISSING)


@dataclass(frozen=True)
class Inputs:
    """All that is to be read, in input order."""

    root: str
    shards: tuple[StoredFile, ...]
    extents: tuple[Extent, ...]
    pass_through: pa.Schema = field(default_factory=lambda: pa.schema([]))
    ignored: tuple[str, ...] = ()
    """Files under the source that are no shards of this format (reported, never read)."""

    @property
    def num_rows(self) -> int:
        return sum(extent.num_rows for extent in self.extents)

    @property
    def num_bytes(self) -> int:
        return sum(shard.size_bytes for shard in self.shards)


def open_source(source: Source) -> tuple[Store, str]:
    """Return the store at the fixed part of `source.uri`, and the pattern below it ('' = all)."""
    root, pattern = split_glob(source.uri)
    return Store(root, source.storage_options), pattern


def split_glob(uri: str) -> tuple[str, str]:
    """Split a URI before its first segment with a glob character."""
    match = _GLOB_CHARACTERS.search(uri)
    if match is None:
        return uri.rstrip("/") or "/", ""
    cut = uri.rfind("/", 0, match.start())
    return (uri[:cut] or "/", uri[cut + 1 :]) if cut >= 0 else (".", uri)


def list_inputs(source: Source, *, max_extent_rows: int) -> Inputs:
    """List the shards under `source.uri` and measure them.

    Args:
        source: The job's source section.
        max_extent_rows: Row groups are joined to extents of up to about this many rows.

    Raises:
        JobError: The source cannot be read or has not the columns that the job names.
    """
    store, pattern = open_source(source)
    suffixes = IMAGE_SUFFIXES if source.format == "images" else PARQUET_SUFFIXES
    root, shards, ignored = _list_shards(store, pattern, suffixes, source)
    if source.format == "images":
        extents = tuple(
            Extent(s.path, s.size_bytes, s.version, 0, 1, float(s.size_bytes)) for s in shards
        )
        return Inputs(root, shards, extents, ignored=ignored)
    footers = _read_footers(Store(root, source.storage_options), shards, source)
    declared = _declare_pass_through(source, shards, footers)
    extents = tuple(
        extent
        for shard, footer in zip(shards, footers, strict=True)
        for extent in _parquet_extents(shard, footer, source, declared, max_extent_rows)
    )
    return Inputs(root, shards, extents, declared, ignored)


def _list_shards(
    store: Store, pattern: str, suffixes: Sequence[str], source: Source
) -> tuple[str, tuple[StoredFile, ...], tuple[str, ...]]:
    files = store.list_files()
    root = store.uri
    if not files and not pattern:
        # Not a folder: a single shard is listed through its parent.
        parent, _, name = root.rpartition("/")
        if name and not parent.endswith("/"):
            folder = Store(parent or "/", source.storage_options)
            single = folder.stat(name)
            if single is not None:
                return folder.uri, (single,), ()
        if not store.is_object_store and not store.exists(""):
            raise JobError(f"source.uri = {store.url('')}: no such file or folder")
    if pattern:
        from fsspec.utils import glob_translate

        wanted = re.compile(glob_translate(pattern))
        files = [f for f in files if wanted.match(f.path)]
    visible = [f for f in files if not _is_hidden(f.path)]
    shards = tuple(f for f in visible if f.path.lower().endswith(tuple(suffixes)))
    chosen = {f.path for f in shards}
    return root, shards, tuple(f.path for f in visible if f.path not in chosen)


def _is_hidden(path: str) -> bool:
    return any(segment.startswith((".", "_")) for segment in path.split("/"))


@dataclass(frozen=True)
class _Footer:
    """What a Parquet footer says, or why it cannot be read."""

    group_rows: tuple[int, ...] = ()
    group_bytes: tuple[int, ...] = ()
    schema: pa.Schema | None = None
    reason: Reason | None = None
    message: str = ""


def is_unreadable(error: BaseException) -> bool:
    """Tell a broken Parquet file (Arrow complains) from trouble with the store."""
    if isinstance(error, pa.ArrowException) and not isinstance(error, OSError):
        return True
    return type(error) is OSError and error.errno is None


def _read_footers(store: Store, shards: Sequence[StoredFile], source: Source) -> list[_Footer]:
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        return list(pool.map(lambda shard: _read_footer(store, shard, source), shards))


def _read_footer(store: Store, shard: StoredFile, source: Source) -> _Footer:
    try:
        with store.open(shard.path) as handle:
            parquet = pq.ParquetFile(handle)
            metadata, schema = parquet.metadata, parquet.schema_arrow
    except FileNotFoundError:
        return _Footer(reason=Reason.MISSING, message="vanished while it was listed")
    except (pa.ArrowException, OSError) as error:
        if not is_unreadable(error):
            raise
        return _Footer(reason=Reason.UNREADABLE_SHARD, message=str(error))
    wanted = {source.image_column, source.id_column, *source.pass_through}
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return _Footer(
        group_rows=tuple(group.num_rows for group in groups),
        group_bytes=tuple(_wanted_bytes(group, wanted) for group in groups),
        schema=schema,
    )


def _wanted_bytes(group: Any, wanted: set[str | None]) -> int:
    columns = (group.column(i) for i in range(group.num_columns))
    return sum(
        column.total_uncompressed_size
        for column in columns
        if column.path_in_schema in wanted or column.path_in_schema.split(".")[0] in wanted
    )


def _declare_pass_through(
    source: Source, shards: Sequence[StoredFile], footers: Sequence[_Footer]
) -> pa.Schema:
    """Take the types of the wanted columns from the first shard that has them all."""
    clash = RESERVED_COLUMNS.intersection(source.pass_through)
    if clash:
        raise JobError(f"source.pass_through: {sorted(clash)[0]} is a column that the output makes")
    first_problem = ""
    readable = [(s, f) for s, f in zip(shards, footers, strict=True) if f.schema is not None]
    for shard, footer in readable:
        problem = _schema_problem(source, footer.schema)
        if not problem:
            schema: Any = footer.schema
            fields = [schema.field(name) for name in source.pass_through]
            return pa.schema([field.remove_metadata().with_nullable(True) for field in fields])
        first_problem = first_problem or f"{shard.path}: {problem}"
    if readable:
        raise JobError(f"source: no shard fits the job; {first_problem}")
    return pa.schema([])


def _schema_problem(source: Source, schema: pa.Schema) -> str:
    have = ", ".join(schema.names)
    for name in (source.image_column, source.id_column, *source.pass_through):
        if name is not None and schema.get_field_index(name) < 0:
            return f"no column {name!r}; it has {have}"
    kind = schema.field(source.image_column).type
    id_kind = schema.field(source.id_column).type if source.id_column else pa.string()
    if pa.types.is_nested(id_kind) or _is_binary(id_kind):
        return f"column {source.id_column!r} is {id_kind}, expected text or numbers"
    if not _is_binary(kind):
        return f"column {source.image_column!r} is {kind}, expected encoded images as binary"
    return ""


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _type_problem(declared: pa.Schema, schema: pa.Schema) -> str:
    for field_ in declared:
        found = schema.field(field_.name).type
        if found != field_.type:
            return f"column {field_.name!r} is {found}, other shards have {field_.type}"
    return ""


def _parquet_extents(
    shard: StoredFile, footer: _Footer, source: Source, declared: pa.Schema, max_rows: int
) -> Iterator[Extent]:
    if footer.schema is None:
        # Its row count is unknown: the shard itself stands as one row.
        yield Extent(
            shard.path, shard.size_bytes, shard.version, 0, 1, 0.0, footer.reason, footer.message
        )
        return
    message = _schema_problem(source, footer.schema) or _type_problem(declared, footer.schema)
    reason = Reason.BAD_SCHEMA if message else None
    first = 0
    for num_rows, num_bytes in _join_groups(footer.group_rows, footer.group_bytes, max_rows):
        row_bytes = round(num_bytes / num_rows, 1)
        yield Extent(
            shard.path, shard.size_bytes, shard.version, first, num_rows, row_bytes, reason, message
        )
        first += num_rows


def _join_groups(
    rows: Sequence[int], sizes: Sequence[int], max_rows: int
) -> Iterator[tuple[int, int]]:
    """Join neighbouring row groups while they stay within max_rows; drop empty ones."""
    joined_rows = joined_bytes = 0
    for num_rows, num_bytes in zip(rows, sizes, strict=True):
        if joined_rows and joined_rows + num_rows > max_rows:
            yield joined_rows, joined_bytes
            joined_rows = joined_bytes = 0
        joined_rows += num_rows
        joined_bytes += num_bytes
    if joined_rows:
        yield joined_rows, joined_bytes
