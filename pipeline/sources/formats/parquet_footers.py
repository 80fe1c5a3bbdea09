"""Footers of Parquet shards: their rows and extents, the columns to read, and what does not fit."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.core.arrays import as_array
from pipeline.core.backoff import BAD_BLOCK, BadBlockError, is_bad_block, is_damage, with_retries
from pipeline.core.errors import AccessDenied, JobError, PipelineError
from pipeline.core.failures import Reason
from pipeline.core.hive_paths import above_root
from pipeline.core.ranges import Ranges
from pipeline.job.condition import columns_in, parse
from pipeline.job.features import column_of
from pipeline.job.source import Source
from pipeline.sources.columns.arrow_types import is_binary, is_list, unified
from pipeline.sources.columns.column_path import (
    ColumnPath,
    NoColumnError,
    extract,
    find,
    paths_of,
    with_paths,
)
from pipeline.sources.columns.input_reader import NOT_IN_FOLDERS
from pipeline.sources.columns.matching import Known, TypedCondition, typed
from pipeline.sources.columns.pass_through import check_names, declare
from pipeline.sources.formats.table_view import TableFile, View, partition_columns, view_of
from pipeline.sources.input_columns import columns_of, folder_columns, folder_values
from pipeline.sources.uris.policy import policy_of
from pipeline.storage.store import Store, StoredFile

_FOOTER_THREADS = 16
_INT96_UNIT = "us"
_LARGEST = 2**62
_SAMPLE_SHARDS, _SAMPLE_BATCHES, _SAMPLE_ROWS = 16, 32, 32
_BUFFER_BYTES, _BATCH_ROWS = 1 << 20, 65_536


@dataclass(frozen=True)
class Needed:
    """The columns that a job needs of a shard."""

    read: list[str]
    """The columns to read; a field of a struct is `column.field`."""
    paths: dict[str, ColumnPath]
    """The columns of the job that are fields of structs."""


def named_columns(source: Source) -> list[str]:
    """Return the columns that a job names."""
    names = [*columns_of(source).names, *([source.id_column] if source.id_column else [])]
    return list(dict.fromkeys([*names, *source.passed.values()]))


def schema_of(source: Source, schema: pa.Schema, path: str) -> pa.Schema:
    """Return the columns of a shard without those in the names of its folders."""
    folders = folder_columns(source, path)
    if not folders.keys() & {*schema.names}:
        return schema
    return pa.schema(field for field in schema if field.name not in folders)


def needed_columns(source: Source, schema: pa.Schema, shard_path: str) -> Needed:
    """Return the columns to read of a shard that fits the job."""
    schema = schema_of(source, schema, shard_path)
    known = with_paths(schema, named_columns(source))
    columns = columns_of(source)
    names = [
        columns.path(name, known.field(name).type)
        for name in columns.names
        if known.get_field_index(name) >= 0  # the others are in the names of the folders
    ]
    names += [name for name in named_columns(source) if name not in columns.names]
    read: dict[str, None] = {}
    for name in names:
        try:
            find(name, schema)
        except NoColumnError:  # in the names of the folders
            continue
        read[name] = None
    return Needed([*read], paths_of(named_columns(source), schema))


def known_values(source: Source, shard: StoredFile, view: View | None = None) -> Known:
    """Return the values that all rows of a shard have, by its folders or its table.

    Args:
        view: The columns of the shard, if it was opened.
    """
    if not isinstance(shard, TableFile):
        values = folder_columns(source, shard.path)
        return {name: (None, value) for name, value in values.items()}
    values = dict(zip(partition_columns(shard.table), shard.given, strict=True))
    names = shard.certain if view is None else view.given
    return {name: (shard.table.field(name).type, values[name]) for name in names}


def typed_condition(
    source: Source, shard: StoredFile, view: View | None = None
) -> TypedCondition | None:
    """Return `source.where` for a shard; None if its columns decide, and it was not opened.

    Raises:
        ValueError: The condition does not fit its columns.
    """
    assert source.where is not None, "all rows are input"
    values, names = known_values(source, shard, view), columns_in(parse(source.where))
    known = tuple((name, values[name]) for name in names if name in values)
    schema = None if view is None else schema_of(source, view.schema, shard.path)
    return _typed_once(source.where, schema, known)


@functools.lru_cache(64)
def _typed_once(
    where: str, schema: pa.Schema | None, known: tuple[tuple[str, Any], ...]
) -> TypedCondition | None:
    return typed(parse(where), schema, dict(known))


def is_below(leaf: str, columns: Collection[str]) -> bool:
    """Tell whether a leaf of a Parquet file is one of some columns, or lies in one."""
    names = leaf.split(".")
    return any(".".join(names[:end]) in columns for end in range(1, len(names) + 1))


def schema_problem(source: Source, view: View, shard: StoredFile) -> str:
    """Return why a shard does not fit the job, or ''."""
    path = shard.path
    if view.problem:
        return view.problem
    hive, schema = folder_values(source, path), schema_of(source, view.schema, path)
    columns = columns_of(source)
    for name in named_columns(source):
        try:
            find(name, schema)
            continue
        except NoColumnError as error:
            problem = str(error)
        if name not in hive:
            return problem + above_root(source.uri, name)
        if name == source.id_column:
            return f"column {name!r} {NOT_IN_FOLDERS}"
        if name in columns.names and (trouble := columns.folder_trouble(name, hive[name])):
            return f"column {name!r} {trouble}"
    if source.where is not None:
        try:
            typed_condition(source, shard, view)
        except ValueError as error:
            return f"source.where: {error}"
    return _type_problem(source, with_paths(schema, named_columns(source)))


def _type_problem(source: Source, schema: pa.Schema) -> str:
    """Return which column has a type that the job cannot read, or ''."""
    columns = columns_of(source)
    id_type = schema.field(source.id_column).type if source.id_column else pa.string()
    if pa.types.is_nested(id_type) or is_binary(id_type):
        return f"column {source.id_column!r} is {id_type}, expected text or numbers"
    for name in columns.names:
        if schema.get_field_index(name) < 0:
            continue
        dtype = schema.field(name).type
        if not pa.types.is_null(dtype) and (trouble := columns.trouble(name, dtype)):
            return f"column {name!r} is {dtype}, {trouble}"
    return ""


@dataclass(frozen=True)
class Footer:
    """The content of a Parquet footer, or why it cannot be read."""

    group_rows: tuple[int, ...] = ()
    group_bytes: tuple[int, ...] = ()
    view: View | None = None
    """Its columns; None if the footer cannot be read."""
    reason: Reason | None = None
    message: str = ""
    chosen: Ranges | None = None
    """The rows that `source.where` chooses, deleted ones included; None: all."""

    def live_rows(self, shard: StoredFile) -> Ranges | None:
        """Return the rows that are neither deleted nor left out; None: all."""
        undeleted = shard.rows if isinstance(shard, TableFile) else None
        if self.chosen is None or undeleted is None:
            return undeleted if self.chosen is None else self.chosen
        return Ranges.in_at_least(2, [undeleted, self.chosen])

    def num_left_out(self, shard: StoredFile) -> int:
        """Return how many rows are left out that are not deleted."""
        if self.chosen is None:
            return 0
        undeleted = replace(self, chosen=Ranges((0, sum(self.group_rows)))).live_rows(shard)
        return len(undeleted or ()) - len(self.live_rows(shard) or ())


ChooseRows = Callable[[StoredFile, BinaryIO, pq.ParquetFile, Footer], Ranges]
"""Reads an open shard that fits the job, and returns the rows that it chooses."""


def is_unreadable(error: BaseException) -> bool:
    """Tell whether an error concerns this file alone, which is broken or denied, not the store."""
    return isinstance(error, AccessDenied) or is_damage(error)


@contextlib.contextmanager
def arrow_errors() -> Iterator[None]:
    """Turn all errors of Arrow and Python that damaged bytes cause into `ArrowException`.

    Raises:
        pa.ArrowException: The file is broken: names are not UTF-8, sizes exceed all memory, or a
            registered extension type, such as one of Ray, does not match its storage.
    """
    try:
        yield
    except (pa.ArrowException, OSError, PipelineError):
        raise
    except Exception as error:
        raise pa.ArrowInvalid(f"damaged: {type(error).__name__}: {error}") from error


def open_parquet(handle: BinaryIO, **options: Any) -> pq.ParquetFile:
    """Open a shard; `options` are those of `pyarrow.parquet.ParquetFile`.

    Checksums of pages are verified. INT96 timestamps are read as microseconds, since nanoseconds
    would wrap around silently beyond the year 2262.

    Raises:
        pa.ArrowException: The shard is broken.
    """
    with arrow_errors():
        return pq.ParquetFile(
            handle,
            coerce_int96_timestamp_unit=_INT96_UNIT,
            page_checksum_verification=True,
            **options,
        )


def read_footers(
    store: Store, shards: Sequence[StoredFile], source: Source, choose: ChooseRows | None = None
) -> list[Footer]:
    """Read the footers of shards, in the order of the shards, and choose rows."""
    views: _Views = {}  # a schema of 1,000 columns takes half a MiB
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        return [*pool.map(lambda shard: _read_footer(store, shard, source, views, choose), shards)]


_Views = dict[pa.Schema | bytes, View]
"""Columns of shards -> their view."""


def _read_footer(
    store: Store, shard: StoredFile, source: Source, views: _Views, choose: ChooseRows | None
) -> Footer:
    def read() -> Footer:
        try:
            with store.open(shard.path) as handle, arrow_errors():
                parquet = open_parquet(handle)
                footer = _judge_footer(parquet, source, shard, views)
                view = footer.view
                if choose is None or view is None or schema_problem(source, view, shard):
                    return footer
                return replace(footer, chosen=choose(shard, handle, parquet, footer))
        except OSError as error:
            if is_bad_block(error):
                raise BadBlockError(BAD_BLOCK) from error
            raise

    try:
        return with_retries(read)
    except FileNotFoundError:
        return Footer(reason=Reason.MISSING, message="vanished while it was listed")
    except (pa.ArrowException, OSError, BadBlockError, AccessDenied) as error:
        if not is_unreadable(error):
            raise
        return Footer(reason=Reason.UNREADABLE_SHARD, message=str(error))


def _judge_footer(
    parquet: pq.ParquetFile, source: Source, shard: StoredFile, views: _Views
) -> Footer:
    """Return the content of a footer.

    Args:
        views: Those of other shards; extended.

    Raises:
        pa.ArrowInvalid: The footer contradicts itself.
    """
    metadata, schema = parquet.metadata, parquet.schema_arrow
    schema.remove_metadata().to_string()  # raises if a name is not UTF-8, at any depth
    # `metadata.schema` refers to its metadata and back: they stay until garbage is collected.
    leaves = [*pq.ParquetSchema(metadata)]
    # Schemas are equal although the ids of their columns differ.
    key = schema.serialize().to_pybytes() if isinstance(shard, TableFile) else schema
    view = views.get(key) or views.setdefault(key, view_of(shard, schema))
    wanted = {*view.stored(named_columns(source))}
    compared = {*view.stored(columns_in(source.condition))} if source.condition else set[str]()
    chosen = [i for i, leaf in enumerate(leaves) if is_below(leaf.path, wanted | compared)]
    _require_chunks(metadata, [leaves[index].path for index in chosen])
    flat = [index for index in chosen if leaves[index].max_repetition_level == 0]
    read = [index for index in chosen if is_below(leaves[index].path, wanted)]
    rows: list[int] = []
    sizes: list[int] = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = {index: group.column(index) for index in chosen}
        rows.append(group.num_rows)
        sizes.append(sum(columns[index].total_uncompressed_size for index in read))
        if any(columns[index].num_values != rows[-1] for index in flat):
            raise pa.ArrowInvalid(f"damaged: row group {number} has columns of other lengths")
    if min(rows, default=0) < 0 or min(sizes, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise pa.ArrowInvalid(f"damaged: row groups of {sum(rows)} rows, not {metadata.num_rows}")
    return Footer(tuple(rows), tuple(sizes), view)


class _NoBytes(io.RawIOBase):
    """A file with a size and without bytes."""

    def __init__(self) -> None:
        self._position = 0
        self.was_read = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._position = _LARGEST if whence == io.SEEK_END else offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        self.was_read = True
        return b""  # Arrow would keep an exception, and all that its traceback refers to


def _require_chunks(metadata: pq.FileMetaData, columns: Sequence[str]) -> None:
    """Let Arrow parse the chunks of some columns in a footer by a call that raises errors.

    `metadata.row_group(i).column(j)` ends the process instead if they are damaged.

    Raises:
        pa.ArrowException: The footer is damaged.
    """
    if not metadata.num_row_groups or not columns:
        return
    handle = _NoBytes()
    parquet = pq.ParquetFile(handle, metadata=metadata, pre_buffer=True)
    try:
        parquet.read_row_groups(
            range(metadata.num_row_groups), columns=[*columns], use_threads=False
        )
    except (pa.ArrowException, OSError):
        if not handle.was_read:  # Arrow asks for bytes once it has accepted all chunks
            raise


def declare_columns(
    store: Store, source: Source, shards: Sequence[StoredFile], footers: Sequence[Footer]
) -> tuple[pa.Schema, pa.Schema]:
    """Unify the types of pass-through columns over the shards that fit the job, in order.

    An input column has its type in the first shard where that is not the type `null`.

    Raises:
        JobError: No shard has the columns that the job names.
    """
    check_names(source)
    if source.has_uris:
        policy_of(source, store.uri)  # raises before anything is started
    columns = columns_of(source)
    pairs = zip(shards, footers, strict=True)
    readable = [(shard, footer.view) for shard, footer in pairs if footer.view is not None]
    if not readable:
        return pa.schema([]), columns.fields(None)
    problems = [schema_problem(source, view, shard) for shard, view in readable]
    fitting = [pair for pair, problem in zip(readable, problems, strict=True) if not problem]
    if not fitting:
        raise JobError(f"source: no shard fits the job; {readable[0][0].path}: {problems[0]}")
    names = named_columns(source)
    seen = dict.fromkeys(schema_of(source, view.schema, shard.path) for shard, view in fitting)
    schemas = [with_paths(schema, names) for schema in seen]
    passed = _merged(schemas, source.passed.values(), unified)
    inputs = _merged(schemas, names, lambda one, other: other if pa.types.is_null(one) else one)
    inputs = _with_lengths(store, source, inputs, fitting)
    return declare(source, passed, fitting[0][0].path), columns.fields(inputs)


def _with_lengths(
    store: Store, source: Source, types: pa.Schema, shards: Sequence[tuple[StoredFile, View]]
) -> pa.Schema:
    """Return types in which lists of features have the length of the first list in the shards.

    Args:
        types: The input columns.
        shards: The shards that fit the job, with their columns.

    Raises:
        JobError: None of the first rows has a list with numbers.
    """
    features = {column_of(entry) for part in source.parts.values() for entry in part.features}
    for index, field in enumerate(types):
        is_fixed = pa.types.is_fixed_size_list(field.type)
        if field.name not in features or is_fixed or not is_list(field.type):
            continue
        sample = shards[:_SAMPLE_SHARDS]
        lengths = (_first_length(store, shard, view, field.name) for shard, view in sample)
        length = next(filter(None, lengths), 0)
        if not length:
            raise JobError(
                f"source: column {field.name!r} has no numbers in the first rows of "
                f"{sample[0][0].path} that can be read; a feature is a number, or a list of "
                "numbers of one length"
            )
        types = types.set(index, field.with_type(pa.list_(field.type.value_type, length)))
    return types


def _first_length(store: Store, shard: StoredFile, view: View, name: str) -> int:
    """Return the length of the first list with items in the first rows of a shard, or 0."""
    given = shard.given if isinstance(shard, TableFile) else ()
    try:
        column_path = find(name, view.schema)
        with store.open(shard.path) as handle, arrow_errors():
            batches = open_parquet(handle).iter_batches(
                batch_size=_SAMPLE_ROWS,
                columns=view.stored([name]),
                use_threads=False,
            )
            for stored in itertools.islice(batches, _SAMPLE_BATCHES):
                batch = view.shown(stored, [name], given)
                column = extract(as_array(batch.column(column_path.column)), column_path.fields)
                lengths = pc.list_value_length(column)
                if len(lengths := lengths.filter(pc.greater(lengths, 0))):
                    return int(lengths[0].as_py())
    except (NoColumnError, FileNotFoundError):  # its rows fail with the reason when they are read
        return 0
    except (pa.ArrowException, OSError, BadBlockError, AccessDenied) as error:
        if not is_unreadable(error):
            raise
    return 0


def _merged(
    schemas: Sequence[pa.Schema],
    names: Iterable[str],
    merge: Callable[[pa.DataType, pa.DataType], pa.DataType | None],
) -> pa.Schema:
    """Return the types of columns; a type that does not merge with earlier ones is ignored."""
    types: dict[str, pa.DataType] = {}
    for schema in schemas:
        for name in names:
            if (index := schema.get_field_index(name)) >= 0:
                dtype = schema.field(index).type
                if types.setdefault(name, dtype) != dtype:
                    types[name] = merge(types[name], dtype) or types[name]
    return pa.schema([*types.items()])
