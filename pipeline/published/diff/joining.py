"""Match the rows of two versions by their id, exactly, with one bucket of rows in memory."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, Part
from pipeline.commit.parts.row_ids import hash_ids
from pipeline.core.arrays import Numbers
from pipeline.core.errors import JobError
from pipeline.core.hive_paths import values_of
from pipeline.core.schema import ROW_ID
from pipeline.published.dataset import OutputFolder, PublishedParts
from pipeline.storage.store import Store

_BUCKET_ROWS, _BUCKET_BYTES = 500_000, 256 * 2**20
_GROWTH = 4
"""About how much larger rows are in memory than in a part."""
REASON = "reason"
_OF_FAILED = pa.schema([(ROW_ID, pa.string()), (REASON, pa.string())])


@dataclass(frozen=True)
class Version:
    """A published version of a partition."""

    store: Store
    layout: Layout
    manifest: Manifest

    @property
    def name(self) -> str:
        """Output, partition and number, for messages."""
        root = self.store.url("").rstrip("/")
        return f"{root} {self.layout.name} version {self.manifest.number}"

    def rows(self, folder: OutputFolder) -> PublishedParts:
        """Return the parts of predictions or of the quarantine, where they lie now."""
        return PublishedParts.of(self.store, [(self.layout, self.manifest)], folder)

    def rows_beside(self, other: Version) -> PublishedParts:
        """Return the parts of predictions that the other version does not have byte for byte."""
        known = {other._content(part) for part in other.manifest.parts}
        parts = enumerate(self.manifest.parts)
        return self.rows("predictions").only(
            [number for number, part in parts if self._content(part) not in known]
        )

    def _content(self, part: Part) -> tuple[str, str]:
        """Return digest and folder values of a part, which decide its rows."""
        return part.sha256, str(values_of(part.path, self.manifest.partition_columns))


@dataclass(frozen=True)
class Bucket:
    """The rows of both sides with the same hash bits, and their rows without a prediction."""

    before: pa.Table
    now: pa.Table
    failed_before: pa.Table
    failed_now: pa.Table


def buckets(before: Version, now: Version, schema: pa.Schema) -> Iterator[Bucket]:
    """Yield the rows of both versions bucket by bucket, without files that both have.

    Args:
        before: The earlier version.
        now: The later version.
        schema: The columns to compare, the row id first.

    Raises:
        NotReadable: A part is missing, also in the history, or a store failed.
    """
    pairs = before.rows_beside(now), now.rows_beside(before)
    size_bytes = sum(part.file.part.size_bytes for parts in pairs for part in parts.parts)
    num_buckets = max(
        1,
        -(-sum(parts.num_rows for parts in pairs) // _BUCKET_ROWS),
        -(-size_bytes * _GROWTH // _BUCKET_BYTES),
    )
    with (
        tempfile.TemporaryDirectory(prefix="pipeline-diff-") as name,
        contextlib.ExitStack() as all_,
    ):
        schemas = (schema, schema, _OF_FAILED, _OF_FAILED)
        sides = [
            _Side(Path(name) / str(n), side_schema, num_buckets, all_)
            for n, side_schema in enumerate(schemas)
        ]
        quarantines = (version.rows("quarantine") for version in (before, now))
        for side, parts in zip(sides, (*pairs, *quarantines), strict=True):
            if not parts.parts:  # there are no columns either
                continue
            batches = parts.dataset().to_batches(columns=side.schema.names, batch_readahead=1)
            side.add(pa.Table.from_batches([batch]) for batch in batches)
        all_.close()
        for bucket in range(num_buckets):
            yield Bucket(*(side.read(bucket) for side in sides))


def match(before: pa.ChunkedArray, now: pa.ChunkedArray, versions: str) -> Numbers:
    """Return int64 (M,): the index of each of M rows among N rows before; -1: none.

    Args:
        before: Ids, (N,).
        now: Ids, (M,).
        versions: Names of the versions, for the message.

    Raises:
        JobError: Several rows have one id.
    """
    for ids in (before, now):
        if pc.count_distinct(ids, mode="all").as_py() != len(ids):
            twice = ids.value_counts().filter(pc.greater(ids.value_counts().field("counts"), 1))
            raise JobError(
                f"{versions}: several rows have the id {twice[0]['values'].as_py()!r}, so rows "
                "cannot be matched; choose a source.id_column whose values are unique"
            )
    indices = pc.fill_null(pc.index_in(now, value_set=before.combine_chunks()), -1)
    return np.asarray(indices.to_numpy(), np.int64)


class _Side:
    """The rows of one side, in files of a bucket each."""

    def __init__(
        self, path: Path, schema: pa.Schema, num_buckets: int, files: contextlib.ExitStack
    ) -> None:
        self._path, self.schema, self._num, self._files = path, schema, num_buckets, files
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}

    def _file(self, bucket: int) -> str:
        return f"{self._path}-{bucket}.arrows"

    def add(self, tables: Iterable[pa.Table]) -> None:
        """Write the rows of tables to their buckets, by the hash of the row id."""
        for table in tables:
            if self._num == 1:
                self._write(0, table)
                continue
            numbers = (hash_ids(table.column(ROW_ID)) % np.uint64(self._num)).astype(np.int64)
            order = np.argsort(numbers, kind="stable")
            rows = table.take(pa.array(order))
            ends = np.cumsum(np.bincount(numbers, minlength=self._num))
            for bucket, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
                if end > begin:
                    self._write(bucket, rows.slice(int(begin), int(end - begin)))

    def _write(self, bucket: int, rows: pa.Table) -> None:
        if bucket not in self._writers:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writers[bucket] = self._files.enter_context(
                pa.ipc.new_stream(self._file(bucket), rows.schema, options=options)
            )
        self._writers[bucket].write_table(rows)

    def read(self, bucket: int) -> pa.Table:
        """Return the rows of a bucket."""
        if bucket not in self._writers:
            return self.schema.empty_table()
        with pa.OSFile(self._file(bucket)) as file, pa.ipc.open_stream(file) as stream:
            return stream.read_all()
