"""Numbers for other values: the places of categories in a list, and parts of dates and times.

Categories are compared as text, so that `1` in a column of integers, in a text column and in the
name of a folder is one category.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import as_array
from pipeline.core.errors import JobError
from pipeline.job.features import FeatureColumn, FeatureEntry, Part
from pipeline.job.source import Source
from pipeline.sources.columns.arrow_types import is_text, plain_type
from pipeline.storage.store import read_file

NONE = -1
Codes = npt.NDArray[np.int32]


class CategoryCodes(NamedTuple):
    """The categories of the values of N rows."""

    codes: Codes
    """int32 (N,), places in the list of categories; `NONE` for other values and nulls."""
    is_null: npt.NDArray[np.bool_] | None
    """bool (N,); None if no row is null."""


def category_trouble(dtype: pa.DataType) -> str:
    """Return why columns of a type hold no categories, or ''."""
    dtype = plain_type(dtype)
    is_one = is_text(dtype) or pa.types.is_integer(dtype) or pa.types.is_boolean(dtype)
    return "" if is_one or pa.types.is_null(dtype) else "expected categories: text, whole numbers"


def find_categories(column: pa.Array, categories: tuple[str, ...]) -> CategoryCodes:
    """Look up the values of a column.

    Args:
        column: (N,) text, integers or booleans, or a dictionary of them.
        categories: The known values, in order.
    """
    is_null = _nulls(column)
    if not pa.types.is_dictionary(column.type):
        return CategoryCodes(_codes(column, categories), is_null)
    of_values = find_categories(as_array(column.dictionary), categories)
    places = pc.fill_null(column.indices, 0).to_numpy(zero_copy_only=False)
    if not len(of_values.codes):  # an empty dictionary: all rows are null
        return CategoryCodes(np.full(len(column), NONE, np.int32), is_null)
    codes = of_values.codes[places]
    if of_values.is_null is not None:  # a dictionary may hold a null itself
        inner = of_values.is_null[places]
        is_null = inner if is_null is None else is_null | inner
    if is_null is not None:
        codes = np.where(is_null, np.int32(NONE), codes)
    return CategoryCodes(codes, is_null)


def _codes(column: pa.Array, categories: tuple[str, ...]) -> Codes:
    if pa.types.is_null(column.type):
        return np.full(len(column), NONE, np.int32)
    dtype, codes = column.type, np.arange(len(categories), dtype=np.int32)
    if pa.types.is_integer(dtype):
        values, codes = _whole_numbers(categories, dtype)
    else:
        column = as_texts(column)
        values = pa.array(categories, column.type)
    places = pc.index_in(column, value_set=values, skip_nulls=True)
    indices = np.asarray(pc.fill_null(places, NONE).to_numpy(zero_copy_only=False), np.int32)
    whole: Codes = np.append(codes, np.int32(NONE))
    return whole[indices]


def _whole_numbers(categories: tuple[str, ...], dtype: pa.DataType) -> tuple[pa.Array, Codes]:
    """Return the categories that a column of integers can hold, and their places."""
    bounds = np.iinfo(dtype.to_pandas_dtype())
    numbers = {
        place: int(text)
        for place, text in enumerate(categories)
        if text.removeprefix("-").isdecimal() and str(int(text)) == text
    }
    kept = {place: n for place, n in numbers.items() if bounds.min <= n <= bounds.max}
    return pa.array([*kept.values()], dtype), np.array([*kept], np.int32)


def as_texts(column: pa.Array) -> pa.Array:
    """Return the values of a column that is no dictionary as text."""
    if pa.types.is_string_view(column.type):
        return column.cast(pa.large_string())
    return column if is_text(column.type) else column.cast(pa.string())


def _nulls(column: pa.Array) -> npt.NDArray[np.bool_] | None:
    if not column.null_count:
        return None
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False), np.bool_)


def with_categories(source: Source) -> Source:
    """Return the section of a job with the lists of categories in place of their URIs.

    Raises:
        JobError: A file is missing, or holds no list of distinct values.
    """
    if features := _read_all(source.features, source.storage_options):
        source = source.model_copy(update={"features": features})
    inputs = {
        name: part.model_copy(update={"features": features})
        for name, part in source.inputs.items()
        if (features := _read_all(part.features, source.storage_options))
    }
    return source.model_copy(update={"inputs": {**source.inputs, **inputs}}) if inputs else source


def _read_all(
    features: Sequence[FeatureEntry], options: Mapping[str, Any]
) -> tuple[FeatureEntry, ...]:
    """Return the entries with their lists; () if none names a file."""
    entries = tuple(
        entry.model_copy(update={"categories": _read(entry.categories, options, entry.column)})
        if isinstance(entry, FeatureColumn) and isinstance(entry.categories, str)
        else entry
        for entry in features
    )
    return () if entries == tuple(features) else entries


def _read(uri: str, storage_options: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """Read a list of values, as JSON or one per line; an empty text is a value, too."""
    what = f"source.features: {column}: categories"
    data = read_file(uri, storage_options, what)
    where = f"{what} = {uri}"
    try:
        text = data.decode("utf-8-sig")
        values = json.loads(text) if text.lstrip().startswith("[") else _lines(text)
    except ValueError as error:
        raise JobError(f"{where}: no list of values: {error}") from None
    categories = [_as_category(value, where) for value in values]
    if not categories:
        raise JobError(f"{where}: holds no values")
    if len(set(categories)) < len(categories):
        doubled = next(value for value in categories if categories.count(value) > 1)
        raise JobError(f"{where}: {doubled!r:.40} is there twice")
    return tuple(categories)


def _lines(text: str) -> list[str]:
    """Return the lines of a text, which end in \\n or \\r\\n, the last one perhaps in neither."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _as_category(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | str):
        return str(value)
    raise JobError(f"{where}: {json.dumps(value):.40} is neither text nor a whole number")


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
