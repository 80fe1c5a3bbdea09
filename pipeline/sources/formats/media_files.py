"""Loose files of images or of sound: each file is one extent of one row.

The columns of a row are in the names of its folders, such as `label=cat/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from pipeline.core.backoff import BadBlockError
from pipeline.core.errors import AccessDenied, JobError
from pipeline.core.failures import Failure, Reason
from pipeline.core.figures import READ
from pipeline.core.hive_paths import above_root, hive_values
from pipeline.core.media import ENCODED
from pipeline.core.semantics import SEMANTICS
from pipeline.job.source import Source
from pipeline.sources.columns.input_reader import Failures, fail
from pipeline.sources.columns.pass_through import check_names, declare, pass_through
from pipeline.sources.rows import Reader, make_rows
from pipeline.sources.source_format import CountsRows, Measured, RowIds, Rows, SourceFormat
from pipeline.sources.units import Extent, changed
from pipeline.storage.store import Store, StoredFile


class ImageFiles(SourceFormat):
    """Loose image files: the listing counts the rows."""

    name = "images"
    suffixes = tuple(f".{extension}" for extension in ENCODED["image"].extensions)
    counts_rows: CountsRows = "listing"
    semantics = SEMANTICS["images"]
    file_types = frozenset(row.name for row in ENCODED["image"].formats)
    # The column is accepted without effect, so that one job file serves files and Parquet.
    fields = frozenset(["image_column", "casts", "pass_through"])

    def row_ids(self, source: Source) -> RowIds:
        return "path"

    def measure(
        self, store: Store, shards: Sequence[StoredFile], source: Source, *, max_extent_rows: int
    ) -> Measured:
        """Return one extent of one row per file.

        Raises:
            JobError: A column is in the folders of no file, or cannot be published.
        """
        check_names(source)
        extents = tuple(_measured(shard, source) for shard in shards)
        if extents and all(extent.reason for extent in extents):
            raise JobError(f"source.pass_through: {extents[0].path}: {extents[0].message}")
        declared = declare(source, pa.schema([]), extents[0].path if extents else "")
        return Measured(extents, declared, fields=ENCODED[self.holds].fields)

    def read(
        self, reader: Reader, extents: Sequence[Extent], is_wanted: Callable[[int], bool]
    ) -> Iterator[Rows]:
        limit = reader.source.max_image_bytes
        small = {e.path: e.exact_version for e in extents if e.size_bytes <= limit}
        contents = reader.store.read_many(list(small), small)
        judged = [_judged(reader, extent, contents.get(extent.path)) for extent in extents]
        failures: Failures = [failure for _, failure in judged]
        ids = [extent.path for extent in extents]
        uris = [reader.store.url(path) for path in ids]
        folders = [hive_values(path) for path in ids] if reader.pass_through.names else []
        columns = {
            column: pa.array([values.get(column) for values in folders], pa.string())
            for column in reader.source.passed.values()
        }
        passed, problems = pass_through(
            reader.pass_through, reader.source.passed, reader.folders, pa.table(columns), ""
        )
        for row, message in problems.items():
            fail(failures, [row], Reason.BAD_SCHEMA, message)
        values = [None if failures[row] else content for row, (content, _) in enumerate(judged)]
        [name] = reader.fields.names
        yield Rows(make_rows(reader, ids, uris, {name: values}, failures, passed))


class AudioFiles(ImageFiles):
    """Loose audio files, listed likewise."""

    name = "audio"
    suffixes = tuple(f".{extension}" for extension in ENCODED["audio"].extensions)
    semantics = SEMANTICS["audio"]
    file_types = frozenset(row.name for row in ENCODED["audio"].formats)
    holds = "audio"
    fields = frozenset(["audio_column", "casts", "pass_through"])


FORMAT, AUDIO = ImageFiles(), AudioFiles()


def _measured(shard: StoredFile, source: Source) -> Extent:
    folders = hive_values(shard.path) if source.passed else {}
    size = shard.size_bytes
    extent = Extent(shard.path, size, shard.version, 0, 1, float(size))
    for column in source.passed.values():
        if column not in folders:
            message = f"no column {column!r}: name it in the folders, as {column}=VALUE/"
            message += above_root(source.uri, column)
            return replace(extent, reason=Reason.BAD_SCHEMA, message=message)
    return extent


def _judged(
    reader: Reader, extent: Extent, content: bytes | Exception | None
) -> tuple[bytes | None, Failure | None]:
    if extent.reason is not None:
        return None, Failure(extent.reason, READ, extent.message, num_bytes=extent.size_bytes)
    if content is None:
        message = f"{extent.size_bytes} bytes, the limit is {reader.source.max_image_bytes}"
        return None, Failure(Reason.TOO_LARGE, READ, message, num_bytes=extent.size_bytes)
    if isinstance(content, FileNotFoundError):
        return None, Failure(Reason.MISSING, READ, "vanished since it was planned")
    if isinstance(content, BadBlockError):
        return None, Failure(Reason.UNREADABLE_SHARD, READ, str(content))
    if isinstance(content, AccessDenied):
        return None, Failure(Reason.ACCESS_DENIED, READ, content.why)
    if isinstance(content, Exception):
        raise content
    if len(content) != extent.size_bytes:
        raise changed(reader.store, extent)
    return content, None
