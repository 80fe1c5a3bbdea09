"""Write rows as Parquet parts near a target size, which is measured while they are written.

Row groups are small pieces of a part; their encoded sizes decide where a part ends.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.commit.manifest import Part
from pipeline.commit.parts.part_file import leaf_types, write_file
from pipeline.commit.parts.row_ids import hash_ids, sum_hashes
from pipeline.core.schema import ROW_ID
from pipeline.core.semantics import package_versions
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from pipeline.planning.plan import Plan

META_PREFIX = "pipeline."
"""Prefix of the Parquet metadata that says how a part was made."""
_ROW_GROUP_ROWS = 65_536
_ROW_GROUP_BYTES = 32 * 2**20
"""In memory: a reader of one row group needs no more."""
_LOOKED_AT_ROWS = 4_096
_COUNTED = (
    *(pa.types.is_integer, pa.types.is_timestamp, pa.types.is_string, pa.types.is_large_string),
    *(pa.types.is_binary, pa.types.is_large_binary),
)
"""Types whose distinct values are counted."""
_ROW_GROUPS_PER_PART = 8
"""At least so many, so that a part ends within a sixteenth of its target."""


def file_metadata(
    plan: Plan, run_id: str, devices: Mapping[str, int] | None = None
) -> dict[str, str]:
    """Return the Parquet metadata of every part: how it was made.

    Args:
        plan: The plan of the run that writes.
        run_id: The id of that run.
        devices: Device -> rows of all parts that it predicted; None for staged parts.
    """
    model = plan.model
    return {
        f"{META_PREFIX}run_id": run_id,
        f"{META_PREFIX}fingerprint": plan.fingerprint,
        f"{META_PREFIX}model": str(model["name"]),
        f"{META_PREFIX}weights_sha256": str(model["weights_sha256"]),
        f"{META_PREFIX}precision": str(model["precision"]),
        f"{META_PREFIX}runtime": str(model["runtime"]),
        f"{META_PREFIX}versions": json.dumps(package_versions()),
        **({f"{META_PREFIX}devices": json.dumps(devices)} if devices else {}),
    }


@dataclass(frozen=True)
class PartFormat:
    """Schema, compression, metadata and size of parts."""

    schema: pa.Schema
    compression: str
    metadata: Mapping[str, str]
    """Metadata of every part: `file_metadata`."""
    target_bytes: float

    def open(self, buffer: io.BytesIO, first: pa.Table) -> pq.ParquetWriter:
        """Start a Parquet file; `first` are its first rows, which decide its dictionaries."""
        return write_file(
            buffer,
            self.schema.with_metadata(dict(self.metadata)),
            compression=self.compression,
            use_dictionary=repetitive_columns(first),
            write_statistics=True,
        )


def repetitive_columns(rows: pa.Table) -> list[str]:
    """Name the columns that a dictionary helps: labels repeat, ids and scores do not.

    Trying a dictionary on 110,000 ids takes twice as long as encoding them without one.

    Args:
        rows: The first rows of a file.
    """
    first = rows.slice(0, _LOOKED_AT_ROWS)
    unlike = {
        field.name
        for field, column in zip(first.schema, first.columns, strict=True)
        if any(is_type(field.type) for is_type in _COUNTED)
        and len(column) > 1
        and pc.count_distinct(column, mode="only_valid").as_py() > len(column) / 2
    }
    return [
        path
        for path, leaf_type in leaf_types(rows.schema).items()
        if path not in (ROW_ID, *unlike) and leaf_type not in ("FLOAT", "DOUBLE")
    ]


class PartStream:
    """Turns rows into parts, in order; at most one encoded part and one row group are in memory.

    With a total weight all parts of the stream get the same size, which is computed again after
    each row group. Otherwise the last part is what is left.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        name: Callable[[int], str],
        part_format: PartFormat,
        *,
        total_weight: float | None = None,
    ) -> None:
        """Prepare to write.

        Args:
            store: The output.
            folder: The folder to which the paths of the parts are relative.
            name: Returns the path of the n-th part.
            part_format: How parts are written.
            total_weight: Sum of the weights that `write` will get, if known.
        """
        self._store = store
        self._folder = folder
        self._name = name
        self._format = part_format
        self._total_weight = total_weight
        self._parts: list[Part] = []
        self._open: tuple[io.BytesIO, pq.ParquetWriter] | None = None
        self._part_rows = self._ids_hash = 0
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._pending_weight = 0.0
        # Sums over the row groups so far: weight, bytes in memory, bytes encoded.
        self._weight = self._memory = self._encoded = 0.0

    def write(self, rows: pa.Table, weight: float = 0.0) -> None:
        """Add rows.

        Args:
            rows: The next rows.
            weight: Their share of the total weight.
        """
        start = 0
        limit = self._row_group_rows(rows)
        while start < rows.num_rows:
            piece = rows.slice(start, max(1, limit - self._pending_rows))
            start += piece.num_rows
            self._pending.append(piece)
            self._pending_rows += piece.num_rows
            self._pending_weight += weight * piece.num_rows / rows.num_rows
            if self._pending_rows >= limit:
                self._write_row_group()
                limit = self._row_group_rows(rows)
        self._pending_weight += 0.0 if rows.num_rows else weight

    def _row_group_rows(self, rows: pa.Table) -> int:
        if rows.num_rows == 0:
            return _ROW_GROUP_ROWS
        encoded_per_byte = self._encoded / self._memory if self._memory else 1.0
        wanted_bytes = (
            self._format.target_bytes / _ROW_GROUPS_PER_PART / max(encoded_per_byte, 1e-6)
        )
        row_bytes = max(1.0, rows.nbytes / rows.num_rows)
        rows_that_fit = min(_ROW_GROUP_BYTES, wanted_bytes) / row_bytes
        return max(1, min(_ROW_GROUP_ROWS, int(rows_that_fit)))

    def _write_row_group(self) -> None:
        if not self._pending_rows:
            return
        rows = pa.concat_tables(self._pending).cast(self._format.schema)
        if self._open is None:
            buffer = io.BytesIO()
            self._open = buffer, self._format.open(buffer, rows)
        buffer, writer = self._open
        started = buffer.tell()
        writer.write_table(rows, row_group_size=rows.num_rows)
        row_group_bytes = buffer.tell() - started
        self._encoded += row_group_bytes
        self._memory += rows.nbytes
        self._weight += self._pending_weight
        self._part_rows += rows.num_rows
        self._ids_hash += int(hash_ids(rows.column(ROW_ID)).sum(dtype=np.uint64))
        self._pending, self._pending_rows, self._pending_weight = [], 0, 0.0
        if self._is_full(buffer.tell(), row_group_bytes):
            self._end_part()

    def _is_full(self, size_bytes: int, row_group_bytes: int) -> bool:
        reached = size_bytes + row_group_bytes / 2
        if self._total_weight is None or not self._weight:
            return reached >= self._format.target_bytes
        left = max(0.0, self._total_weight - self._weight) * self._encoded / self._weight
        num_parts = round((size_bytes + left) / self._format.target_bytes)
        return num_parts > 1 and reached >= (size_bytes + left) / num_parts

    def _end_part(self) -> None:
        if self._open is None:
            return
        buffer, writer = self._open
        writer.close()
        data = buffer.getvalue()
        path = self._name(len(self._parts))
        self._store.put(f"{self._folder}/{path}", data)
        digest = hashlib.sha256(data).hexdigest()
        ids_hash = sum_hashes([self._ids_hash])
        self._parts.append(Part(path, self._part_rows, len(data), digest, ids_hash))
        self._open, self._part_rows, self._ids_hash = None, 0, 0

    def close(self, *, at_least_one: bool = False) -> tuple[Part, ...]:
        """Write the remaining rows; return all parts.

        Args:
            at_least_one: Write one empty part if there were no rows.
        """
        self._write_row_group()
        if at_least_one and not self._parts and self._open is None:
            buffer = io.BytesIO()
            self._open = buffer, self._format.open(buffer, self._format.schema.empty_table())
        self._end_part()
        return tuple(self._parts)
