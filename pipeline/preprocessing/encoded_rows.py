"""Decode and transform rows of encoded images or clips, one by one; find columns that hold them.

Only one decoded row per thread is in memory, and a bad row does not affect the others. The first
values of a column tell whether it holds encoded bytes, base64 or URIs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from time import perf_counter
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.failures import Failure, RowError, failures_of
from pipeline.core.figures import PREPARED, Counters, StageCounters, add
from pipeline.core.media import ENCODED, media_format
from pipeline.preprocessing.model_input import Columns
from pipeline.process.liveness import still_alive
from pipeline.sources.columns.arrow_types import is_binary, is_text
from pipeline.sources.columns.media_and_texts import decode_base64

_LIMIT_BYTES = 64 * 2**20
_NONE: Mapping[str, tuple[Any, str]] = MappingProxyType({})
Step = Callable[[int, Any], tuple[Any, int]]
"""Row number and value -> new value and its bytes; raises `RowError`."""


def prepare_rows(
    rows: pa.Table, column: str, decode: Step, transforms: Sequence[Step], counters: Counters
) -> list[Failure | None]:
    """Decode and transform the rows without an error; return the failures of all rows.

    Args:
        column: The column of encoded bytes.
        transforms: One per thread, each used by one thread at a time; they store their results.
        counters: Gets the entries of `PREPARED`.
    """
    failures, encoded = failures_of(rows), rows.column(column)
    todo = [row for row, failure in enumerate(failures) if failure is None]
    free = SimpleQueue[Step]()
    for transform in transforms:
        free.put(transform)

    def work(row: int) -> list[StageCounters]:
        transform = free.get()
        try:
            data: bytes = encoded[row].as_py()
            failures[row], counted = _done(row, data, (decode, transform))
        finally:
            free.put(transform)
        return counted

    total, started = [StageCounters() for _ in PREPARED], perf_counter()
    with ThreadPoolExecutor(len(transforms)) as pool:
        for counted in (map if len(transforms) == 1 else pool.map)(work, todo):
            still_alive()
            for index, stage in enumerate(counted):
                total[index] += stage
    wall_s = perf_counter() - started
    worked_s = sum(stage.busy_s for stage in total)
    # Busy seconds count per slot, whatever the number of its threads.
    scale = min(1.0, wall_s / worked_s) if worked_s else 1.0
    for name, stage in zip(PREPARED, total, strict=True):
        add(counters, name, replace(stage, busy_s=stage.busy_s * scale))
    return failures


def _done(
    row: int, data: bytes, steps: Sequence[Step]
) -> tuple[Failure | None, list[StageCounters]]:
    """Return the failure of a row or None, and the counters of the stages that it reached."""
    value: Any = data
    size_bytes, counted = len(data), list[StageCounters]()
    for name, step in zip(PREPARED, steps, strict=True):
        given_bytes, started = size_bytes, perf_counter()
        try:
            value, size_bytes = step(row, value)
        except RowError as error:
            counted.append(StageCounters(1, 0, 1, given_bytes, 0, perf_counter() - started))
            digest = hashlib.sha256(data).hexdigest()
            return Failure(error.reason, name, error.message, digest, len(data)), counted
        busy_s = perf_counter() - started
        counted.append(StageCounters(1, 1, 0, given_bytes, size_bytes, busy_s))
    return None, counted


def encoded_columns(
    rows: pa.Table, media: str, of_uris: Mapping[str, tuple[Any, str]] = _NONE
) -> tuple[Columns, ...]:
    """Return the columns of encoded values, of base64 and of URIs.

    Args:
        rows: The first rows.
        media: `image` or `audio`, the prefix of the fields.
        of_uris: Further fields of a job with URIs.
    """
    suffixes = tuple(f".{extension}" for extension in ENCODED[media].extensions)
    encoded = [field.name for field in rows.schema if _is_encoded(rows, field, media)]
    texts = [field.name for field in rows.schema if is_text(field.type)]
    base64 = [name for name in texts if _is_base64(_first(rows, name), name, media)]
    uris = [name for name in texts if _is_uri(_first(rows, name), suffixes)]
    return (
        Columns(f"{media}_column", encoded),
        Columns(f"{media}_column", base64, {f"{media}_encoding": ("base64", "as text")}),
        Columns("uri_column", uris, of_uris),
    )


def _first(rows: pa.Table, name: str) -> Any:
    """Return the first value that is not null; None if there is none."""
    column = rows.column(name)
    if pa.types.is_struct(column.type):
        index = column.type.get_field_index("bytes")
        if index < 0:
            return None
        column = pc.struct_field(column, index)
    return next((value.as_py() for value in column if value.is_valid), None)


def _is_encoded(rows: pa.Table, field: pa.Field, media: str) -> bool:
    if not (is_binary(field.type) or pa.types.is_struct(field.type)):
        return False
    value = _first(rows, field.name)
    return isinstance(value, bytes) and media_format(media, value) is not None


def _is_base64(value: Any, name: str, media: str) -> bool:
    if not isinstance(value, str) or not value.isascii():
        return False
    decoded = decode_base64(memoryview(value.encode()), name, _LIMIT_BYTES)
    return isinstance(decoded, bytes) and media_format(media, decoded) is not None


def _is_uri(value: Any, suffixes: tuple[str, ...]) -> bool:
    is_line = isinstance(value, str) and len(value.split()) == 1
    return is_line and value.lower().partition("?")[0].endswith(suffixes)
