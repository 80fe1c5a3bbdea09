"""Dates and times become whole numbers: seconds or days since an origin, or a part of them.

Pure over Arrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.job.features import FeatureColumn, Part
from pipeline.sources.columns.arrow_types import is_text, plain_type

Mask = npt.NDArray[np.bool_]
_UNITS_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DAY_S = 86_400
_OF_TIMES = ("seconds", "hour")
"""What a time of day has."""
_PARTS: Mapping[Part, Callable[[pa.Array], pa.Array]] = {
    "year": pc.year,
    "month": pc.month,
    "day": pc.day,
    "weekday": lambda column: pc.day_of_week(column, count_from_zero=True, week_start=1),
    "hour": pc.hour,
}


def time_trouble(dtype: pa.DataType, part: Part) -> str:
    """Return why columns of a type have no such number, or ''."""
    dtype = plain_type(dtype)
    if is_text(dtype) or pa.types.is_timestamp(dtype):
        return ""
    if pa.types.is_date(dtype):
        return "which has no hour" if part == "hour" else ""
    if pa.types.is_time(dtype):
        return "" if part in _OF_TIMES else f"of which {' and '.join(_OF_TIMES)} can be taken"
    return f"expected a date or time, for read_as: {part}"


def read_times(column: pa.Array, entry: FeatureColumn) -> tuple[pa.Array, Mask]:
    """Return int64 (N,), null where there is none; and bool (N,): texts that are no date or time.

    Args:
        column: (N,) dates, times or ISO 8601 texts, or a dictionary of them.
        entry: Says what becomes of them.
    """
    part = entry.part
    assert part is not None, "declared as a date or time"
    is_bad = np.zeros(len(column), np.bool_)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if is_text(column.type):
        column, is_bad = _parsed(column)
    if part in _PARTS:
        return _PARTS[part](column).cast(pa.int64()), is_bad
    seconds, origin = _seconds(column), int(entry.origin_at.timestamp())
    if pa.types.is_time(column.type):
        origin = 0
    since = seconds - origin
    numbers = since if part == "seconds" else np.floor_divide(since, _DAY_S)
    is_null = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    return pa.array(numbers, pa.int64(), mask=is_null), is_bad


def _seconds(column: pa.Array) -> npt.NDArray[np.int64]:
    """Return whole seconds since 1970 or midnight, int64 (N,); anything where it is null."""
    dtype = column.type
    is_date = pa.types.is_date(dtype)
    whole = column.cast(pa.date32()) if is_date else column
    whole = whole.cast(pa.int32() if is_date or pa.types.is_time32(dtype) else pa.int64())
    numbers = np.asarray(pc.fill_null(whole, 0).to_numpy(), np.int64)
    return numbers * _DAY_S if is_date else np.floor_divide(numbers, _UNITS_PER_S[dtype.unit])


def _parsed(column: pa.Array) -> tuple[pa.Array, Mask]:
    """Parse ISO 8601 texts to timestamp[us] in UTC; each different text once."""
    coded = column.cast(pa.large_string()).dictionary_encode()
    moments = pa.array([_moment(text) for text in coded.dictionary], pa.int64())
    timestamps = moments.cast(pa.timestamp("us")).take(coded.indices)
    was_there = column.is_valid().to_numpy(zero_copy_only=False)
    return timestamps, was_there & timestamps.is_null().to_numpy(zero_copy_only=False)


def _moment(text: pa.Scalar) -> int | None:
    """Return microseconds since 1970 in UTC; None if it is no date or time."""
    for dtype in (pa.timestamp("us"), pa.timestamp("us", "UTC")):  # without a zone, or with one
        try:
            moment_us: int = text.cast(dtype).cast(pa.int64()).as_py()
        except pa.ArrowException:
            continue
        return moment_us
    return None
