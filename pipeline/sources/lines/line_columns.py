"""The columns that a job needs of lines, with the types that the first lines of a shard have."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any, BinaryIO, Literal

import pyarrow as pa

from pipeline.core.errors import JobError
from pipeline.core.hive_paths import above_root
from pipeline.core.printable import listed
from pipeline.core.schema import widths_of
from pipeline.job.condition import Value, values_in
from pipeline.job.features import FeatureColumn, FeatureEntry, column_of
from pipeline.job.source import Source
from pipeline.sources.columns.arrow_types import parse_type
from pipeline.sources.columns.column_path import value_at
from pipeline.sources.columns.pass_through import PASSED, check_names
from pipeline.sources.input_columns import (
    columns_of,
    fields_of_part,
    fields_of_parts,
    folder_columns,
)
from pipeline.sources.rows import Reader
from pipeline.sources.units import Extent
from pipeline.sources.whole_file import open_sequential
from pipeline.storage.store import Store, StoredFile

Role = Literal["text", "number", "id", "pass", "category", "presence"]
COMPARED = "_compared_"
"""Prefix of columns that `source.where` compares, before their name in the shard."""


@dataclass(frozen=True)
class Column:
    """One column."""

    name: str
    role: Role
    dtype: pa.DataType | None = None
    """The type of a pass-through column."""
    is_declared: bool = False
    """Whether `source.casts` declares the type; if not, the first lines do."""
    width: int = 0
    """The length of a feature that is a list; 0 for others."""


def columns_for(reader: Reader, path: str, *, has_types: bool) -> dict[str, Column]:
    """Return the columns that a job needs of the lines of a shard, by their name in tables.

    Columns in the names of the shard's folders are not read. Values without types are texts.
    """
    source, folders = reader.source, folder_columns(reader.source, path)
    passed = {source.passed[field.name]: field.type for field in reader.pass_through}
    columns: dict[str, Column] = {}
    for part, section in source.parts.items():
        if section.features:
            fields = fields_of_part(part, source, reader.fields)
            for column in _features(section.features, fields, passed):
                if column.name not in folders:
                    columns.setdefault(column.name, column)
        else:
            columns |= {name: Column(name, "text") for name in section.input_columns.names}
    if source.id_column and source.id_column not in columns:
        columns[source.id_column] = Column(source.id_column, "id")
    for field in reader.pass_through:
        name = source.passed[field.name]
        if name not in folders:
            is_declared = field.name in source.casts
            columns[PASSED + field.name] = Column(name, "pass", field.type, is_declared)
    return columns | compared_columns(source, path, has_types=has_types)


def compared_columns(source: Source, path: str, *, has_types: bool) -> dict[str, Column]:
    """Return the columns that `source.where` compares; the arguments are those of `columns_for`.

    `casts` declares a type. Otherwise values with types are compared as the type of the values in
    the condition, and of texts, the numeric features are numbers.
    """
    if source.condition is None:
        return {}
    entries = [entry for part in source.parts.values() for entry in part.features]
    numbers = {column_of(entry) for entry in entries if role_of(entry) == "number"}
    columns, folders = dict[str, Column](), folder_columns(source, path)
    for name, values in values_in(source.condition).items():
        if (dtype := cast_of(source, name)) is not None:
            column = Column(name, "pass", dtype, is_declared=True)
        elif has_types:
            column = _column_like(name, values)
        else:
            column = Column(name, "number" if name in numbers else "text")
        if name not in folders:
            columns[COMPARED + name] = column
    return columns


def cast_of(source: Source, column: str) -> pa.DataType | None:
    """Return the type that `source.casts` declares for a column of the shards."""
    names = [name for name, of in source.passed.items() if of == column] or [column]
    return next((parse_type(n, source.casts[n]) for n in names if n in source.casts), None)


def _column_like(name: str, values: Sequence[Value]) -> Column:
    """Return a column of the type of values; without values, of which any type is null or not."""
    if times := [value for value in values if isinstance(value, dt.date)]:
        zones = [time.tzinfo for time in times if isinstance(time, dt.datetime)]
        timestamp = pa.timestamp("us", "UTC" if any(zones) else None)
        return Column(name, "pass", timestamp if zones else pa.date32(), is_declared=True)
    first = values[0] if values else None
    if first is None or isinstance(first, str):
        return Column(name, "presence" if first is None else "text")
    if isinstance(first, bool):
        return Column(name, "pass", pa.bool_())
    is_large = any(isinstance(value, int) and abs(value) > _EXACT for value in values)
    return Column(name, "pass", pa.int64()) if is_large else Column(name, "number")


def _features(
    features: Sequence[FeatureEntry], fields: pa.Schema, passed: Mapping[str, pa.DataType]
) -> Iterator[Column]:
    """Yield the columns of the features in order; a column may come several times."""
    widths = widths_of(fields) or (0,) * len(features)
    for entry, width in zip(features, widths, strict=True):
        name, role = column_of(entry), role_of(entry)
        if role != "number":
            yield Column(name, role)
        else:
            is_int = name in passed and pa.types.is_integer(passed[name])
            yield Column(name, "pass" if is_int else "number", passed.get(name), width=width)


def role_of(entry: FeatureEntry) -> Role:
    """Return the role of the column of a feature."""
    if isinstance(entry, FeatureColumn) and entry.is_category:
        return "category"
    is_text = isinstance(entry, FeatureColumn) and (entry.part or entry.is_text)
    return "text" if is_text else "number"


SAMPLE_ROWS = 1000
_SAMPLE_BYTES = 16 * 2**20
_SAMPLE_SHARDS = 16
INT64 = range(-(2**63), 2**63)
_EXACT = 2**53
"""Up to this, a double is as exact as an integer."""
Objects = Sequence[Mapping[str, Any]]
ReadObjects = Callable[[BinaryIO, str], Iterable[tuple[Mapping[str, Any] | str, int]]]
"""Takes the handle and path of a shard; yields the columns of each line by name, or why the line is
bad, and the bytes of the line."""


def first_objects(
    store: Store, shards: Sequence[StoredFile], read: ReadObjects
) -> tuple[str, Objects, Sequence[str]]:
    """Return the path and the first lines of the first shard with a readable line, and what is bad.

    The first 16 shards are searched; path and lines are empty if none of them has such a line. The
    last item says what is wrong with the bad lines on the way.
    """
    troubles: list[str] = []
    for shard in shards[:_SAMPLE_SHARDS]:
        extent = Extent(shard.path, shard.size_bytes, shard.version, 0, 0, 0.0)
        objects: list[Mapping[str, Any]] = []
        size_bytes = 0
        with open_sequential(store, extent) as handle:
            for value, num_bytes in islice(read(handle, shard.path), SAMPLE_ROWS):
                if isinstance(value, str):
                    troubles.append(value)
                else:
                    objects.append(value)
                size_bytes += num_bytes
                if size_bytes > _SAMPLE_BYTES:
                    break
        if objects:
            return shard.path, objects, troubles
    return "", (), troubles


class Sample:
    """The first lines of a shard, each a mapping from its columns to JSON values."""

    has_types = True
    """Otherwise all values are texts."""

    def __init__(
        self, source: Source, path: str, objects: Objects, troubles: Sequence[str] = ()
    ) -> None:
        self._source, self._path, self._objects = source, path, objects
        self._troubles = troubles
        self._names = sorted({name for line in objects for name in line})

    @property
    def trouble(self) -> str:
        """Say how many lines cannot be read, and why the first cannot; '' if all can."""
        number = len(self._troubles)
        if not number:
            return ""
        return f"{number} of its first {number + len(self._objects)} rows: {self._troubles[0]}"

    def rows(self) -> pa.Table:
        """Return the lines with all their columns, in the order of the lines."""
        names = dict.fromkeys(name for line in self._objects for name in line)
        return pa.table(
            {name: self.column([line.get(name) for line in self._objects]) for name in names}
        )

    def column(self, values: Sequence[Any]) -> pa.Array:
        """Return the values of a column, some of them None, with their type."""
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError):  # of several types, perhaps texts among them
            texts = [value if isinstance(value, str) else None for value in values]
            return pa.array(texts, pa.string() if any(texts) else pa.null())

    def width_of(self, value: Any) -> int | str:
        """Return the length of a list of numbers, 0 for a number; or what the value is instead."""
        if isinstance(value, (int, float)):
            return 0
        if isinstance(value, list):
            return len(value) or "an empty list"
        return described(value)

    def declare(self) -> tuple[pa.Schema, pa.Schema]:
        """Declare the pass-through columns and the input columns.

        Raises:
            JobError: The lines lack a column that the job names, its values do not fit, or it
                cannot be published.
        """
        compared = values_in(self._source.condition) if self._source.condition else {}
        check_names(self._source, compared)
        if not self._objects:
            return pa.schema([]), columns_of(self._source).fields(None)
        types = [(name, self._type(name, of)) for name, of in self._source.passed.items()]
        for name, values in compared.items():
            is_inside = name not in folder_columns(self._source, self._path)
            if is_inside and cast_of(self._source, name) is None:
                self._require_comparable(name, values)
        return pa.schema(types), self._fields()

    def _fields(self) -> pa.Schema:
        """Return the input columns; those of features with the widths of lists.

        Raises:
            JobError: A column is missing, or its values do not fit.
        """
        if self._source.id_column:
            self._values(self._source.id_column)
        return fields_of_parts(self._source, self._fields_of)

    def _fields_of(self, part: Source) -> pa.Schema:
        if part.features:
            return self._features(part)
        for name in part.input_columns.names:
            self._require_text(name)
        return columns_of(part).fields(pa.schema([]))

    def _require_comparable(self, name: str, values: Sequence[Value]) -> None:
        there = self._values(name, ", or declare its type with source.casts")
        if self.has_types and there and values:
            value = str(values[0]) if isinstance(values[0], dt.date) else values[0]
            if described(value) not in map(described, there):
                what = f"holds {described(there[0])}, but source.where compares it with"
                raise self._refused(f"column {name!r} {what} {described(value)}")

    def _features(self, part: Source) -> pa.Schema:
        features, columns = part.features, columns_of(part)
        self._require_one_role(part)
        hive = folder_columns(self._source, self._path)
        types = {}
        for entry in features:
            name, role = column_of(entry), role_of(entry)
            is_here = name not in hive
            if not is_here and (trouble := columns.folder_trouble(name, hive[name])):
                raise self._refused(f"column {name!r} {trouble}")
            if is_here and role == "text":
                self._require_text(name)
            width = self._width(name) if is_here and role == "number" else 0
            if is_here and role == "category":
                self._require_categories(name)
            types[name] = pa.list_(pa.float64(), width) if width else pa.float64()
        return columns.fields(pa.schema([*types.items()]))

    def _require_one_role(self, part: Source) -> None:
        roles: dict[str, str] = {}
        for entry in part.features:
            name, role = column_of(entry), role_of(entry)
            if roles.setdefault(name, role) != role:
                raise self._refused(f"column {name!r} is both a number and something else")

    def _require_categories(self, name: str) -> None:
        values = self._values(name)
        if values and not any(isinstance(value, str | int) for value in values):
            what = described(values[0])
            raise self._refused(f"column {name!r} holds {what}, expected text, whole numbers")

    def _type(self, name: str, column: str) -> pa.DataType:
        if name in self._source.casts:
            return parse_type(name, self._source.casts[name])
        if column in folder_columns(self._source, self._path):
            return pa.string()
        return type_of(self._values(column, ", or declare its type with source.casts"))

    def _values(self, name: str, hint: str = "") -> list[Any]:
        """Return the values of a column that are not null.

        Raises:
            JobError: No line has the column.
        """
        lookups = [value_at(line, name) for line in self._objects]
        values = [value for value, _ in lookups if value is not None]
        if not values and name not in self._names:
            why = next((f": {trouble}" for _, trouble in lookups if trouble), "")
            hint = above_root(self._source.uri, name) or hint
            raise self._refused(f"no column {name!r}{why}; there are {listed(self._names)}{hint}")
        return values

    def _require_text(self, name: str) -> None:
        values = self._values(name)
        if values and not any(isinstance(value, str) for value in values):
            raise self._refused(f"column {name!r} holds {described(values[0])}, expected text")

    def _width(self, name: str) -> int:
        """Return the length of the lists of a feature; 0 if it is a number."""
        for value in self._values(name):
            width = self.width_of(value)
            if width == 0 or (isinstance(width, int) and name not in self._source.passed.values()):
                return width
            what = width if isinstance(width, str) else "a list"
            hint = " or a list of numbers that is not passed through"
            raise self._refused(f"column {name!r} holds {what}, expected a number{hint}")
        raise self._refused(f"column {name!r} is null, expected numbers")

    def _refused(self, what: str) -> JobError:
        number = len(self._objects)
        return JobError(
            f"source: {self._path} does not fit the job; in its first {number} rows: {what}"
        )


def described(value: Any) -> str:
    """Name the type of a JSON value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float, Decimal)):
        return "a number"
    return (
        "text" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"
    )


def type_of(values: Sequence[Any]) -> pa.DataType:
    """Return the type of a pass-through column by its first values; text unless all are numbers."""
    type_names = {*_type_names(values)}
    if type_names == {"bool"}:
        return pa.bool_()
    if type_names == {"whole"}:
        return pa.int64()
    return pa.float64() if type_names and type_names <= {"whole", "fraction"} else pa.string()


def _type_names(values: Sequence[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, bool):
            yield "bool"
        elif isinstance(value, int):
            yield "whole" if value in INT64 else "text"
        else:
            yield "fraction" if isinstance(value, float) else "text"
