"""`sink.table: delta`: `predictions/` is a Delta table of exactly the published parts.

Nothing is copied: the Delta log names the parts where they lie. One Delta commit removes the files
of a partition and adds the parts of the current manifest. It carries the number of the manifest as
Delta's application transaction, so that an older run cannot undo it. The log entry of the output
comes first and stays the authority. If a run was killed between the two, or another writer has
changed the partition, the next run commits the published parts again.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa

from pipeline.commit.layout import DELTA_LOG, Layout
from pipeline.commit.manifest import Manifest, log_numbers
from pipeline.commit.parts.part_file import open_part
from pipeline.core.backoff import TIME_LIMIT_S, with_retries
from pipeline.core.errors import InfraError, JobError, PipelineError
from pipeline.core.hive_paths import UNTYPED, values_of
from pipeline.core.output_folders import PREDICTIONS
from pipeline.job.job import Sink
from pipeline.process.failpoints import failpoint
from pipeline.storage.delta_tables import delta_error, delta_library, library_options
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from deltalake.transaction import AddAction, CommitProperties, RemoveAction

log = logging.getLogger(__name__)

_TRIES = 20
_WAIT_S, _WAIT_MAX_S = 0.1, 5.0
_SETTING = "sink.table: delta"


class Delta:
    """The Delta table of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def require(
        self, layout: Layout, partition_columns: Mapping[str, str], schema: pa.Schema
    ) -> None:
        """Check before a run computes anything that the table can take its predictions.

        Args:
            partition_columns: Column -> Arrow type of the folders inside the partition.

        Raises:
            JobError: The extra is missing, the store or a type is not supported, or the table has
                other columns, other partitions or another history.
        """
        delta_library(_SETTING)
        table_schema = _table_schema(layout, partition_columns, schema)
        for field in table_schema:
            _require_type(field.name, field.type)
        table = open_table(self._store)
        if table is not None:
            _new_fields(self._store, table, table_schema, _partition_by(layout, partition_columns))
            self._is_late(layout, table)  # the log is read after the table, which follows it

    def commit(self, layout: Layout, manifest: Manifest) -> None:
        """Make the table name exactly the parts of a manifest, which is the current one.

        A table that already does is left alone. Files that other writers have added or removed are
        corrected. A lower number never undoes a higher one.

        Raises:
            JobError: The table has other columns or partitions, or another history.
            InfraError: The store failed, or other writers commit to the table without pause.
        """
        try:
            self._commit(layout, manifest)
        except InfraError as error:
            raise InfraError(
                f"version {manifest.number} of {layout.name} is published, but the Delta table "
                f"does not name it yet: {error}; run again to commit it there"
            ) from error

    def _commit(self, layout: Layout, manifest: Manifest) -> None:
        deltalake, store, adds = delta_library(_SETTING), self._store, _adds(layout, manifest)
        give_up = time.monotonic() + TIME_LIMIT_S
        for attempt in range(1, _TRIES + 1):
            table = open_table(store)
            if table is None and UNTYPED in manifest.partition_columns.values():
                return  # without any row the types of the folders are unknown
            removes = {} if table is None else _removes(layout, table)
            if table is not None and _number_of(layout, table) >= manifest.number:
                if self._is_late(layout, table, manifest.number) or removes.keys() == adds.keys():
                    return
                where = f"the Delta table {_table_url(store)}: {layout.name}"
                log.warning("%s does not name the published files; it does now", where)
            failpoint("before_table")
            try:
                _commit_once(store, layout, manifest, table, adds, removes)
                return
            except PipelineError:
                raise
            except Exception as error:
                trouble = delta_error(store, _table_url(store), "commit to", error)
                # Another commit took this version, or this one succeeded and its answer was lost.
                may_pass = isinstance(error, OSError | deltalake.exceptions.DeltaError)
                if not may_pass or attempt == _TRIES or time.monotonic() > give_up:
                    raise trouble from error
            wait_s = min(_WAIT_MAX_S, _WAIT_S * 1.5**attempt)
            time.sleep(wait_s * (0.5 + secrets.randbelow(1000) / 1000))

    def _is_late(self, layout: Layout, table: DeltaTable, number: int | None = None) -> bool:
        """Tell whether the version in the table is newer than a number; None: only check the table.

        Raises:
            JobError: The table has a version that was never published in this output.
        """
        known, last = _number_of(layout, table), max(log_numbers(self._store, layout), default=0)
        if known > last:
            url, name = _table_url(self._store), layout.name
            raise JobError(
                f"{url}: this Delta table has version {known} of {name}, but the last one "
                f"published here is {last}: the table belongs to another history. Delete "
                f"{DELTA_LOG} (each partition's next run puts it into a new table), or write to "
                "another sink.uri"
            )
        return number is not None and known > number

    def differences(self, layout: Layout, manifest: Manifest) -> list[str]:
        """Return a line for each file in which the table and the manifest of a partition differ."""
        table = open_table(self._store)
        named = set() if table is None else {*_removes(layout, table)}
        parts, hint = {*_adds(layout, manifest)}, "run the job again, with sink.table: delta"
        problems = {path: "is not in the Delta table" for path in sorted(parts - named)}
        problems |= {
            path: "is in the Delta table and not published" for path in sorted(named - parts)
        }
        return [f"{PREDICTIONS}/{path} {problem}; {hint}" for path, problem in problems.items()]


