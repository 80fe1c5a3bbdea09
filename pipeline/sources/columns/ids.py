"""The job's `source.id_column` as text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import as_array
from pipeline.sources.columns.arrow_types import is_text


def text_ids(
    column: pa.ChunkedArray, fallback: pa.Array
) -> tuple[pa.Array, list[int], dict[int, str]]:
    """Return ids as text, the fallback for a null.

    Args:
        column: (N,) text, binary or numbers.
        fallback: (N,) text.

    Returns:
        The ids, text (N,); the rows in which they are null; and row -> printable form of those that
        are not UTF-8.
    """
    given = as_array(column)
    if pa.types.is_dictionary(given.type):
        given = given.dictionary_decode()
    values, broken = _texts(given) if is_text(given.type) else (given.cast(pa.string()), {})
    if not values.null_count:
        return values, [], {}
    are_null = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False)).tolist()
    nulls = [row for row in are_null if row not in broken]
    return pc.coalesce(values, fallback), nulls, broken


def _texts(column: pa.Array) -> tuple[pa.Array, dict[int, str]]:
    data = column.cast(pa.large_binary())
    try:
        return data.cast(pa.string()), {}
    except pa.ArrowInvalid:  # which says of one value only that it is not UTF-8
        decoded, broken = _decoded(data.to_pylist())
    return pa.array(decoded, pa.string()), broken


def _decoded(values: Sequence[bytes | None]) -> tuple[list[str | None], dict[int, str]]:
    texts: list[str | None] = []
    broken: dict[int, str] = {}
    for row, value in enumerate(values):
        try:
            texts.append(None if value is None else value.decode("utf-8"))
        except UnicodeDecodeError:
            assert value is not None, "null decodes to null"
            texts.append(None)
            broken[row] = value.decode("utf-8", "backslashreplace")
    return texts, broken
