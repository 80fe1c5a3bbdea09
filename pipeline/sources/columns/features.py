"""Columns of numbers, which become one vector per row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import JobError
from pipeline.core.failures import Reason
from pipeline.core.schema import FEATURES, IMAGE_FIELDS, feature_fields
from pipeline.job.source import Source
from pipeline.sources.arrow_types import is_number
from pipeline.sources.columns.base import Failures, InputRows, Place, fail
from pipeline.sources.feature_columns import (
    FeatureRows,
    count_features,
    feature_rows,
    features_to_arrow,
)

_NUMBERS = (
    "expected numbers: text and categories become features when they are written as numbers, "
    "several of them as a fixed-size list (token ids, or 0 and 1 for each category)"
)


@dataclass(frozen=True)
class FeatureColumns:
    """Numeric columns and fixed-size lists of numbers."""

    names: tuple[str, ...]
    source: Source
    rows_at_once = 256

    def path(self, name: str, kind: pa.DataType) -> str:
        return name

    def trouble(self, kind: pa.DataType) -> str:
        is_list = pa.types.is_fixed_size_list(kind)
        return "" if is_number(kind.value_type if is_list else kind) else _NUMBERS

    def fields(self, schema: pa.Schema | None) -> pa.Schema:
        return (
            IMAGE_FIELDS if schema is None else feature_fields(count_features(self.source, schema))
        )

    def read(self, table: pa.Table, failures: Failures, place: Place) -> InputRows:
        found = self._features(table, failures, place)
        return InputRows(
            {FEATURES: features_to_arrow(found.values)}, is_rounded=pa.array(found.is_rounded)
        )

    def _features(self, table: pa.Table, failures: Failures, place: Place) -> FeatureRows:
        """Return the feature vectors, float32 (N, F); a row without them fails and gets zeros.

        Raises:
            JobError: Integers would be rounded, and the job does not allow it.
        """
        found = feature_rows(self.source, table, has_integers=place.has_integers)
        if found.inexact and not self.source.lossy_features:
            name, number = next(iter(found.inexact.items()))
            raise JobError(
                f"source.features: {name} holds {number} in {place.path}, which float32 rounds to "
                f"{int(np.float32(number))}; leave the column out, or accept rounded whole numbers "
                "with source.lossy_features: true"
            )
        if self.source.null_features == "quarantine":
            _fail_features(failures, Reason.NULL_INPUT, found.nulls, "null")
            found.values[found.is_null()] = 0.0
        _fail_features(failures, Reason.NON_FINITE, found.overflows, "too large for float32")
        found.values[found.is_overflow()] = 0.0
        return found


def _fail_features(
    failures: Failures, reason: Reason, where: Mapping[str, npt.NDArray[np.bool_]], what: str
) -> None:
    """Fail the rows with invalid features; earlier failures of a row stay."""
    rows = sorted({row for mask in where.values() for row in np.flatnonzero(mask).tolist()})
    for row in rows:
        names = [name for name, mask in where.items() if mask[row]]
        which = f"feature {names[0]} is" if len(names) == 1 else f"features {', '.join(names)} are"
        fail(failures, [row], reason, f"{which} {what}")