def table_of(sink: Sink, store: Store) -> Delta | None:
    """Return the table that a sink asks for, or None."""
    return None if sink.table is None else Delta(store)


def _number_of(layout: Layout, table: DeltaTable) -> int:
    """Return the number of the version of a partition in the table; 0 if it has none."""
    return table.transaction_version(_app(layout)) or 0


def _commit_once(
    store: Store,
    layout: Layout,
    manifest: Manifest,
    table: DeltaTable | None,
    adds: Mapping[str, AddAction],
    removes: Mapping[str, RemoveAction],
) -> None:
    """Make one Delta commit; the first one creates the table."""
    from deltalake import Schema
    from deltalake.transaction import create_table_with_add_actions

    with open_part(store, manifest.parts[0].path) as part:
        inside = part.schema_arrow
    schema = _table_schema(layout, manifest.partition_columns, inside)
    partition_by = _partition_by(layout, manifest.partition_columns)
    if table is None:
        create_table_with_add_actions(
            _table_url(store),
            Schema.from_arrow(schema),
            list(adds.values()),
            mode="error",
            partition_by=partition_by,
            storage_options=library_options(store, _SETTING),
            commit_properties=_properties(layout, manifest),
        )
        return
    fields = _new_fields(store, table, schema, partition_by)
    if fields:
        new = Schema.from_arrow(pa.schema(fields)).fields
        table.alter.add_columns(new, commit_properties=_properties(None, manifest))
    actions: list[AddAction | RemoveAction] = [
        *(remove for path, remove in removes.items() if path not in adds),
        *(add for path, add in adds.items() if path not in removes),
    ]
    table.create_write_transaction(
        actions,
        mode="append",  # with explicit removals: `overwrite` would also remove what it adds
        schema=table.schema(),
        partition_by=partition_by,
        commit_properties=_properties(layout, manifest),
    )


def _properties(layout: Layout | None, manifest: Manifest) -> CommitProperties:
    """Describe a commit; without retries, as a retry would ignore what others have committed."""
    from deltalake import CommitProperties, Transaction

    return CommitProperties(
        custom_metadata={
            "pipeline.version": manifest.number,
            "pipeline.fingerprint": manifest.fingerprint,
            "pipeline.run_id": manifest.run_id,
        },
        max_commit_retries=0,
        app_transactions=[Transaction(_app(layout), manifest.number)] if layout else None,
    )


def _app(layout: Layout) -> str:
    return f"batch-inference-pipeline/{layout.name}"


def _adds(layout: Layout, manifest: Manifest) -> dict[str, AddAction]:
    """Return path in the table -> action that adds a part of the manifest."""
    from deltalake.transaction import AddAction

    modified = dt.datetime.fromisoformat(manifest.created_at)
    adds = {}
    for part in manifest.parts:
        path = part.path.removeprefix(f"{PREDICTIONS}/")
        nulls = dict.fromkeys(manifest.partition_columns)
        values = values_of(part.path, manifest.partition_columns)
        adds[path] = AddAction(
            path=path,
            size=part.size_bytes,
            partition_values={**_partition_values(layout), **nulls, **values},
            modification_time=int(modified.timestamp() * 1000),
            data_change=True,
            stats=json.dumps({"numRecords": part.num_rows}),
        )
    return adds


