"""Delta tables: one version's data files, without the rows that deletion vectors delete.

The library `deltalake` reads the log.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from pipeline.core.backoff import with_retries
from pipeline.core.errors import InputMissing, JobError
from pipeline.core.ranges import Ranges
from pipeline.core.semantics import SEMANTICS
from pipeline.job.section import Section
from pipeline.job.source import Source
from pipeline.sources.columns.arrow_types import is_list
from pipeline.sources.formats.lake_format import (
    LakeFormat,
    LiveFile,
    TableVersion,
    live_rows,
    relative_path,
)
from pipeline.sources.formats.table_view import (
    FIELD_ID,
    PARTITION_COLUMNS,
    PHYSICAL,
    VERSION,
)
from pipeline.storage.delta_tables import delta_error, delta_library, library_options
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from deltalake import DeltaTable

_SETTING = "source.format: delta"
_MODE, _NAME, _ID = (
    *("delta.columnMapping.mode", b"delta.columnMapping.physicalName"),
    b"delta.columnMapping.id",
)


class DeltaOptions(Section):
    """Which version of the table is read."""

    version: int | None = None
    """The number of the version. Default: the newest when the run plans."""
    timestamp: str | None = None
    """The newest version at this time instead (`2026-11-30T00:00:00Z`)."""


class Delta(LakeFormat):
    """The live rows of a Delta table."""

    name = "delta"
    semantics = SEMANTICS["delta"]
    Options = DeltaOptions
    versions = ("version", "timestamp")

    def read_version(self, store: Store, source: Source) -> TableVersion:
        table = _open(store, DeltaOptions(**source.options))
        try:
            schema, partition_columns = _schema(table), list(table.metadata().partition_columns)
            adds = pa.table(table.get_add_actions())
            vectors = pa.table(table.deletion_vectors())
        except Exception as error:
            raise delta_error(store, store.url(), "read", error) from error
        live = {
            _relative(store, path.as_py()): _live(mask)
            for path, mask in zip(*vectors.select(["filepath", "selection_vector"]), strict=True)
        }
        paths = [_relative(store, path) for path in adds.column("path").to_pylist()]
        columns = [_texts(adds, name) for name in partition_columns]
        values = [*zip(*columns, strict=True)] if columns else [()] * len(paths)
        return TableVersion(
            f"version {table.version()} of the Delta table {store.url()}",
            schema,
            [
                LiveFile(path, given, live.get(path), partition_columns)
                for path, given in zip(paths, values, strict=True)
            ],
            "VACUUM removed them; read a newer version (source.options.version)",
        )


def _open(store: Store, options: DeltaOptions) -> DeltaTable:
    deltalake, url = delta_library(_SETTING), store.url()
    storage_options = library_options(store, _SETTING)

    def open_once() -> DeltaTable:
        try:
            table: DeltaTable = deltalake.DeltaTable(url, storage_options=storage_options)
            newest = table.version()
            if options.version is not None and options.version > newest:
                raise JobError(
                    f"source.options.version = {options.version}: the newest version of the Delta "
                    f"table {url} is {newest}"
                )
            if (wanted := options.timestamp or options.version) is not None:
                table.load_as_version(wanted)
        except deltalake.exceptions.TableNotFoundError:
            if not store.exists(""):
                raise InputMissing(
                    f"source.uri = {url}: no such table; run again when it is there"
                ) from None
            raise JobError(
                f"source.uri = {url}: no Delta table there, it has no _delta_log"
            ) from None
        except JobError:
            raise
        except Exception as error:
            raise delta_error(store, url, "read", error) from error
        return table

    return with_retries(open_once)


def _relative(store: Store, path: str) -> str:
    """Return the path of a data file below its table, decoded.

    Raises:
        JobError: The file is outside, as those of shallow clones.
    """
    text = relative_path(store, unquote(path))
    if text is None:
        raise JobError(
            f"source.uri: {store.url()} is a shallow clone, which names files of another table, "
            f"first {unquote(path)}: read that table"
        )
    return text


def _live(mask: pa.ListScalar) -> Ranges:
    return live_rows(np.asarray(mask.values.to_numpy(zero_copy_only=False), np.bool_))


def _schema(table: DeltaTable) -> pa.Schema:
    """Return the columns of a table, each with its key in files."""
    mode = table.metadata().configuration.get(_MODE, "none")
    metadata = {
        PARTITION_COLUMNS: json.dumps(list(table.metadata().partition_columns)).encode(),
        VERSION: str(table.version()).encode(),
    }
    fields = [_keyed(column, mode) for column in pa.schema(table.schema())]
    return pa.schema(fields, metadata=metadata)


def _keyed(column: pa.Field, mode: str) -> pa.Field:
    """Return a field whose metadata is its key in files, at any depth."""
    given = column.metadata or {}
    keys: dict[bytes, bytes] = {}
    if mode == "name" and _NAME in given:
        keys[PHYSICAL] = given[_NAME]
    elif mode == "id" and _ID in given:
        keys[FIELD_ID] = given[_ID]
    return pa.field(column.name, _keyed_type(column.type, mode), column.nullable, keys or None)


def _keyed_type(dtype: pa.DataType, mode: str) -> pa.DataType:
    if pa.types.is_struct(dtype):
        return pa.struct([_keyed(dtype.field(i), mode) for i in range(dtype.num_fields)])
    if pa.types.is_map(dtype):
        return pa.map_(_keyed(dtype.key_field, mode), _keyed(dtype.item_field, mode))
    return pa.list_(_keyed(dtype.value_field, mode)) if is_list(dtype) else dtype


def _texts(adds: pa.Table, name: str) -> list[str | None]:
    """Return the values of a partition column for each file, as text that casts back."""
    column: Any = adds.column("partition").combine_chunks().field(name)
    values: list[str | None] = column.cast(pa.string()).to_pylist()
    return values


FORMAT = Delta()
