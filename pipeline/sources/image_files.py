"""Loose files of images or of clips of sound: each file is one extent of one row."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.core.backoff import BadBlockError
from pipeline.core.failures import Failure, Reason
from pipeline.core.schema import ENCODED
from pipeline.core.semantics import SEMANTICS
from pipeline.job.source import Source
from pipeline.sources.columns.base import STAGE
from pipeline.sources.extents import Extent
from pipeline.sources.rows import Reader, changed, make_rows
from pipeline.sources.source_format import (
    CountedBeforeReading,
    CountsRows,
    Measured,
    MeasuredOnce,
    RowIds,
)
from pipeline.storage.store import Store, StoredFile

_FILES_AT_ONCE = 64


class ImageFiles(MeasuredOnce, CountedBeforeReading):
    """Loose image files: the listing counts the rows."""

    name = "images"
    suffixes: tuple[str, ...] = (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"),
        *(".avif", ".tif", ".tiff", ".heic", ".heif"),
    )
    counts_rows: CountsRows = "listing"
    semantics = SEMANTICS["images"]
    kinds = frozenset(["a JPEG", "a PNG"])
    holds = "image"
    # Accepted without effect, so that one job file serves files and Parquet.
    fields = frozenset(["image_column", "id_column", "casts", "pass_through"])

    def row_ids(self, source: Source) -> RowIds:
        return "path"

    def measure(
        self, store: Store, shards: Sequence[StoredFile], source: Source, *, max_extent_rows: int
    ) -> Measured:
        """Return one extent of one row per file."""
        extents = (
            Extent(s.path, s.size_bytes, s.version, 0, 1, float(s.size_bytes)) for s in shards
        )
        return Measured(tuple(extents), fields=ENCODED[self.holds].fields)

    def open(self, reader: Reader, extents: Sequence[Extent]) -> FileStream:
        return FileStream(reader, extents)


class AudioFiles(ImageFiles):
    """Loose files of clips of sound, listed likewise."""

    name = "audio"
    suffixes = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus")
    semantics = SEMANTICS["audio"]
    kinds = frozenset(["WAV", "FLAC", "Ogg", "MP3"])
    holds = "audio"
    fields = frozenset(["audio_column", "id_column", "casts", "pass_through"])


FORMAT, AUDIO = ImageFiles(), AudioFiles()


class FileStream:
    """Reads files, each of which is one row."""

    def __init__(self, reader: Reader, extents: Sequence[Extent]) -> None:
        self._reader = reader
        self._extents = extents
        self._next = 0

    def skip(self, num_rows: int) -> None:
        self._next += num_rows

    def take(self, num_rows: int) -> pa.Table:
        wanted = self._extents[self._next : self._next + num_rows]
        self._next += num_rows
        pieces = [
            self._read(wanted[i : i + _FILES_AT_ONCE])
            for i in range(0, len(wanted), _FILES_AT_ONCE)
        ]
        return pa.concat_tables(pieces)

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _read(self, extents: Sequence[Extent]) -> pa.Table:
        limit = self._reader.source.max_image_bytes
        small = {e.path: e.exact_version for e in extents if e.size_bytes <= limit}
        found = self._reader.store.read_many(list(small), small)
        values: list[bytes | None] = []
        failures: list[Failure | None] = []
        for extent in extents:
            data, failure = self._judge(extent, found.get(extent.path))
            values.append(data)
            failures.append(failure)
        ids = [extent.path for extent in extents]
        uris = [self._reader.store.url(extent.path) for extent in extents]
        [name] = self._reader.fields.names
        return make_rows(self._reader, ids, uris, {name: values}, failures)

    def _judge(
        self, extent: Extent, found: bytes | Exception | None
    ) -> tuple[bytes | None, Failure | None]:
        if found is None:
            limit = self._reader.source.max_image_bytes
            message = f"{extent.size_bytes} bytes, the limit is {limit}"
            return None, Failure(Reason.TOO_LARGE, STAGE, message, num_bytes=extent.size_bytes)
        if isinstance(found, FileNotFoundError):
            return None, Failure(Reason.MISSING, STAGE, "vanished since it was planned")
        if isinstance(found, BadBlockError):
            return None, Failure(Reason.UNREADABLE_SHARD, STAGE, str(found))
        if isinstance(found, Exception):
            raise found
        if len(found) != extent.size_bytes:
            raise changed(self._reader.store, extent)
        return found, None