def _removes(layout: Layout, table: DeltaTable) -> dict[str, RemoveAction]:
    """Return path in the table -> action that removes a file of this partition."""
    from deltalake.transaction import RemoveAction

    now_ms = int(time.time() * 1000)
    wanted = _partition_values(layout)
    removes = {}
    for row in pa.table(table.get_add_actions(flatten=False)).to_pylist():
        values = {name: _to_text(value) for name, value in (row.get("partition") or {}).items()}
        if all(values.get(name) == value for name, value in wanted.items()):
            path = unquote(row["path"])
            removes[path] = RemoveAction(path, True, now_ms, row["size_bytes"], values)
    return removes


def _to_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None else str(value)


def _partition_values(layout: Layout) -> dict[str, str | None]:
    if layout.partition is None:
        return {}
    name, _, value = layout.partition.partition("=")
    return {name: value}


def _partition_by(layout: Layout, partition_columns: Mapping[str, str]) -> list[str]:
    return [*_partition_values(layout), *partition_columns]


def _table_schema(
    layout: Layout, partition_columns: Mapping[str, str], schema: pa.Schema
) -> pa.Schema:
    """Return the columns of the files and those of the folders."""
    folder_types = {**dict.fromkeys(_partition_values(layout), "string"), **partition_columns}
    clash = set(_partition_values(layout)) & set(schema.names)
    if clash:
        raise JobError(
            f"sink.partition: the predictions have a column {min(clash)}, too; a Delta table needs "
            "another name for the partition"
        )
    inside = [pa.field(f.name, f.type) for f in schema if f.name not in folder_types]
    outside = [
        pa.field(name, pa.type_for_alias(text))
        for name, text in folder_types.items()
        if text != UNTYPED
    ]
    return pa.schema([*inside, *outside])


def _require_type(name: str, column_type: pa.DataType) -> None:
    """Refuse types that Delta Lake does not have; the library would convert some silently."""
    from deltalake import Schema

    is_bad = pa.types.is_unsigned_integer(column_type) or pa.types.is_null(column_type)
    is_bad = is_bad or (pa.types.is_timestamp(column_type) and column_type.unit == "ns")
    try:
        Schema.from_arrow(pa.schema([(name, column_type)]))
    except Exception:  # noqa: BLE001  # the library raises plain Exception
        is_bad = True
    if is_bad:
        raise JobError(
            f"sink.table: column {name} is {column_type}, which a Delta table cannot hold; declare "
            "another type in source.casts (int64, timestamp[us]) or leave the column out"
        )
    for index in range(column_type.num_fields):
        _require_type(name, column_type.field(index).type)


def _new_fields(
    store: Store, table: DeltaTable, schema: pa.Schema, partition_by: list[str]
) -> list[pa.Field]:
    """Return the columns that the table does not have.

    Raises:
        JobError: A column has another type in the table, or the table has other partitions.
    """
    from deltalake import Schema

    columns = table.metadata().partition_columns
    if columns != partition_by:
        raise JobError(
            f"{_table_url(store)}: this Delta table is partitioned by ({', '.join(columns)}), the "
            f"job by ({', '.join(partition_by)}); write to another sink.uri"
        )
    known = {field.name: field.type for field in table.schema().fields}
    new = []
    for field, wanted in zip(schema, Schema.from_arrow(schema).fields, strict=True):
        if field.name not in known:
            new.append(field)
        elif known[field.name] != wanted.type:
            raise JobError(
                f"{_table_url(store)}: column {field.name} of this Delta table is "
                f"{known[field.name]}, the job makes {wanted.type}; write to another sink.uri"
            )
    return new


def open_table(store: Store) -> DeltaTable | None:
    """Open the table; None if there is none.

    Raises:
        InfraError: It cannot be read.
    """
    deltalake = delta_library(_SETTING)
    options = library_options(store, _SETTING)

    def open_once() -> DeltaTable | None:
        try:
            return deltalake.DeltaTable(_table_url(store), storage_options=options)  # type: ignore[no-any-return]
        except deltalake.exceptions.TableNotFoundError:
            return None
        except Exception as error:
            raise delta_error(store, _table_url(store), "read", error) from error

    return with_retries(open_once)


def _table_url(store: Store) -> str:
    """Return the URL of the table."""
    return store.url(PREDICTIONS)
