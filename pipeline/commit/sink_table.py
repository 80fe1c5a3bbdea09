"""`sink.table`: the published parts are also a table, which names them where they lie.

Nothing is copied. One commit of the table removes the files of a partition and adds the parts of
the current manifest. It carries the number of the manifest, so that an older run cannot undo it.
The log entry of the output comes first and stays the authority: gates judge before it, so the table
needs no branch for an audit. If a run was killed between the two, or another writer has changed the
partition, the next run commits the published parts again.
"""

from __future__ import annotations

import logging
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Generic, TypeVar

import pyarrow as pa

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, log_numbers
from pipeline.commit.parts.part_file import open_part
from pipeline.core.backoff import TIME_LIMIT_S
from pipeline.core.errors import InfraError, JobError, PipelineError
from pipeline.core.hive_paths import UNTYPED
from pipeline.job.job import TableOptions
from pipeline.process.failpoints import failpoint
from pipeline.storage.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")
"""A table as its library opens it: one version, which never changes."""

_NO_OPTIONS = TableOptions()
_TRIES = 20
_WAIT_S, _WAIT_MAX_S = 0.1, 5.0


class SinkTable(ABC, Generic[T]):
    """The table of an output, in one format."""

    format: ClassVar[str]
    """The value of `sink.table`."""
    title: ClassVar[str]
    """What it is in messages, such as `Delta table`."""
    remove: ClassVar[str]
    """How a table of another history is removed."""

    def __init__(self, store: Store, options: TableOptions = _NO_OPTIONS) -> None:
        self.store, self.options = store, options

    @property
    def reference(self) -> dict[str, Any]:
        """Return the fields of the section `sink` that name the table, for the manifest."""
        options = self.options.model_dump(exclude={"properties"}, exclude_none=True)
        return {"table": self.format, "table_options": options}

    @property
    @abstractmethod
    def name(self) -> str:
        """Name or URL of the table, for messages."""

    @property
    @abstractmethod
    def reader(self) -> str:
        """Python code that reads all rows, for the dataset card; it may use its name `root`."""

    @abstractmethod
    def open(self) -> T | None:
        """Open the newest version of the table; None if there is no table.

        Raises:
            JobError: The extra is missing, or the library cannot reach the catalog or the store.
            InfraError: It cannot be read.
        """

    @abstractmethod
    def number_of(self, layout: Layout, table: T) -> int:
        """Return the number of the version of a partition in the table; 0 if it has none."""

    @abstractmethod
    def files_of(self, layout: Layout, table: T) -> Mapping[str, Any]:
        """Return path -> file of this partition in the table.

        A path is relative to `sink.uri`, as that of a part, or a URI of another place. If rows of
        the file are deleted, the path has an addition.
        """

    @abstractmethod
    def require_type(self, name: str, column_type: pa.DataType) -> None:
        """Refuse a type that the format does not have.

        Raises:
            Exception: Any, of the library.
        """

    @abstractmethod
    def require_columns(self, table: T, schema: pa.Schema, partition_by: list[str]) -> None:
        """Check that the table can take these columns; those that it lacks can be added.

        Raises:
            JobError: A column has another type in the table, or the table has other partitions.
        """

    @abstractmethod
    def errors(self, verb: str) -> AbstractContextManager[None]:
        """Turn errors of the library in the body into ours, with the raw one as the cause.

        Args:
            verb: What the body does to the table: `read`, `commit to`.
        """

    @abstractmethod
    def write(
        self,
        layout: Layout,
        manifest: Manifest,
        table: T | None,
        schema: pa.Schema,
        removed: Mapping[str, Any],
    ) -> None:
        """Replace the files of the partition by the parts of the manifest, in one commit.

        It fails if the table is no longer the version that it builds on.

        Args:
            table: That version; None: there is no table, and the commit creates it.
            schema: The columns of the parts and of their folders.
            removed: The files of the partition, as by `files_of`.
        """

    @abstractmethod
    def may_pass(self, cause: BaseException | None) -> bool:
        """Tell whether the cause of a failed commit may be gone at the next one.

        Another commit took this version, or this one succeeded and its answer was lost.
        """

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
        table = self.open()
        columns = _table_schema(layout, partition_columns, schema)
        for field in columns:
            self._require_types(field.name, field.type)
        if table is not None:
            self.require_columns(table, columns, partition_by(layout, partition_columns))
            self._is_late(layout, table)  # the log is read after the table, which follows it

    def _require_types(self, name: str, column_type: pa.DataType) -> None:
        """Refuse types that the format does not have; libraries would convert some silently."""
        is_bad = pa.types.is_unsigned_integer(column_type) or pa.types.is_null(column_type)
        is_bad = is_bad or (pa.types.is_timestamp(column_type) and column_type.unit == "ns")
        try:
            self.require_type(name, column_type)
        except Exception:  # noqa: BLE001  # the libraries raise plain errors
            is_bad = True
        if is_bad:
            raise JobError(
                f"sink.table: column {name} is {column_type}, which no {self.title} can hold; "
                "declare another type in source.casts (int64, timestamp[us]) or leave the column "
                "out"
            )
        for index in range(column_type.num_fields):
            self._require_types(name, column_type.field(index).type)

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
                f"version {manifest.number} of {layout.name} is published, but the {self.title} "
                f"{self.name} does not name it yet: {error}; run again to commit it there"
            ) from error

    def _commit(self, layout: Layout, manifest: Manifest) -> None:
        parts, schema = self.parts_of(manifest), None
        give_up = time.monotonic() + TIME_LIMIT_S
        for attempt in range(1, _TRIES + 1):
            table = self.open()
            if table is None and UNTYPED in manifest.partition_columns.values():
                return  # without any row the types of the folders are unknown
            files = {} if table is None else self.files_of(layout, table)
            if table is not None and self.number_of(layout, table) >= manifest.number:
                if self._is_late(layout, table, manifest.number) or files.keys() == parts:
                    return
                log.warning(
                    "the %s %s: %s does not name the published files; it does now",
                    *(self.title, self.name, layout.name),
                )
            if schema is None:
                schema = _schema_of(self.store, layout, manifest)
            if table is not None:
                columns = manifest.partition_columns
                self.require_columns(table, schema, partition_by(layout, columns))
            failpoint("before_table")
            try:
                with self.errors("commit to"):
                    self.write(layout, manifest, table, schema, files)
                return
            except PipelineError as error:
                is_last = attempt == _TRIES or time.monotonic() > give_up
                if is_last or not self.may_pass(error.__cause__):
                    raise
            wait_s = min(_WAIT_MAX_S, _WAIT_S * 1.5**attempt)
            time.sleep(wait_s * (0.5 + secrets.randbelow(1000) / 1000))

    def _is_late(self, layout: Layout, table: T, number: int | None = None) -> bool:
        """Tell whether the version in the table is newer than a number; None: only check the table.

        Raises:
            JobError: The table has a version that was never published in this output.
        """
        known, last = self.number_of(layout, table), max(log_numbers(self.store, layout), default=0)
        if known > last:
            raise JobError(
                f"{self.name}: this {self.title} has version {known} of "
                f"{layout.name}, but the last one published here is {last}: the table belongs to "
                f"another history. {self.remove} (each partition's next run puts it into a new "
                "table), or write to another sink.uri"
            )
        return number is not None and known > number

    def differences(self, layout: Layout, manifest: Manifest) -> list[str]:
        """Return a line for each file in which the table and the manifest of a partition differ."""
        table = self.open()
        if table is None and UNTYPED in manifest.partition_columns.values():
            return []  # it waits for a row that tells the types of the folders
        named = set() if table is None else {*self.files_of(layout, table)}
        hint, parts = f"run the job again, with sink.table: {self.format}", self.parts_of(manifest)
        problems = {path: f"is not in the {self.title}" for path in sorted(parts - named)}
        problems |= {
            path: f"is in the {self.title} and not published" for path in sorted(named - parts)
        }
        return [f"{path} {problem}; {hint}" for path, problem in problems.items()]

    def parts_of(self, manifest: Manifest) -> set[str]:
        """Return the paths of the parts that the table names."""
        return {part.path for part in manifest.parts}

    def properties_of(self, manifest: Manifest) -> dict[str, Any]:
        """Return what a commit says of the version that it names."""
        return {
            "pipeline.version": manifest.number,
            "pipeline.fingerprint": manifest.fingerprint,
            "pipeline.run_id": manifest.run_id,
        }


