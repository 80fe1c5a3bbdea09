"""`sink.table: delta`: `predictions/` is a Delta table of exactly the published parts.

Nothing is copied: its log names the parts where they lie. One Delta commit drops what it names of a
partition and adds the parts of the current manifest. It carries the manifest's number as Delta's
application transaction, so that doing it again does nothing and an older run cannot undo it. Our
own log entry comes first and stays the authority; a run that was killed in between is caught up
with by the next one.
"""

from __future__ import annotations

import datetime as dt
import json
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InfraError, JobError, PipelineError
from pipeline.failpoints import reach
from pipeline.hive import values_of
from pipeline.layout import Layout
from pipeline.manifest import Manifest
from pipeline.storage import Store
from pipeline.storage_errors import redact, secret_values

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from deltalake.transaction import AddAction, CommitProperties, RemoveAction

_FOLDER = "predictions"
_TRIES = 20
_WAIT_S, _WAIT_MAX_S = 0.1, 5.0


def require_delta(
    store: Store, layout: Layout, partition_columns: Mapping[str, str], schema: pa.Schema
) -> None:
    """Check before a night's work that the table can take what it will make.

    Raises:
        JobError: The extra is missing, the store or a type is not supported, or the table that is
            there has other columns or partitions.
    """
    _library()
    table_schema = _table_schema(layout, partition_columns, schema)
    for field in table_schema:
        _require_type(field.name, field.type)
    table = _open(store)
    if table is not None:
        _new_fields(store, table, table_schema, _partition_by(layout, partition_columns))


def commit_delta(store: Store, layout: Layout, manifest: Manifest) -> None:
    """Make the Delta table name exactly the parts of the current manifest; safe to repeat.

    Raises:
        JobError: The table has other columns or partitions.
        InfraError: The store failed, or others commit to the table all the time.
    """
    deltalake = _library()
    trouble = ""
    for attempt in range(_TRIES):
        if attempt:
            wait_s = min(_WAIT_MAX_S, _WAIT_S * 1.5**attempt)
            time.sleep(wait_s * (0.5 + secrets.randbelow(1000) / 1000))
        table = _open(store)
        if table is not None and (table.transaction_version(_app(layout)) or 0) >= manifest.number:
            return
        reach("before_table")
        try:
            _commit_once(store, layout, manifest, table)
        except PipelineError:
            raise
        except deltalake.exceptions.DeltaError as error:
            # Another commit took this version, or ours got through and its answer was lost: look.
            trouble = str(error)
        except Exception as error:  # the library raises OSError, ValueError and plain Exception
            raise _failed(store, "commit to", error) from error
    raise InfraError(
        f"{_url(store)}: the Delta commit of version {manifest.number} failed {_TRIES} times "
        f"({redact(trouble, secret_values(store.storage_options))}); run again"
    )


def _commit_once(
    store: Store, layout: Layout, manifest: Manifest, table: DeltaTable | None
) -> None:
    from deltalake import Schema
    from deltalake.transaction import create_table_with_add_actions

    with store.open(manifest.parts[0].path) as handle:
        inside = pq.ParquetFile(handle).schema_arrow
    schema = _table_schema(layout, manifest.partition_columns, inside)
    by = _partition_by(layout, manifest.partition_columns)
    adds = _adds(layout, manifest)
    if table is None:
        create_table_with_add_actions(
            _url(store),
            Schema.from_arrow(schema),
            list(adds.values()),
            mode="error",
            partition_by=by,
            storage_options=_options(store),
            commit_properties=_properties(layout, manifest),
        )
        return
    fields = _new_fields(store, table, schema, by)
    if fields:
        new = Schema.from_arrow(pa.schema(fields)).fields
        table.alter.add_columns(new, commit_properties=_properties(None, manifest))
    removes = _removes(layout, table)
    actions: list[AddAction | RemoveAction] = [
        *(remove for path, remove in removes.items() if path not in adds),
        *(add for path, add in adds.items() if path not in removes),
    ]
    table.create_write_transaction(
        actions,
        mode="append",  # with removals of our own: `overwrite` would also remove what it adds
        schema=table.schema(),
        partition_by=by,
        commit_properties=_properties(layout, manifest),
    )


def _properties(layout: Layout | None, manifest: Manifest) -> CommitProperties:
    """Describe a commit; without retries, because a retry would not look at what others did."""
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
    """Return what the manifest names, by path in the table."""
    from deltalake.transaction import AddAction

    modified = dt.datetime.fromisoformat(manifest.created_at)
    adds = {}
    for part in manifest.parts:
        path = part.path.removeprefix(f"{_FOLDER}/")
        nothing = dict.fromkeys(manifest.partition_columns)
        values = values_of(part.path, manifest.partition_columns)
        adds[path] = AddAction(
            path=path,
            size=part.size_bytes,
            partition_values={**_partition_values(layout), **nothing, **values},
            modification_time=int(modified.timestamp() * 1000),
            data_change=True,
            stats=json.dumps({"numRecords": part.num_rows}),
        )
    return adds


