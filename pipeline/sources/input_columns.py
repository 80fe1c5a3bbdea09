"""Which reader reads the input columns of a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyarrow as pa

from pipeline.core.schema import (
    ENCODED,
    columns_of_part,
    input_column,
)
from pipeline.job.source import Source
from pipeline.sources.columns.base import InputReader
from pipeline.sources.columns.images import EncodedColumn
from pipeline.sources.columns.several import SeveralColumns
from pipeline.sources.columns.texts import TextColumns
from pipeline.sources.features.columns import FeatureColumns
from pipeline.sources.uris.column import UriColumn


def _encoded(source: Source, names: tuple[str, ...]) -> InputReader:
    kind = source.encoded
    is_base64 = getattr(source, f"{kind.name}_encoding") == "base64"
    return EncodedColumn(names, is_base64, source.max_image_bytes, kind.what, kind.fields)


_READERS: Mapping[str, Callable[[Source, tuple[str, ...]], InputReader]] = {
    **dict.fromkeys(ENCODED, _encoded),
    "uri": lambda source, names: UriColumn(names, source),
    "features": lambda source, names: FeatureColumns(names, source),
    "text": lambda source, names: TextColumns(names, source.max_text_bytes),
    "several": lambda source, _: SeveralColumns.of(
        {name: columns_of(part) for name, part in source.parts.items()}
    ),
}


def columns_of(source: Source) -> InputReader:
    """Return the reader of the columns that hold a job's input."""
    kind, names = source.input_columns
    return _READERS[kind](source, names)


def fields_of_parts(source: Source, fields_of: Callable[[Source], pa.Schema]) -> pa.Schema:
    """Return the columns of all inputs, given those of one that is the only one."""
    if not source.inputs:
        return fields_of(source)
    return pa.schema(
        field.with_name(input_column(name, field.name))
        for name, part in source.parts.items()
        for field in fields_of(part)
    )


def fields_of_part(part: str, source: Source, fields: pa.Schema) -> pa.Schema:
    """Return the columns of one of several inputs, named as if it were the only one.

    Args:
        part: The name of the input, '' of the only one.
        fields: The columns of all inputs, as readers have them.
    """
    if not part:
        return fields
    own = columns_of_part(part, source.inputs, fields.names)
    return pa.schema([fields.field(name).with_name(column) for name, column in own.items()])
