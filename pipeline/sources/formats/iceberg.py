"""Iceberg tables: one snapshot's data files, without the rows that delete files and vectors delete.

The library `pyiceberg` reads metadata and manifests; columns are matched by field ids, and by the
name mapping of the table in files without ids.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.backoff import with_retries
from pipeline.core.errors import InputMissing, JobError
from pipeline.core.ranges import Ranges
from pipeline.core.semantics import SEMANTICS
from pipeline.job.iceberg_catalog import CatalogEntry, TableName
from pipeline.job.section import Section
from pipeline.job.source import Source
from pipeline.sources.columns.arrow_types import is_binary, is_list, is_text
from pipeline.sources.formats.lake_format import (
    LakeFormat,
    LiveFile,
    TableVersion,
    live_rows,
    relative_path,
)
from pipeline.sources.formats.table_view import (
    FIELD_ID,
    FILES_FIRST,
    NAMES,
    PARTITION_COLUMNS,
    VERSION,
)
from pipeline.storage.iceberg_tables import iceberg_errors, open_catalog, open_static_table
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from pyiceberg.io import FileIO
    from pyiceberg.manifest import DataFile
    from pyiceberg.schema import Schema
    from pyiceberg.table import DataScan, FileScanTask, Table
    from pyiceberg.types import NestedField

_SETTING = "source.format: iceberg"
_HINT = "metadata/version-hint.text"
_UUID_BYTES = 16
_ID_IN_FILE = b"PARQUET:field_id"


class IcebergOptions(Section):
    """Which table is read, and which of its snapshots."""

    catalog: CatalogEntry | None = None
    """The name of a catalog that pyiceberg is configured for (`PYICEBERG_CATALOG__NAME__URI`,
    `.pyiceberg.yaml`), or its fields, as below. Default: no catalog; `metadata/version-hint.text`
    below `source.uri` names the metadata."""
    table: TableName | None = None
    """The namespace and name of the table in the catalog: `sales.reviews`."""
    snapshot: int | None = None
    """The id of the snapshot. Default: the current one when the run plans."""
    branch: str | None = None
    """The newest snapshot of a branch instead."""
    tag: str | None = None
    """The snapshot of a tag instead."""


class Iceberg(LakeFormat):
    """The live rows of an Iceberg table."""

    name = "iceberg"
    semantics = SEMANTICS["iceberg"]
    Options = IcebergOptions
    versions = ("snapshot", "branch", "tag")

    def check(self, source: Source) -> None:
        options = IcebergOptions.model_validate(source.options)
        if (options.catalog is None) != (options.table is None):
            raise ValueError("options: give catalog and table together")
        super().check(source)

    def read_version(self, store: Store, source: Source) -> TableVersion:
        options = IcebergOptions.model_validate(source.options)
        name = options.table or store.url()
        what = f"cannot read the Iceberg table {name}"

        def read_once() -> TableVersion:
            table = _open(store, options)
            with iceberg_errors(store, what, wrong=(ValueError, NotImplementedError)):
                return _read(store, name, table, _scan(table, options, name))

        return with_retries(read_once)


def _open(store: Store, options: IcebergOptions) -> Table:
    if options.catalog is not None and options.table is not None:
        catalog = open_catalog(options.catalog, store, _SETTING)
        with iceberg_errors(store, f"cannot open the Iceberg table {options.table}"):
            return catalog.load_table(options.table)
    try:
        hint = store.read_bytes(_HINT).decode("utf-8", "replace").strip()
    except FileNotFoundError:
        if not store.exists(""):
            raise InputMissing(
                f"source.uri = {store.url()}: no such table; run again when it is there"
            ) from None
        raise JobError(
            f"source.uri = {store.url()} has no {_HINT}: give source.options.catalog and table"
        ) from None
    if not hint.isdecimal():
        raise JobError(f"{store.url(_HINT)}: must be the number of a version, not {hint[:40]!r}")
    return open_static_table(store, f"metadata/v{hint}.metadata.json", _SETTING)


def _scan(table: Table, options: IcebergOptions, name: str) -> DataScan:
    """Return the scan of the chosen snapshot, or of the current one."""
    for noun, reference in (("branch", options.branch), ("tag", options.tag)):
        if reference is not None:
            known = [at for at, ref in table.refs().items() if ref.snapshot_ref_type == noun]
            if reference not in known:
                there = ", ".join(sorted(known)) or "none"
                raise JobError(
                    f"source.options.{noun} = {reference}: the Iceberg table {name} has {there}"
                )
            return table.scan().use_ref(reference)
    if options.snapshot is not None and table.snapshot_by_id(options.snapshot) is None:
        raise InputMissing(
            f"source.options.snapshot = {options.snapshot}: the Iceberg table {name} has no such "
            "snapshot, or it has expired; read a newer snapshot"
        )
    return table.scan(snapshot_id=options.snapshot)


def _read(store: Store, name: str, table: Table, scan: DataScan) -> TableVersion:
    snapshot = scan.snapshot()
    number = 0 if snapshot is None else snapshot.snapshot_id
    title = f"snapshot {number} of the Iceberg table {name}"
    columns = scan.projection()
    defaults = {field.name: field for field in columns.fields if field.initial_default is not None}
    sources = {
        field.source_id for spec in table.specs().values() for field in spec.fields
        if str(field.transform) == "identity"
    }  # fmt: skip
    given = [f.name for f in columns.fields if f.field_id in sources or f.name in defaults]
    tasks = [*scan.plan_files()]
    deleted = _deleted(table.io, tasks)
    files = []
    for task in tasks:
        path = relative_path(store, task.file.file_path)
        if path is None:
            raise JobError(
                f"source.uri = {store.url()}: {title} has files elsewhere, first "
                f"{task.file.file_path}; give the folder above all files (its location is "
                f"{table.location()})"
            )
        _require_parquet(task.file, title)
        values = _values(task.file, table, columns)
        rows = deleted.get(task.file.file_path)
        certain = [*_partition_values(task.file, table, columns)]
        files.append(LiveFile(path, tuple(values.get(name) for name in given), rows, certain))
    return TableVersion(
        title,
        _schema(columns, table, given, number),
        files,
        "they expired or were removed; read a newer snapshot",
    )


def _require_parquet(file: DataFile, title: str) -> None:
    if str(file.file_format.value).lower() != "parquet":
        raise JobError(
            f"source.uri: {title} has files of format {file.file_format.value}, first "
            f"{file.file_path}; only Parquet is read: rewrite its data files"
        )


def _deleted(io: FileIO, tasks: Iterable[FileScanTask]) -> dict[str, Ranges]:
    """Return path of a data file -> its live rows, for files with deleted rows."""
    read: dict[str, dict[str, np.ndarray]] = {}
    live = {}
    for task in tasks:
        positions = []
        for file in task.delete_files:
            if file.file_path not in read:
                read[file.file_path] = _positions(io, file)
            if (numbers := read[file.file_path].get(task.file.file_path)) is not None:
                positions.append(numbers)
        if positions:
            numbers = np.concatenate(positions)
            is_kept = np.ones(int(numbers.max(initial=-1)) + 1, np.bool_)
            is_kept[numbers] = False
            live[task.file.file_path] = live_rows(is_kept)
    return live


def _positions(io: FileIO, file: DataFile) -> dict[str, np.ndarray]:
    """Read a delete file; return path of a data file -> numbers of its deleted rows."""
    file_format = str(file.file_format.value).lower()
    with io.new_input(file.file_path).open() as handle:
        if file_format == "puffin":
            from pyiceberg.table.deletion_vector import deletion_vectors_from_puffin_file
            from pyiceberg.table.puffin import PuffinFile

            vectors = deletion_vectors_from_puffin_file(PuffinFile(handle.read()))
            return {v.referenced_data_file: v.to_vector().to_numpy() for v in vectors}
        if file_format != "parquet":
            raise JobError(f"{file.file_path}: a delete file of format {file_format} is not read")
        rows = pq.read_table(handle, columns=["file_path", "pos"])
    numbers: defaultdict[str, list[int]] = defaultdict(list)
    for path, position in zip(*rows.to_pydict().values(), strict=True):
        numbers[path].append(position)
    return {path: np.array(values, np.int64) for path, values in numbers.items()}


def _values(file: DataFile, table: Table, columns: Schema) -> dict[str, str | None]:
    """Return the values of columns that the file itself may not have, as text that casts back."""
    values = {
        field.name: _text(field, field.initial_default)
        for field in columns.fields
        if field.initial_default is not None
    }
    return values | _partition_values(file, table, columns)


def _partition_values(file: DataFile, table: Table, columns: Schema) -> dict[str, str | None]:
    """Return the values that all rows of a file have, as text that casts back."""
    from pyiceberg.transforms import IdentityTransform

    values = {}
    for place, partition in enumerate(table.specs()[file.spec_id].fields):
        is_identity = isinstance(partition.transform, IdentityTransform)
        field = next((f for f in columns.fields if f.field_id == partition.source_id), None)
        if is_identity and field is not None:
            values[field.name] = _text(field, file.partition[place])
    return values


def _text(field: NestedField, value: Any) -> str | None:
    from pyiceberg.transforms import IdentityTransform
    from pyiceberg.types import BinaryType, FixedType, UUIDType

    if value is None:
        return None
    if isinstance(field.field_type, BinaryType | FixedType | UUIDType):
        raise JobError(
            f"column {field.name} is {field.field_type}, and partitions its table or has a default "
            "value: such a table is not read"
        )
    return IdentityTransform().to_human_string(field.field_type, value)


def _schema(columns: Schema, table: Table, given: Sequence[str], number: int) -> pa.Schema:
    """Return the columns of a table, each with its id in files."""
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    mapping = table.name_mapping()
    names = None if mapping is None else _names(mapping.root)
    fields = [columns.find_field(number) for number in columns.field_ids]
    for nested in (field for field in fields if field not in columns.fields):
        if nested.initial_default is not None:
            raise JobError(f"column {nested.name}: default values of nested fields are not read")
    metadata = {
        PARTITION_COLUMNS: json.dumps([*given]).encode(),
        FILES_FIRST: b"true",
        VERSION: str(number).encode(),
    }
    keyed = [_keyed(field, names) for field in schema_to_pyarrow(columns)]
    return pa.schema(keyed, metadata=metadata)


def _names(mapped: Iterable[Any]) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for field in mapped:
        if field.field_id is not None:
            names[field.field_id] = [*field.names]
        names |= _names(field.fields)
    return names


def _keyed(column: pa.Field, names: Mapping[int, Sequence[str]] | None) -> pa.Field:
    """Return a field whose metadata is its id in files, at any depth."""
    number = column.metadata[_ID_IN_FILE]
    keys = {FIELD_ID: number}
    if names is not None:
        keys[NAMES] = json.dumps(names.get(int(number), [])).encode()
    return pa.field(column.name, _keyed_type(column.type, names), column.nullable, keys)


def _keyed_type(dtype: pa.DataType, names: Mapping[int, Sequence[str]] | None) -> pa.DataType:
    if pa.types.is_struct(dtype):
        return pa.struct([_keyed(dtype.field(i), names) for i in range(dtype.num_fields)])
    if pa.types.is_map(dtype):
        return pa.map_(_keyed(dtype.key_field, names), _keyed(dtype.item_field, names))
    if is_list(dtype):
        return pa.list_(_keyed(dtype.value_field, names))
    if is_text(dtype):
        return pa.string()
    if isinstance(dtype, pa.UuidType):
        return pa.binary(_UUID_BYTES)
    return pa.binary() if is_binary(dtype) and not pa.types.is_fixed_size_binary(dtype) else dtype


FORMAT = Iceberg()