def _removes(layout: Layout, table: DeltaTable) -> dict[str, RemoveAction]:
    """Return what the table names of this partition, by path."""
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
    by = {**dict.fromkeys(_partition_values(layout), "string"), **partition_columns}
    clash = set(_partition_values(layout)) & set(schema.names)
    if clash:
        raise JobError(
            f"sink.partition: the predictions have a column {min(clash)}, too; a Delta table needs "
            "another name for the partition"
        )
    inside = [pa.field(f.name, f.type) for f in schema if f.name not in by]
    return pa.schema(
        [*inside, *(pa.field(name, pa.type_for_alias(kind)) for name, kind in by.items())]
    )


def _require_type(name: str, kind: pa.DataType) -> None:
    """Refuse what Delta Lake has no type for; the library would take some of it for another."""
    from deltalake import Schema

    is_bad = pa.types.is_unsigned_integer(kind) or pa.types.is_null(kind)
    is_bad = is_bad or (pa.types.is_timestamp(kind) and kind.unit == "ns")
    try:
        Schema.from_arrow(pa.schema([(name, kind)]))
    except Exception:  # noqa: BLE001  # the library raises plain Exception
        is_bad = True
    if is_bad:
        raise JobError(
            f"sink.table: column {name} is {kind}, which a Delta table cannot hold; declare "
            "another type in source.casts (int64, timestamp[us]) or leave the column out"
        )
    for index in range(kind.num_fields):
        _require_type(name, kind.field(index).type)


def _new_fields(
    store: Store, table: DeltaTable, schema: pa.Schema, partition_by: list[str]
) -> list[pa.Field]:
    """Return the columns that the table does not have yet.

    Raises:
        JobError: A column has another type there, or the table other partitions.
    """
    from deltalake import Schema

    there = table.metadata().partition_columns
    if there != partition_by:
        raise JobError(
            f"{_url(store)}: this Delta table is partitioned by ({', '.join(there)}), the job by "
            f"({', '.join(partition_by)}); write to another sink.uri"
        )
    known = {field.name: field.type for field in table.schema().fields}
    new = []
    for field, wanted in zip(schema, Schema.from_arrow(schema).fields, strict=True):
        if field.name not in known:
            new.append(field)
        elif known[field.name] != wanted.type:
            raise JobError(
                f"{_url(store)}: column {field.name} of this Delta table is {known[field.name]}, "
                f"the job makes {wanted.type}; write to another sink.uri"
            )
    return new


def _open(store: Store) -> DeltaTable | None:
    deltalake = _library()
    options = _options(store)
    try:
        return deltalake.DeltaTable(_url(store), storage_options=options)  # type: ignore[no-any-return]
    except deltalake.exceptions.TableNotFoundError:
        return None
    except Exception as error:
        raise _failed(store, "read", error) from error


def _failed(store: Store, verb: str, error: Exception) -> InfraError:
    reason = redact(str(error), secret_values(store.storage_options))
    return InfraError(f"cannot {verb} the Delta table {_url(store)}: {reason}")


def _url(store: Store) -> str:
    return store.url(_FOLDER)


def _library() -> Any:
    try:
        import deltalake
        import deltalake.exceptions
    except ImportError as error:
        raise JobError(
            "sink.table: delta needs the extra: pip install 'batch-inference-pipeline[delta]'"
        ) from error
    return deltalake


def _options(store: Store) -> dict[str, str]:
    """Say in the library's words how to reach the store, with the credentials that s3fs finds.

    Raises:
        JobError: It is a store of another kind.
    """
    if not store.is_object_store:
        return {}
    if not store.uri.startswith("s3://"):
        protocol = store.uri.partition("://")[0]
        raise JobError(
            f"sink.table: a Delta table can be on local disk or s3://, not {protocol}://"
        )
    from botocore.session import Session  # a part of the extra `s3`

    given = store.storage_options
    client = given.get("client_kwargs", {})
    session = Session(profile=given.get("profile"))
    # Connects to nothing: it works out region and endpoint from options, variables and files.
    resolved = session.create_client(
        "s3",
        region_name=client.get("region_name"),
        endpoint_url=given.get("endpoint_url") or client.get("endpoint_url"),
    ).meta
    is_aws = ".amazonaws.com" in resolved.endpoint_url
    found = {
        "aws_region": resolved.region_name,
        "aws_endpoint_url": None if is_aws else resolved.endpoint_url,
        "aws_access_key_id": given.get("key"),
        "aws_secret_access_key": given.get("secret"),
        "aws_session_token": given.get("token"),
        "aws_skip_signature": "true" if given.get("anon") else None,
        "aws_allow_http": "true" if resolved.endpoint_url.startswith("http://") else None,
        "aws_conditional_put": "etag",
    }
    if not (given.get("key") or given.get("anon")):
        credentials = session.get_credentials()
        if credentials is not None:
            frozen = credentials.get_frozen_credentials()
            found["aws_access_key_id"] = frozen.access_key
            found["aws_secret_access_key"] = frozen.secret_key
            found["aws_session_token"] = frozen.token
    return {name: value for name, value in found.items() if value}
