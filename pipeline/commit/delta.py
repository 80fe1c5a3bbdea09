"""`sink.table: delta`: the table is a Delta log in `predictions/`.

The number of the manifest is Delta's application transaction.
"""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa

from pipeline.commit.layout import DELTA_LOG, Layout
from pipeline.commit.manifest import Manifest
from pipeline.commit.sink_table import SinkTable, id_of, partition_by, partition_values
from pipeline.core.backoff import with_retries
from pipeline.core.errors import JobError, PipelineError
from pipeline.core.hive_paths import values_of
from pipeline.core.output_folders import PREDICTIONS
from pipeline.storage.delta_tables import delta_error, delta_library, library_options

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from deltalake.transaction import AddAction, CommitProperties, RemoveAction

_SETTING = "sink.table: delta"


class Delta(SinkTable["DeltaTable"]):
    """The Delta table of a store."""

    format, title = "delta", "Delta table"
    remove = f"Delete {DELTA_LOG}"

    @property
    def name(self) -> str:
        return self.store.url(PREDICTIONS)

    @property
    def reader(self) -> str:
        return (
            "from deltalake import DeltaTable\n"
            f'rows = DeltaTable(f"{{root}}/{PREDICTIONS}").to_pyarrow_table()'
        )

    def open(self) -> DeltaTable | None:
        deltalake = delta_library(_SETTING)
        options = library_options(self.store, _SETTING)

        def open_once() -> DeltaTable | None:
            with self.errors("read"):
                try:
                    return deltalake.DeltaTable(self.name, storage_options=options)  # type: ignore[no-any-return]
                except deltalake.exceptions.TableNotFoundError:
                    return None

        return with_retries(open_once)

    @contextmanager
    def errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except PipelineError:
            raise
        except Exception as error:
            raise delta_error(self.store, self.name, verb, error) from error

    def number_of(self, layout: Layout, table: DeltaTable) -> int:
        return table.transaction_version(id_of(layout)) or 0

    def files_of(self, layout: Layout, table: DeltaTable) -> dict[str, RemoveAction]:
        from deltalake.transaction import RemoveAction

        now_ms = int(time.time() * 1000)
        wanted = partition_values(layout)
        removes = {}
        for row in pa.table(table.get_add_actions(flatten=False)).to_pylist():
            values = {name: _to_text(value) for name, value in (row.get("partition") or {}).items()}
            if all(values.get(name) == value for name, value in wanted.items()):
                path = unquote(row["path"])
                action = RemoveAction(path, True, now_ms, row["size_bytes"], values)
                removes[f"{PREDICTIONS}/{path}"] = action
        return removes

    def require_type(self, name: str, column_type: pa.DataType) -> None:
        from deltalake import Schema

        Schema.from_arrow(pa.schema([(name, column_type)]))

    def require_columns(
        self, table: DeltaTable, schema: pa.Schema, partition_by: list[str]
    ) -> None:
        columns = table.metadata().partition_columns
        if columns != partition_by:
            raise JobError(
                f"{self.name}: this Delta table is partitioned by ({', '.join(columns)}), the "
                f"job by ({', '.join(partition_by)}); write to another sink.uri"
            )
        from deltalake import Schema

        known = {field.name: field.type for field in table.schema().fields}
        for field in Schema.from_arrow(schema).fields:
            if known.get(field.name, field.type) != field.type:
                raise JobError(
                    f"{self.name}: column {field.name} of this Delta table is "
                    f"{known[field.name]}, the job makes {field.type}; write to another sink.uri"
                )

    def may_pass(self, cause: BaseException | None) -> bool:
        errors = delta_library(_SETTING).exceptions
        return isinstance(cause, OSError | errors.DeltaError)

    def write(
        self,
        layout: Layout,
        manifest: Manifest,
        table: DeltaTable | None,
        schema: pa.Schema,
        removed: Mapping[str, RemoveAction],
    ) -> None:
        from deltalake import Schema
        from deltalake.transaction import create_table_with_add_actions

        adds = _adds(layout, manifest)
        columns = partition_by(layout, manifest.partition_columns)
        if table is None:
            create_table_with_add_actions(
                self.name,
                Schema.from_arrow(schema),
                list(adds.values()),
                mode="error",
                partition_by=columns,
                configuration=self.options.properties,
                storage_options=library_options(self.store, _SETTING),
                commit_properties=self._properties(layout, manifest),
            )
            return
        known = {field.name for field in table.schema().fields}
        if fields := [field for field in schema if field.name not in known]:
            new = Schema.from_arrow(pa.schema(fields)).fields
            table.alter.add_columns(new, commit_properties=self._properties(None, manifest))
        actions: list[AddAction | RemoveAction] = [
            *(remove for path, remove in removed.items() if path not in adds),
            *(add for path, add in adds.items() if path not in removed),
        ]
        table.create_write_transaction(
            actions,
            mode="append",  # with explicit removals: `overwrite` would also remove what it adds
            schema=table.schema(),
            partition_by=columns,
            commit_properties=self._properties(layout, manifest),
        )

    def _properties(self, layout: Layout | None, manifest: Manifest) -> CommitProperties:
        """Describe a commit, without retries: they would ignore what others have committed."""
        from deltalake import CommitProperties, Transaction

        return CommitProperties(
            custom_metadata=self.properties_of(manifest),
            max_commit_retries=0,
            app_transactions=[Transaction(id_of(layout), manifest.number)] if layout else None,
        )


def _adds(layout: Layout, manifest: Manifest) -> dict[str, AddAction]:
    """Return path of a part -> action that adds a part of the manifest."""
    from deltalake.transaction import AddAction

    modified = dt.datetime.fromisoformat(manifest.created_at)
    adds = {}
    for part in manifest.parts:
        path = part.path.removeprefix(f"{PREDICTIONS}/")
        nulls = dict.fromkeys(manifest.partition_columns)
        values = values_of(part.path, manifest.partition_columns)
        adds[part.path] = AddAction(
            path=path,
            size=part.size_bytes,
            partition_values={**partition_values(layout), **nulls, **values},
            modification_time=int(modified.timestamp() * 1000),
            data_change=True,
            stats=json.dumps({"numRecords": part.num_rows}),
        )
    return adds


def _to_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None else str(value)
