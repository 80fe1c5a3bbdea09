"""Choose the reader of a job's input columns; several inputs have one reader that joins theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import pyarrow as pa

from pipeline.core.errors import JobError
from pipeline.core.failures import of_part
from pipeline.core.hive_paths import hive_values
from pipeline.core.media import ENCODED
from pipeline.core.printable import clean_message
from pipeline.core.schema import columns_of_part, input_column, is_feature, widths_of
from pipeline.job.features import FeatureColumn, FeatureEntry, column_of
from pipeline.job.source import Source
from pipeline.sources.columns.input_reader import (
    Failures,
    InputReader,
    InputRows,
    Place,
    null_where_failed,
)
from pipeline.sources.columns.media_and_texts import EncodedColumn, TextColumns
from pipeline.sources.features.feature_columns import FeatureColumns
from pipeline.sources.features.vectors import categories_of
from pipeline.sources.uris.fetch import UriColumn


@dataclass(frozen=True)
class SeveralColumns(InputReader):
    """The reader of several inputs; its columns are prefixed with the names of the inputs.

    The URI of a row is the one that the first input of URIs names.
    """

    names: tuple[str, ...]
    rows_at_once: int
    parts: Mapping[str, InputReader]
    """By the name of the input, in the order of the job."""

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
    """Remove the inputs of failed rows, except vectors, which have no nulls."""
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
    "text": lambda source, names: TextColumns(
        names, source.max_text_bytes, source.text_pair_column is not None
    ),
    "several": lambda source, _: SeveralColumns.of(
        {name: columns_of(part) for name, part in source.parts.items()}
    ),
}


def columns_of(source: Source) -> InputReader:
    """Return the reader of the input columns of a job."""
    input_name, names = source.input_columns
    return _READERS[input_name](source, names)


def folder_columns(source: Source, path: str) -> dict[str, str | None]:
    """Return the features and pass-through columns in the names of a shard's folders.

    Columns of the same names in the shard are not read, as in Spark, DuckDB and Arrow's data sets.
    Texts, images, URIs and ids never come from a folder.
    """
    inside = {source.id_column}
    for part in source.parts.values():
        inside |= set() if part.features else {*part.input_columns.names}
    values = folder_values(source, path)
    return {name: value for name, value in values.items() if name not in inside}


def folder_values(source: Source, path: str) -> dict[str, str | None]:
    """Return the values in the names of a shard's folders; a lake table knows its values itself."""
    return {} if source.is_lake_table else hive_values(path)


def fields_of_parts(source: Source, fields_of: Callable[[Source], pa.Schema]) -> pa.Schema:
    """Return the columns of all inputs, given a function for the columns of a single one."""
    if not source.inputs:
        return fields_of(source)
    return pa.schema(
        field.with_name(input_column(name, field.name))
        for name, part in source.parts.items()
        for field in fields_of(part)
    )


def fields_of_part(part: str, source: Source, fields: pa.Schema) -> pa.Schema:
    """Return the columns of one input, named as if it were the only one.

    Args:
        part: The name of the input; '' for the only one.
        fields: The columns of all inputs, as in `Reader.fields`.
    """
    if not part:
        return fields
    columns = columns_of_part(part, source.inputs, fields.names)
    return pa.schema([fields.field(name).with_name(column) for name, column in columns.items()])


_SHOWN, _MAX_CHARS = 8, 40


class Vector(NamedTuple):
    """The feature vector of a row, or of one of several inputs."""

    size: int
    """F, plus the number of texts beside the vector."""
    names: tuple[str, ...]
    """In order: `age`, `plan=basic`, `seen (weekday)`; a list of numbers has one, `vec[0..7]`."""

    def describe(self) -> str:
        """Return a short description, `12 features (age, income, plan=basic, ...)`."""
        size = "1 feature" if self.size == 1 else f"{self.size:,} features"
        return f"{size} ({self.first_names()})"

    def first_names(self) -> str:
        """Return the first names, `age, income, plan=basic, ...`."""
        names = [clean_message(name)[:_MAX_CHARS] for name in self.names[:_SHOWN]]
        return ", ".join([*names, *(["..."] if len(self.names) > _SHOWN else [])])


def vectors_of(source: Source, fields: pa.Schema) -> Mapping[str, Vector]:
    """Return the feature vectors by the name of the input; '' for the only one.

    Args:
        source: The section of the job, with its categories read.
        fields: The columns of all inputs, as in a plan; empty if no shard could be read.
    """
    vectors = {
        name: _vector(part.features, fields_of_part(name, source, fields))
        for name, part in source.parts.items()
        if part.features
    }
    return {name: vector for name, vector in vectors.items() if vector is not None}


def _vector(features: Sequence[FeatureEntry], fields: pa.Schema) -> Vector | None:
    if not any(map(is_feature, fields.names)):
        return None
    widths = widths_of(fields) or (0,) * len(features)
    size, names = 0, []
    for entry, width in zip(features, widths, strict=True):
        for name, num in _names(entry, width):
            names.append(name)
            size += num
    return Vector(size, tuple(names))


def _names(entry: FeatureEntry, width: int) -> Iterator[tuple[str, int]]:
    """Yield the names of an entry's numbers, and how many numbers have each name."""
    name = column_of(entry)
    if isinstance(entry, FeatureColumn) and entry.is_category:
        if entry.encoding == "index":
            yield f"{name} (index)", 1
            return
        yield from ((f"{name}={value or repr(value)}", 1) for value in categories_of(entry))
        if entry.unknown == "own":
            yield f"{name} (other)", 1
    elif isinstance(entry, FeatureColumn) and (entry.part or entry.is_text):
        yield f"{name} ({entry.read_as})", 1
    elif width:
        yield f"{name}[0..{width - 1}]", width
    else:
        yield name, 1
