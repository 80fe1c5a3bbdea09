"""Iceberg tables in a SQLite catalog, with delete files, which the library reads but never writes.

The formats are those of https://iceberg.apache.org/spec/#position-delete-files and, for deletion
vectors, https://iceberg.apache.org/puffin-spec/#deletion-vector-v1-blob-type.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestWriterV2,
    write_manifest_list,
)
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation, Snapshot, Summary
from pyiceberg.table.update import AddSnapshotUpdate, AssertRefSnapshotId, SetSnapshotRefUpdate
from pyroaring import BitMap

TABLE = "db.rows"
DeletedBy = Literal["positions", "vector", "equality"]


def catalog_at(folder: Path, **access: str) -> SqlCatalog:
    """Return a new catalog with its database and its tables below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {"uri": f"sqlite:///{folder}/catalog.db", "warehouse": str(folder)}
    catalog = SqlCatalog("default", **places, **access)
    catalog.create_namespace_if_not_exists("db")
    return catalog


def options_at(folder: Path) -> dict[str, Any]:
    """Return the options of a job that name `TABLE` in the catalog of a folder."""
    uri = f"sqlite:///{folder}/catalog.db"
    return {"catalog": {"type": "sql", "uri": uri}, "table": TABLE}


def without_catalog(table: Table, **changed: Any) -> Path:
    """Return the folder of a table whose newest metadata a hint names; some keys may be changed."""
    folder = folder_of(table)
    metadata = json.loads(Path(table.metadata_location.removeprefix("file://")).read_text())
    (folder / "metadata" / "v7.metadata.json").write_text(json.dumps(metadata | changed))
    (folder / "metadata" / "version-hint.text").write_text("7")
    return folder


def folder_of(table: Table) -> Path:
    return Path(table.location().removeprefix("file://"))


def live_files(table: Table) -> list[DataFile]:
    return sorted((task.file for task in table.scan().plan_files()), key=lambda f: f.file_path)


def delete_rows(
    table: Table, deleted: Mapping[str, Sequence[int]], by: DeletedBy = "positions"
) -> None:
    """Commit a snapshot that deletes rows of data files.

    Args:
        deleted: Path of a data file, as the table names it -> numbers of rows.
        by: The type of the delete files.
    """
    head = table.current_snapshot()
    assert head is not None
    number = head.snapshot_id + 1
    of = {file.file_path: file for file in live_files(table)}
    spec = table.specs()[next(iter(of.values())).spec_id]
    entries = []
    for place, (path, numbers) in enumerate(deleted.items()):
        at = f"{table.location()}/data/delete-{number}-{place}"
        data, file_format = _written(path, numbers, by)
        with table.io.new_output(at).create() as handle:
            handle.write(data)
        file = DataFile.from_args(
            content=(
                DataFileContent.EQUALITY_DELETES if by == "equality" else
                DataFileContent.POSITION_DELETES
            ),
            file_path=at,
            file_format=file_format,
            partition=of[path].partition,
            record_count=len(numbers),
            file_size_in_bytes=len(data),
            spec_id=of[path].spec_id,
        )  # fmt: skip
        status = ManifestEntryStatus.ADDED
        entries.append(ManifestEntry.from_args(status=status, snapshot_id=number, data_file=file))
    metadata = f"{table.location()}/metadata"
    output = table.io.new_output(f"{metadata}/deletes-{number}.avro")
    with _Deletes(spec, table.schema(), output, number, "gzip") as writer:
        for entry in entries:
            writer.add_entry(entry)
    output = table.io.new_output(f"{metadata}/list-{number}.avro")
    sequence = table.metadata.last_sequence_number + 1
    with write_manifest_list(2, output, number, head.snapshot_id, sequence, "gzip") as lists:
        lists.add_manifests([writer.to_manifest_file(), *head.manifests(table.io)])
    snapshot = Snapshot(
        snapshot_id=number,
        parent_snapshot_id=head.snapshot_id,
        sequence_number=sequence,
        manifest_list=output.location,
        summary=Summary(Operation.DELETE),
        schema_id=table.metadata.current_schema_id,
    )
    updates = (
        AddSnapshotUpdate(snapshot=snapshot),
        SetSnapshotRefUpdate(ref_name="main", type="branch", snapshot_id=number),
    )
    table.catalog.commit_table(
        table, (AssertRefSnapshotId(ref="main", snapshot_id=head.snapshot_id),), updates
    )
    table.refresh()


class _Deletes(ManifestWriterV2):
    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}


def _written(path: str, numbers: Sequence[int], by: DeletedBy) -> tuple[bytes, FileFormat]:
    if by == "vector":
        return _puffin(path, numbers), FileFormat.PUFFIN
    ids = {"file_path": b"2147483546", "pos": b"2147483545"}
    schema = pa.schema(
        pa.field(name, dtype, False, {b"PARQUET:field_id": ids[name]})
        for name, dtype in (("file_path", pa.string()), ("pos", pa.int64()))
    )
    rows = pa.table({"file_path": [path] * len(numbers), "pos": sorted(numbers)}, schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    return sink.getvalue().to_pybytes(), FileFormat.PARQUET


def _puffin(path: str, numbers: Sequence[int]) -> bytes:
    bitmap = struct.pack("<QI", 1, 0) + BitMap(numbers).serialize()
    vector = b"\xd1\xd3\x39\x64" + bitmap
    blob = struct.pack(">I", len(vector)) + vector + struct.pack(">I", zlib.crc32(vector))
    properties = {"referenced-data-file": path, "cardinality": str(len(numbers))}
    facts = {
        "type": "deletion-vector-v1",
        "fields": [2147483645],
        "snapshot-id": -1,
        "sequence-number": -1,
        "offset": 4,
        "length": len(blob),
        "properties": properties,
    }
    footer = json.dumps({"blobs": [facts], "properties": {}}).encode()
    end = struct.pack("<I", len(footer)) + bytes(4) + b"PFA1"
    return b"PFA1" + blob + b"PFA1" + footer + end
