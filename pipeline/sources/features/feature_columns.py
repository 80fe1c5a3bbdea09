"""The reader of feature columns: one vector per row, and texts beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.arrays import as_array
from pipeline.core.errors import JobError
from pipeline.core.failures import Reason
from pipeline.core.hive_paths import hive_values
from pipeline.core.schema import FEATURES, IMAGE_FIELDS, TEXT_FEATURE, WIDTHS, feature_fields
from pipeline.job.features import FeatureColumn, FeatureEntry, column_of
from pipeline.job.source import Source
from pipeline.sources.columns.arrow_types import is_list, is_number, is_text, plain_type
from pipeline.sources.columns.input_reader import Failures, InputReader, InputRows, Place, fail
from pipeline.sources.columns.media_and_texts import checked_texts
from pipeline.sources.features.encodings import category_trouble, time_trouble
from pipeline.sources.features.vectors import (
    FeatureRows,
    count_features,
    feature_rows,
    features_to_arrow,
    is_number_entry,
    list_widths,
    number_of,
    number_type,
    text_names,
)

_NUMBERS = (
    "expected numbers: text and categories become features as {{column: {0}, categories: [...]}}; "
    "several numbers are a list of them"
)
_DATES = "expected numbers: dates and times become features as {{column: {0}, read_as: days}}"


@dataclass(frozen=True)
class FeatureColumns(InputReader):
    """Numeric columns, lists of numbers of one length, and columns that the job encodes."""

    names: tuple[str, ...]
    source: Source
    rows_at_once = 524_288
    has_small_rows: ClassVar[bool] = True

    def trouble(self, name: str, dtype: pa.DataType) -> str:
        troubles = (_trouble(entry, dtype) for entry in self._entries[name])
        return next((trouble for trouble in troubles if trouble), "")

    def folder_trouble(self, name: str, value: str | None) -> str:
        for entry in self._entries[name]:
            if is_number_entry(entry) and value is not None and number_of(value) is None:
                how = f"{{column: {name}, categories: [...]}} makes categories of it"
                return f"is {value!r} in the names of the folders, expected a number; {how}"
        return ""

    def fields(self, schema: pa.Schema | None) -> pa.Schema:
        if schema is None:
            return IMAGE_FIELDS
        features, count = self.source.features, count_features(self.source, schema)
        fields = feature_fields(count, text_names(features), number_type(features))
        if not any(widths := list_widths(self.source, schema)):
            return fields
        vector = fields.field(FEATURES).with_metadata({WIDTHS: json.dumps(widths).encode()})
        return pa.schema(vector if field.name == FEATURES else field for field in fields)

    def read(self, table: pa.Table, failures: Failures, place: Place) -> InputRows:
        for name, value in hive_values(place.path).items():
            is_here = name in self._entries and name not in table.column_names
            if is_here and (trouble := self.folder_trouble(name, value)):
                message = f"column {name!r} {trouble}"
                fail(failures, range(table.num_rows), Reason.BAD_SCHEMA, message)
        rows = self._features(table, failures, place)
        vector = {FEATURES: features_to_arrow(rows.values)} if rows.values.shape[1] else {}
        texts = {
            f"{TEXT_FEATURE}{name}": self._texts(name, table, failures, place)
            for name in text_names(self.source.features)
        }
        return InputRows({**vector, **texts})

    def _texts(self, name: str, table: pa.Table, failures: Failures, place: Place) -> pa.Array:
        """Return texts, large_string (N,); a row without a text fails and gets a null."""
        if name in table.column_names:
            column = as_array(table.column(name))
        else:
            column = pa.repeat(pa.scalar(hive_values(place.path).get(name)), table.num_rows)
        if pa.types.is_null(column.type):
            column = column.cast(pa.large_string())
        texts, text_failures = checked_texts(column, f"feature {name}", self.source.max_text_bytes)
        for row, failure in text_failures.items():
            failures[row] = failures[row] or failure
        return texts

    @cached_property
    def _entries(self) -> Mapping[str, list[FeatureEntry]]:
        entries: dict[str, list[FeatureEntry]] = {}
        for entry in self.source.features:
            entries.setdefault(column_of(entry), []).append(entry)
        return entries

    def _features(self, table: pa.Table, failures: Failures, place: Place) -> FeatureRows:
        """Return the feature vectors, (N, F); a row without a vector fails and gets zeros.

        Raises:
            JobError: Integers would be rounded, which the job does not allow.
        """
        rows = feature_rows(self.source, table, has_integers=place.has_integers, path=place.path)
        if rows.inexact and not self.source.lossy_features:
            name, number = next(iter(rows.inexact.items()))
            dtype = rows.values.dtype
            rounded = int(dtype.type(number))
            # Numbers of JSON lines are read as float64, which may have rounded them.
            why = f"which {dtype} rounds to {rounded}" if rounded != number else f"beyond {dtype}"
            raise JobError(
                f"source.features: {name} holds {number} in {place.path}, {why}; "
                f"{self._way_out(name)}, or accept rounded whole numbers with "
                "source.lossy_features: true"
            )
        _fail_features(failures, Reason.NULL_INPUT, rows.nulls, "null")
        self._fail_unknown(failures, rows.unknown, table)
        _fail_features(failures, Reason.NON_FINITE, rows.overflows, "too large for float32")
        if rows.nulls or rows.unknown or rows.overflows:
            rows.values[rows.is_bad()] = 0.0
        return rows

    def _way_out(self, name: str) -> str:
        seconds = [e for e in self._entries[name] if getattr(e, "read_as", None) == "seconds"]
        if seconds:
            return "choose an origin near the data, or read_as: days, hour, weekday"
        return "leave the column out"

    def _fail_unknown(
        self, failures: Failures, unknown: Mapping[str, npt.NDArray[np.bool_]], table: pa.Table
    ) -> None:
        for name, mask in unknown.items():
            is_time = any(getattr(entry, "part", None) for entry in self._entries[name])
            what = "no date or time" if is_time else "no category of it"
            for row in np.flatnonzero(mask).tolist():
                shown = ""
                if name in table.column_names:
                    shown = f" is {_shown(table.column(name).slice(row, 1))}:"
                fail(failures, [row], Reason.BAD_SCHEMA, f"feature {name}{shown} {what}")


def _shown(column: pa.ChunkedArray) -> str:
    try:
        return repr(column[0].as_py())[:80]
    except UnicodeDecodeError:
        return "not UTF-8"


def _trouble(entry: FeatureEntry, dtype: pa.DataType) -> str:
    name = column_of(entry)
    if isinstance(entry, FeatureColumn) and entry.is_category:
        return category_trouble(dtype)
    if isinstance(entry, FeatureColumn) and entry.is_text:
        is_there = is_text(plain_type(dtype)) or pa.types.is_null(dtype)
        return "" if is_there else "expected text, as which the model takes it"
    if isinstance(entry, FeatureColumn) and entry.part:
        return time_trouble(dtype, entry.part)
    if pa.types.is_temporal(dtype):
        return _DATES.format(name)
    item_type = dtype.value_type if is_list(dtype) else dtype
    return "" if is_number(item_type) else _NUMBERS.format(name)


def _fail_features(
    failures: Failures, reason: Reason, where: Mapping[str, npt.NDArray[np.bool_]], what: str
) -> None:
    """Fail the rows with invalid features; earlier failures of a row stay."""
    rows = sorted({row for mask in where.values() for row in np.flatnonzero(mask).tolist()})
    for row in rows:
        names = [name for name, mask in where.items() if mask[row]]
        which = f"feature {names[0]} is" if len(names) == 1 else f"features {', '.join(names)} are"
        fail(failures, [row], reason, f"{which} {what}")
