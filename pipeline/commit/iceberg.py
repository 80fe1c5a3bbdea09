"""`sink.table: iceberg`: the table is one of a catalog, with its metadata in `iceberg/`.

The number of the manifest is a property of the table. The parts have no field ids: the table has a
name mapping. The values of folders are those of identity partitions, which readers take from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, Part
from pipeline.commit.sink_table import SinkTable, id_of, partition_values
from pipeline.core.backoff import with_retries
from pipeline.core.errors import JobError
from pipeline.core.hive_paths import values_of
from pipeline.core.output_folders import ICEBERG
from pipeline.job.iceberg_catalog import IcebergCatalog
from pipeline.storage.iceberg_tables import (
    iceberg_errors,
    iceberg_library,
    open_catalog,
    refuse_code,
)

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table, Transaction

_SETTING = "sink.table: iceberg"
_NAME_MAPPING = "schema.name-mapping.default"
_RETRIES = "commit.retry.num-retries"


class Iceberg(SinkTable["Table"]):
    """An Iceberg table whose data files are the parts of a store."""

    format, title = "iceberg", "Iceberg table"
    remove = "Drop the table without its files"

    @property
    def name(self) -> str:
        return str(self.options.table)

    @property
    def reader(self) -> str:
        catalog = self.options.catalog
        arguments = [repr(catalog)]
        if isinstance(catalog, IcebergCatalog):
            given = catalog.model_dump(exclude={"name"}, exclude_none=True)
            arguments = [
                repr(catalog.name),
                *(f"{name}={value!r}" for name, value in given.items()),
            ]
        return (
            "from pyiceberg.catalog import load_catalog\n"
            f"table = load_catalog({', '.join(arguments)}).load_table({self.name!r})\n"
            "rows = table.scan().to_arrow()"
        )

    @cached_property
    def _catalog(self) -> Catalog:
        assert self.options.catalog is not None
        return open_catalog(self.options.catalog, self.store, _SETTING)

    def errors(self, verb: str) -> AbstractContextManager[None]:
        return iceberg_errors(self.store, f"cannot {verb} the Iceberg table {self.name}")

    def open(self) -> Table | None:
        iceberg_library(_SETTING)
        from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError

        def open_once() -> Table | None:
            catalog = self._catalog
            with self.errors("read"):
                try:
                    table = catalog.load_table(self.name)
                except (NoSuchTableError, NoSuchNamespaceError):
                    return None
            refuse_code(table.properties, self.name)
            return table

        return with_retries(open_once)

    def number_of(self, layout: Layout, table: Table) -> int:
        return int(table.properties.get(id_of(layout), 0))

    def parts_of(self, manifest: Manifest) -> set[str]:
        # No scan finds a file without rows, so an empty part would seem to be missing.
        return {part.path for part in manifest.parts if part.num_rows}

    def files_of(self, layout: Layout, table: Table) -> dict[str, DataFile]:
        from pyiceberg.expressions import AlwaysTrue, BooleanExpression, EqualTo, Reference
        from pyiceberg.expressions.literals import literal

        wanted, root, files = partition_values(layout), f"{self.store.url('')}/", {}
        if not wanted.keys() <= {*_partition_by(table, table.spec().spec_id)}:
            return {}
        row_filter: BooleanExpression = AlwaysTrue()
        for name, value in wanted.items():
            row_filter = EqualTo(term=Reference(name), value=literal(value))
        with self.errors("read"):
            tasks = [*table.scan(row_filter=row_filter).plan_files()]
        for task in tasks:
            if not wanted.keys() <= {*_partition_by(table, task.file.spec_id)}:
                raise JobError(
                    f"{self.name}: {task.file.file_path} may have rows of {layout.name} and of "
                    "others, as this Iceberg table had other partitions; rewrite it there"
                )
            path = task.file.file_path.removeprefix(root)
            files[f"{path} without some rows" if task.delete_files else path] = task.file
        return files

    def require_type(self, name: str, column_type: pa.DataType) -> None:
        from pyiceberg.catalog import load_catalog

        if pa.types.is_float16(column_type):
            raise TypeError  # the library would call the column float, which few readers accept
        catalog = load_catalog("types", type="in-memory")
        catalog.create_table_transaction("a.b", pa.schema([(name, column_type)]), location="c")

    def require_columns(self, table: Table, schema: pa.Schema, partition_by: list[str]) -> None:
        columns = _partition_by(table, table.spec().spec_id)
        if columns != partition_by:
            raise JobError(
                f"{self.name}: this Iceberg table is partitioned by ({', '.join(columns)}), the "
                f"job by ({', '.join(partition_by)}); write to another table"
            )
        self._with_columns(table.transaction(), schema)

    def _with_columns(self, change: Transaction, schema: pa.Schema) -> None:
        """Add the columns that the table lacks, and the names of columns that have none.

        Raises:
            JobError: A column has another type, or the table needs one that the job does not have.
        """
        known = {field.name: field for field in change.table_metadata.schema().fields}
        for field in schema:
            try:
                with change.update_schema() as update:
                    update.union_by_name(pa.schema([field]))
                after = change.table_metadata.schema().find_type(field.name)
                fits = field.name not in known or after == known[field.name].field_type
            except Exception:  # noqa: BLE001  # the library raises plain errors
                fits = False
            if not fits:
                raise JobError(
                    f"{self.name}: column {field.name} of this Iceberg table is "
                    f"{known[field.name].field_type}, the job makes {field.type}; write to another "
                    "table"
                )
        for name, field in known.items():
            if field.required and name not in schema.names:
                raise JobError(
                    f"{self.name}: this Iceberg table requires the column {name}, which the job "
                    "does not make; make it optional there, or write to another table"
                )
        if change.table_metadata.name_mapping() is None:
            names = change.table_metadata.schema().name_mapping.model_dump_json()
            change.set_properties({_NAME_MAPPING: names})

    def may_pass(self, cause: BaseException | None) -> bool:
        from pyiceberg import exceptions as errors
        from sqlalchemy.exc import DatabaseError

        return isinstance(
            cause,
            OSError
            | DatabaseError
            | errors.CommitFailedException
            | errors.CommitStateUnknownException
            | errors.NamespaceAlreadyExistsError
            | errors.NoSuchTableError
            | errors.ServerError
            | errors.ServiceUnavailableError
            | errors.TableAlreadyExistsError
            | errors.TooManyRequestsError
            | errors.ValidationException,
        )

    def write(
        self,
        layout: Layout,
        manifest: Manifest,
        table: Table | None,
        schema: pa.Schema,
        removed: Mapping[str, DataFile],
    ) -> None:
        change = self._creation(schema, layout, manifest) if table is None else _alone(table)
        self._with_columns(change, schema)
        change.set_properties({id_of(layout): str(manifest.number)})
        properties = {name: str(value) for name, value in self.properties_of(manifest).items()}
        with change.update_snapshot(properties).overwrite() as snapshot:
            for path in sorted(removed.keys() - self.parts_of(manifest)):
                snapshot.delete_data_file(removed[path])
            for part in manifest.parts:
                if part.num_rows and part.path not in removed:
                    snapshot.append_data_file(self._data_file(layout, manifest, part, change))
        change.commit_transaction()

    def _creation(self, schema: pa.Schema, layout: Layout, manifest: Manifest) -> Transaction:
        namespace = self.name.rpartition(".")[0]
        if not self._catalog.namespace_exists(namespace):
            self._catalog.create_namespace(namespace)
        # The output owns the parts. Engines that expire snapshots would delete a part that another
        # writer had removed from the table, although it is there again.
        properties = {"gc.enabled": "false", **self.options.properties}
        change = self._catalog.create_table_transaction(
            self.name, schema, self.store.url(ICEBERG), properties=properties
        )
        with change.update_spec() as spec:
            for column in [*partition_values(layout), *manifest.partition_columns]:
                spec.add_identity(column)
        return change

    def _data_file(
        self, layout: Layout, manifest: Manifest, part: Part, change: Transaction
    ) -> DataFile:
        from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
        from pyiceberg.typedef import Record

        columns = manifest.partition_columns
        values: dict[str, Any] = {**partition_values(layout), **dict.fromkeys(columns)}
        for name, text in values_of(part.path, columns).items():
            value = pc.cast(pa.scalar(text, pa.string()), pa.type_for_alias(columns[name]))
            if pa.types.is_date32(value.type):
                value = value.cast(pa.int32())  # days since 1970
            values[name] = value.as_py()
        file = DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=self.store.url(part.path),
            file_format=FileFormat.PARQUET,
            partition=Record(*values.values()),
            record_count=part.num_rows,
            file_size_in_bytes=part.size_bytes,
        )
        file.spec_id = change.table_metadata.default_spec_id
        return file


def _partition_by(table: Table, spec_id: int) -> list[str]:
    """Return the columns that partition the files of a specification, with the transforms."""
    from pyiceberg.transforms import IdentityTransform

    schema, columns = table.schema(), []
    for field in table.specs()[spec_id].fields:
        name = schema.find_column_name(field.source_id) or str(field.source_id)
        is_plain = isinstance(field.transform, IdentityTransform)
        columns.append(name if is_plain else f"{field.transform}({name})")
    return columns


def _alone(table: Table) -> Transaction:
    """Begin a change that the library does not try again: it would ignore what others commit."""
    properties = {**table.metadata.properties, _RETRIES: "0"}
    table.metadata = table.metadata.model_copy(update={"properties": properties})
    return table.transaction()
