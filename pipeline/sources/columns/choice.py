"""Which reader reads the input columns of a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.job.source import InputKind, Source
from pipeline.sources.columns.base import InputReader
from pipeline.sources.columns.features import FeatureColumns
from pipeline.sources.columns.images import ImageColumn
from pipeline.sources.columns.texts import TextColumns
from pipeline.sources.columns.uris import UriColumn

_READERS: Mapping[InputKind, Callable[[Source, tuple[str, ...]], InputReader]] = {
    "image": lambda source, names: ImageColumn(
        names, source.image_encoding == "base64", source.max_image_bytes
    ),
    "uri": lambda source, names: UriColumn(names, source),
    "features": lambda source, names: FeatureColumns(names, source),
    "text": lambda source, names: TextColumns(names, source.max_text_bytes),
}


def columns_of(source: Source) -> InputReader:
    """Return the reader of the columns that hold a job's input."""
    kind, names = source.input_columns
    return _READERS[kind](source, names)
