"""Which reader reads the input columns of a job; those of several inputs are one reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import pyarrow as pa

from pipeline.core.errors import JobError
from pipeline.core.failures import of_part
from pipeline.core.hive_paths import hive_values
from pipeline.core.media import ENCODED
from pipeline.core.schema import columns_of_part, input_column
from pipeline.job.source import Source
from pipeline.sources.columns.base import Failures, InputReader, InputRows, Place, null_where_failed
from pipeline.sources.columns.images import EncodedColumn
from pipeline.sources.columns.texts import TextColumns
from pipeline.sources.features.columns import FeatureColumns
from pipeline.sources.uris.fetch import UriColumn


@dataclass(frozen=True)
class SeveralColumns(InputReader):
    """The readers of all inputs as one; their columns have the names of the inputs before theirs.

    The URI of a row is that which the first input of URIs names.
    """

    names: tuple[str, ...]
    rows_at_once: int
    parts: Mapping[str, InputReader]
    """By the names of the inputs, in the order of the job."""

    @classmethod
    def of(cls, parts: Mapping[str, InputReader]) -> Self:
        names = dict.fromkeys(name for part in parts.values() for name in part.names)
        return cls(tuple(names), min(part.rows_at_once for part in parts.values()), parts)

    def line_bytes(self, escaped: int) -> int:
        return sum(part.line_bytes(escaped) or 0 for part in self.parts.values())

    def path(self, name: str, dtype: pa.DataType) -> str:
        paths = {part.path(name, dtype) for part in self.parts.values() if name in part.names}
        return paths.pop() if len(paths) == 1 else name

    def trouble(self, name: str, dtype: pa.DataType) -> str:
        for part, reader in self.parts.items():
            if name in reader.names and (trouble := reader.trouble(name, dtype)):
                return f"{trouble} for input {part!r}"
        return ""

    def folder_trouble(self, name: str, value: str | None) -> str:
        troubles = (p.folder_trouble(name, value) for p in self.parts.values() if name in p.names)
        return next((trouble for trouble in troubles if trouble), "")

    def fields(self, schema: pa.Schema | None) -> pa.Schema:
        return pa.schema(
            field.with_name(input_column(name, field.name))
            for name, part in self.parts.items()
            for field in part.fields(schema)
        )

    def read(self, table: pa.Table, failures: Failures, place: Place) -> InputRows:
        inputs: dict[str, InputRows] = {}
        for name, part in self.parts.items():
            part_failures = list(failures)
            try:
                inputs[name] = part.read(table, part_failures, place)
            except JobError as error:
                raise JobError(f"input {name!r}: {error}") from None
            for row, failure in enumerate(part_failures):
                if failures[row] is None and failure is not None:
                    failures[row] = of_part(name, failure)
        columns = {
            input_column(name, column): _without_failed(values, failures)
            for name, rows in inputs.items()
            for column, values in rows.columns.items()
        }
        uris = next((rows.uris for rows in inputs.values() if rows.uris is not None), None)
        return InputRows(columns, uris)


def _without_failed(column: pa.Array, failures: Failures) -> pa.Array:
    """Let no input of a failed row stay, except vectors, which have no nulls."""
    is_vector = pa.types.is_fixed_size_list(column.type)
    return column if is_vector else null_where_failed(column, failures)


def _encoded(source: Source, names: tuple[str, ...]) -> InputReader:
    encoded = source.encoded
    is_base64 = getattr(source, f"{encoded.name}_encoding") == "base64"
    return EncodedColumn(names, is_base64, source.max_image_bytes, encoded.what, encoded.fields)


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
    input_name, names = source.input_columns
    return _READERS[input_name](source, names)


def folder_columns(source: Source, path: str) -> dict[str, str | None]:
    """Return the features and pass-through columns that the names of a shard's folders say.

    Columns of the same names in the shard are not read, as Spark, DuckDB and Arrow's data sets do
    it. Texts, images, URIs and ids are never those of a folder.
    """
    inside = {source.id_column}
    for part in source.parts.values():
        inside |= set() if part.features else {*part.input_columns.names}
    return {name: value for name, value in hive_values(path).items() if name not in inside}


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
    columns = columns_of_part(part, source.inputs, fields.names)
    return pa.schema([fields.field(name).with_name(column) for name, column in columns.items()])
