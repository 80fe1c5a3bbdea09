"""Delta tables written by hand: names of files, keys of columns and deletion vectors are chosen.

The library writes neither deletion vectors nor columns that were renamed. The formats are those of
https://github.com/delta-io/delta/blob/master/PROTOCOL.md ("Deletion Vectors", "Column Mapping")
and https://github.com/RoaringBitmap/RoaringFormatSpec (arrays, no runs).
"""

from __future__ import annotations

import itertools
import json
import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

Mapped = Literal["none", "name", "id"]
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_TYPES = {
    pa.int8(): "byte",
    pa.int16(): "short",
    pa.int32(): "integer",
    pa.int64(): "long",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.string(): "string",
    pa.binary(): "binary",
    pa.bool_(): "boolean",
    pa.date32(): "date",
    pa.timestamp("us", "UTC"): "timestamp",
}


@dataclass
class DeltaTable:
    """A table that grows commit by commit.

    Its columns are `columns`: name -> type in the table, and key in the files.
    """

    folder: Path
    mapping: Mapped = "none"
    partition_by: Sequence[str] = ()
    columns: dict[str, tuple[pa.DataType, int]] = field(default_factory=dict)
    _files: dict[str, dict[str, Any]] = field(default_factory=dict)
    _version: int = 0
    _id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def physical(self, name: str) -> str:
        """Return the name of a column in the files."""
        return name if self.mapping == "none" else f"col-{self.columns[name][1]}"

    def commit(
        self,
        columns: Mapping[str, pa.DataType | tuple[pa.DataType, int]],
        added: Mapping[str, pa.Table] | None = None,
        deleted: Mapping[str, Sequence[int]] | None = None,
        removed: Sequence[str] = (),
        given: Mapping[str, str | None] | None = None,
    ) -> None:
        """Write a version.

        Args:
            columns: Name -> type, or type and key; a key that stays is a column that was renamed.
            added: Path -> rows, whose columns have their names in the table.
            deleted: Path -> numbers of the rows that are deleted from now on.
            removed: Paths of files that are no longer of the table.
            given: The values of the partition columns in the added files.
        """
        keys = itertools.count(1 + max((key for _, key in self.columns.values()), default=0))
        self.columns = {
            name: entry if isinstance(entry, tuple) else self.columns.get(name, (entry, next(keys)))
            for name, entry in columns.items()
        }
        actions: list[dict[str, Any]] = [self._protocol(), self._metadata()]
        actions += [{"remove": self._removed(path)} for path in removed]
        self._files = {path: file for path, file in self._files.items() if path not in removed}
        for path, rows in (added or {}).items():
            self._write(path, rows)
            values = {self.physical(name): (given or {}).get(name) for name in self.partition_by}
            self._files[path] = {
                "path": quote(path),
                "partitionValues": values,
                "size": (self.folder / path).stat().st_size,
                "modificationTime": 1,
                "dataChange": True,
                "stats": json.dumps({"numRecords": rows.num_rows}),
            }
            actions.append({"add": self._files[path]})
        for path, numbers in (deleted or {}).items():
            actions.append({"remove": self._removed(path)})
            self._files[path] = {**self._files[path], "deletionVector": _vector(numbers)}
            actions.append({"add": self._files[path]})
        log = self.folder / "_delta_log"
        log.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(action) + "\n" for action in actions)
        (log / f"{self._version:020}.json").write_text(lines)
        self._version += 1

    def _removed(self, path: str) -> dict[str, Any]:
        """Return the action that removes a file, which is known by its path and its vector."""
        vector = self._files[path].get("deletionVector")
        named = {} if vector is None else {"deletionVector": vector}
        return {"path": quote(path), "dataChange": True, **named}

    def _write(self, path: str, rows: pa.Table) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        fields = [
            pa.field(
                self.physical(column.name),
                column.type,
                metadata={"PARQUET:field_id": str(self.columns[column.name][1])},
            )
            for column in rows.schema
        ]
        stored = pa.Table.from_arrays(rows.columns, schema=pa.schema(fields))
        pq.write_table(stored, self.folder / path, row_group_size=3)

    def _protocol(self) -> dict[str, Any]:
        features = ["deletionVectors", *(["columnMapping"] if self.mapping != "none" else [])]
        return {
            "protocol": {
                "minReaderVersion": 3,
                "minWriterVersion": 7,
                "readerFeatures": features,
                "writerFeatures": features,
            }
        }

    def _metadata(self) -> dict[str, Any]:
        fields = []
        for name, (dtype, key) in self.columns.items():
            keys = {
                "delta.columnMapping.id": key,
                "delta.columnMapping.physicalName": self.physical(name),
            }
            metadata = {} if self.mapping == "none" else keys
            of = {"name": name, "type": _TYPES[dtype], "nullable": True, "metadata": metadata}
            fields.append(of)
        configuration = {"delta.enableDeletionVectors": "true"}
        if self.mapping != "none":
            configuration["delta.columnMapping.mode"] = self.mapping
            configuration["delta.columnMapping.maxColumnId"] = str(max(map(_key, fields)))
        return {
            "metaData": {
                "id": self._id,
                "format": {"provider": "parquet", "options": {}},
                "schemaString": json.dumps({"type": "struct", "fields": fields}),
                "partitionColumns": [*self.partition_by],
                "configuration": configuration,
                "createdTime": 0,
            }
        }


def _key(of: Mapping[str, Any]) -> int:
    key: int = of["metadata"]["delta.columnMapping.id"]
    return key


def _vector(numbers: Sequence[int]) -> dict[str, Any]:
    """Return a deletion vector that is stored in the log."""
    containers: dict[int, list[int]] = {}
    for number in sorted(numbers):
        containers.setdefault(number >> 16, []).append(number & 0xFFFF)
    head = struct.pack("<II", 12346, len(containers))
    for key, values in containers.items():
        head += struct.pack("<HH", key, len(values) - 1)
    offsets = data = b""
    begin = len(head) + 4 * len(containers)
    for values in containers.values():
        offsets += struct.pack("<I", begin + len(data))
        data += struct.pack(f"<{len(values)}H", *values)
    bitmap = struct.pack("<IQI", 1681511377, 1, 0) + head + offsets + data
    return {
        "storageType": "i",
        "pathOrInlineDv": _z85(bitmap + bytes(-len(bitmap) % 4)),
        "sizeInBytes": len(bitmap),
        "cardinality": len(numbers),
    }


def _z85(data: bytes) -> str:
    text = ""
    for at in range(0, len(data), 4):
        number = int.from_bytes(data[at : at + 4], "big")
        text += "".join(_Z85[number // 85**power % 85] for power in range(4, -1, -1))
    return text
