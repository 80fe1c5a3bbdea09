"""The columns that a job needs of lines, and as what they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from pipeline.core.schema import noted_of_features, widths_of
from pipeline.job.features import FeatureColumn, FeatureEntry, column_of
from pipeline.sources.columns.pass_through import PASSED
from pipeline.sources.input_columns import fields_of_part, folder_columns
from pipeline.sources.rows import Reader

KINDS = b"kinds"
"""Key in the metadata of the field `FEATURES`: a JSON list with what lines have for each feature
that is a category, null for others."""
Role = Literal["text", "number", "id", "pass", "category"]


@dataclass(frozen=True)
class Column:
    """One column."""

    name: str
    role: Role
    dtype: pa.DataType | None = None
    """Of a pass-through column, and of categories."""
    is_declared: bool = False
    """Whether `source.casts` has the type; if not, the first lines do."""
    width: int = 0
    """Of a feature that is a list: its length."""


def columns_for(reader: Reader, path: str) -> dict[str, Column]:
    """Return the columns that a job needs of the lines of a shard: name in tables -> column.

    Those that the shard's folders name are not read.
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
    return columns


def _features(
    features: Sequence[FeatureEntry], fields: pa.Schema, passed: Mapping[str, pa.DataType]
) -> Iterator[Column]:
    """Yield the columns of the features, in order; one may be there several times."""
    widths = widths_of(fields) or (0,) * len(features)
    category_types = noted_of_features(fields, KINDS) or (None,) * len(features)
    for entry, width, category_type in zip(features, widths, category_types, strict=True):
        name, role = column_of(entry), role_of(entry)
        if role == "category":
            yield Column(name, role, _CATEGORIES[category_type or "text"])
        elif role == "text":
            yield Column(name, role)
        else:
            is_int = name in passed and pa.types.is_integer(passed[name])
            yield Column(name, "pass" if is_int else "number", passed.get(name), width=width)


_CATEGORIES = {"text": pa.large_string(), "whole": pa.int64(), "bool": pa.bool_()}


def role_of(entry: FeatureEntry) -> Role:
    """Return as what a feature is read."""
    if isinstance(entry, FeatureColumn) and entry.is_category:
        return "category"
    is_text = isinstance(entry, FeatureColumn) and (entry.part or entry.is_text)
    return "text" if is_text else "number"
