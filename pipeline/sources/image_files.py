"""Loose files of images or of clips of sound: each file is one extent of one row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pipeline.core.backoff import BadBlockError
from pipeline.core.errors import AccessDenied
from pipeline.core.failures import Failure, Reason
from pipeline.core.schema import ENCODED
from pipeline.core.semantics import SEMANTICS
from pipeline.job.source import Source
from pipeline.sources.columns.base import STAGE
from pipeline.sources.extents import Extent
from pipeline.sources.rows import Reader, changed, make_rows
from pipeline.sources.source_format import CountsRows, Measured, RowIds, Rows, SourceFormat
from pipeline.storage.store import Store, StoredFile


class ImageFiles(SourceFormat):
    """Loose image files: the listing counts the rows."""

    name = "images"
    suffixes: tuple[str, ...] = (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"),
        *(".avif", ".tif", ".tiff", ".heic", ".heif"),
    )
    counts_rows: CountsRows = "listing"
    semantics = SEMANTICS["images"]
    kinds = frozenset(["a JPEG", "a PNG"])
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

    def read(
        self, reader: Reader, extents: Sequence[Extent], is_wanted: Callable[[int], bool]
    ) -> Iterator[Rows]:
        limit = reader.source.max_image_bytes
        small = {e.path: e.exact_version for e in extents if e.size_bytes <= limit}
        contents = reader.store.read_many(list(small), small)
        values, failures = zip(
            *(_judged(reader, extent, contents.get(extent.path)) for extent in extents), strict=True
        )
        ids = [extent.path for extent in extents]
        uris = [reader.store.url(extent.path) for extent in extents]
        [name] = reader.fields.names
        yield Rows(make_rows(reader, ids, uris, {name: values}, failures))


class AudioFiles(ImageFiles):
    """Loose files of clips of sound, listed likewise."""

    name = "audio"
    suffixes = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus")
    semantics = SEMANTICS["audio"]
    kinds = frozenset(["WAV", "FLAC", "Ogg", "MP3"])
    holds = "audio"
    fields = frozenset(["audio_column", "id_column", "casts", "pass_through"])


FORMAT, AUDIO = ImageFiles(), AudioFiles()


def _judged(
    reader: Reader, extent: Extent, content: bytes | Exception | None
) -> tuple[bytes | None, Failure | None]:
    if content is None:
        message = f"{extent.size_bytes} bytes, the limit is {reader.source.max_image_bytes}"
        return None, Failure(Reason.TOO_LARGE, STAGE, message, num_bytes=extent.size_bytes)
    if isinstance(content, FileNotFoundError):
        return None, Failure(Reason.MISSING, STAGE, "vanished since it was planned")
    if isinstance(content, BadBlockError):
        return None, Failure(Reason.UNREADABLE_SHARD, STAGE, str(content))
    if isinstance(content, AccessDenied):
        return None, Failure(Reason.ACCESS_DENIED, STAGE, content.why)
    if isinstance(content, Exception):
        raise content
    if len(content) != extent.size_bytes:
        raise changed(reader.store, extent)
    return content, None