AnyTable = SinkTable[Any]


def id_of(layout: Layout) -> str:
    """Return the name under which a table keeps the number of the version of a partition."""
    return f"batch-inference-pipeline/{layout.name}"


def partition_values(layout: Layout) -> dict[str, str]:
    """Return the column of the partition with its value; {} if the output has no partitions."""
    name, separator, value = (layout.partition or "").partition("=")
    return {name: value} if separator else {}


def partition_by(layout: Layout, partition_columns: Mapping[str, str]) -> list[str]:
    """Return the columns that partition the table, outermost first."""
    return [*partition_values(layout), *partition_columns]


def _schema_of(store: Store, layout: Layout, manifest: Manifest) -> pa.Schema:
    with open_part(store, manifest.parts[0].path) as part:
        return _table_schema(layout, manifest.partition_columns, part.schema_arrow)


def _table_schema(
    layout: Layout, partition_columns: Mapping[str, str], schema: pa.Schema
) -> pa.Schema:
    """Return the columns of the files and those of the folders."""
    folder_types = {**dict.fromkeys(partition_values(layout), "string"), **partition_columns}
    clash = set(partition_values(layout)) & set(schema.names)
    if clash:
        raise JobError(
            f"sink.partition: the predictions have a column {min(clash)}, too; a table needs "
            "another name for the partition"
        )
    inside = [pa.field(f.name, f.type) for f in schema if f.name not in folder_types]
    outside = [
        pa.field(name, pa.type_for_alias(text))
        for name, text in folder_types.items()
        if text != UNTYPED
    ]
    return pa.schema([*inside, *outside])
