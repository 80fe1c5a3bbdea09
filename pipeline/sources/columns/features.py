"""Columns of numbers, of categories and of dates, which become one vector per row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import JobError
from pipeline.core.failures import Reason
from pipeline.core.schema import FEATURES, IMAGE_FIELDS, feature_fields
from pipeline.job.features import FeatureColumn, FeatureEntry, column_of
from pipeline.job.source import Source
from pipeline.sources.arrow_types import is_number
from pipeline.sources.columns.base import Failures, InputRows, Place, fail
from pipeline.sources.feature_categories import category_trouble
from pipeline.sources.feature_columns import (
    WIDTHS,
    count_features,
    feature_rows,
    features_to_arrow,
    list_widths,
    number_of,
)
from pipeline.sources.feature_limits import FeatureRows
from pipeline.sources.feature_times import time_trouble

_NUMBERS = (
    "expected numbers: text and categories become features as {{column: {0}, categories: [...]}}; "
    "several numbers are a fixed-size list"
)
_DATES = "expected numbers: dates and times become features as {{column: {0}, read_as: days}}"


@dataclass(frozen=True)
class FeatureColumns:
    """Numeric columns and fixed-size lists of numbers; others with what becomes of them."""

    names: tuple[str, ...]
    source: Source
    rows_at_once = 524_288

    def path(self, name: str, kind: pa.DataType) -> str:
        return name

    def trouble(self, name: str, kind: pa.DataType) -> str:
        found = (_trouble(each, kind) for each in self._entries(name))
        return next((text for text in found if text), "")

    def folder_trouble(self, name: str, value: str | None) -> str:
        for entry in self._entries(name):
            is_plain = isinstance(entry, str) or not (entry.is_category or entry.read_as)
            if is_plain and value is not None and number_of(value) is None:
                how = f"{{column: {name}, categories: [...]}} makes categories of it"
                return f"is {value!r} in the names of the folders, expected a number; {how}"
        return ""

    def fields(self, schema: pa.Schema | None) -> pa.Schema:
        if schema is None:
            return IMAGE_FIELDS
        fields = feature_fields(count_features(self.source, schema))
        if not any(widths := list_widths(self.source, schema)):
            return fields
        told = {WIDTHS: json.dumps(widths).encode()}
        return pa.schema([fields.field(FEATURES).with_metadata(told)])

    def read(self, table: pa.Table, failures: Failures, place: Place) -> InputRows:
        found = self._features(table, failures, place)
        return InputRows({FEATURES: features_to_arrow(found.values)})

    def _entries(self, name: str) -> list[FeatureEntry]:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> Mapping[str, list[FeatureEntry]]:
        found: dict[str, list[FeatureEntry]] = {}
        for each in self.source.features:
            found.setdefault(column_of(each), []).append(each)
        return found

    def _features(self, table: pa.Table, failures: Failures, place: Place) -> FeatureRows:
        """Return the feature vectors, float32 (N, F); a row without them fails and gets zeros.

        Raises:
            JobError: Integers would be rounded, and the job does not allow it.
        """
        found = feature_rows(self.source, table, has_integers=place.has_integers, path=place.path)
        if found.inexact and not self.source.lossy_features:
            name, number = next(iter(found.inexact.items()))
            raise JobError(
                f"source.features: {name} holds {number} in {place.path}, which float32 rounds to "
                f"{int(np.float32(number))}; {self._way_out(name)}, or accept rounded whole "
                "numbers with source.lossy_features: true"
            )
        _fail_features(failures, Reason.NULL_INPUT, found.nulls, "null")
        self._fail_unknown(failures, found.unknown, table)
        _fail_features(failures, Reason.NON_FINITE, found.overflows, "too large for float32")
        if found.nulls or found.unknown or found.overflows:
            found.values[found.is_bad()] = 0.0
        return found

    def _way_out(self, name: str) -> str:
        seconds = [e for e in self._entries(name) if getattr(e, "read_as", None) == "seconds"]
        if seconds:
            return "choose an origin near the data, or read_as: days, hour, weekday"
        return "leave the column out"

    def _fail_unknown(
        self,
        failures: Failures,
        unknown: Mapping[str, npt.NDArray[np.bool_]],
        table: pa.Table,
    ) -> None:
        for name, mask in unknown.items():
            is_time = any(getattr(each, "read_as", None) for each in self._entries(name))
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


def _trouble(entry: FeatureEntry, kind: pa.DataType) -> str:
    name = column_of(entry)
    if isinstance(entry, FeatureColumn) and entry.is_category:
        return category_trouble(kind)
    if isinstance(entry, FeatureColumn) and entry.read_as:
        return time_trouble(kind, entry.read_as)
    if pa.types.is_temporal(kind):
        return _DATES.format(name)
    is_list = pa.types.is_fixed_size_list(kind)
    return "" if is_number(kind.value_type if is_list else kind) else _NUMBERS.format(name)


def _fail_features(
    failures: Failures, reason: Reason, where: Mapping[str, npt.NDArray[np.bool_]], what: str
) -> None:
    """Fail the rows with invalid features; earlier failures of a row stay."""
    rows = sorted({row for mask in where.values() for row in np.flatnonzero(mask).tolist()})
    for row in rows:
        names = [name for name, mask in where.items() if mask[row]]
        which = f"feature {names[0]} is" if len(names) == 1 else f"features {', '.join(names)} are"
        fail(failures, [row], reason, f"{which} {what}")
