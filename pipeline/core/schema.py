"""Column names, Arrow schemas and reason codes: the one place where they are spelled.

A slice travels through Ray as ONE row of a block (see `pack`), because Ray cuts and merges blocks
between rows: a slice that is a row cannot be cut or merged. Wrapping is free of copies: the rows
of the slice are the single value of a list<struct> column.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.printable import clean_message

OUTPUT_SCHEMA_VERSION = 1

Numbers = npt.NDArray[np.int64]
"""Row numbers, keys, positions."""

ROW_ID, URI, IMAGE, FEATURES = "row_id", "uri", "image", "features"
ERROR, ERROR_STAGE, MESSAGE = "error", "error_stage", "message"
SHA256, NUM_BYTES = "sha256", "num_bytes"
LABEL, LABEL_ID, SCORE, TOP_K = "label", "label_id", "score", "top_k"
EMBEDDING, VALUE = "embedding", "value"


class Reason(StrEnum):
    """Why a row could not be predicted: a closed set."""

    UNREADABLE_SHARD = "unreadable_shard"
    MISSING = "missing"
    FORBIDDEN_URI = "forbidden_uri"
    UNREACHABLE = "unreachable"
    EMPTY = "empty"
    UNIDENTIFIED = "unidentified"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TRUNCATED = "truncated"
    TOO_LARGE = "too_large"
    DECODE_ERROR = "decode_error"
    BAD_SCHEMA = "bad_schema"
    NULL_INPUT = "null_input"
    MODEL_ERROR = "model_error"
    NON_FINITE = "non_finite"
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    NATIVE_CRASH = "native_crash"
    DUPLICATE_ID = "duplicate_id"


class RowError(Exception):
    """One row cannot go on: the reason code and one line of explanation."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


_FAILURE_FIELDS = [
    pa.field(ERROR, pa.string()),
    pa.field(ERROR_STAGE, pa.string()),
    pa.field(MESSAGE, pa.string()),
    pa.field(SHA256, pa.string()),
    pa.field(NUM_BYTES, pa.int64()),
]
# Columns that rows have on their way only: see `regroup`, `dedupe`, `exact_pixels` and
# `parquet_stream`.
KEY_COLUMN, DIGEST, EXACT, IS_ROUNDED = "_key", "_digest", "_exact_image", "_is_rounded"
RESERVED_COLUMNS = frozenset(
    [
        KEY_COLUMN,
        DIGEST,
        EXACT,
        IS_ROUNDED,
        ROW_ID,
        URI,
        IMAGE,
        FEATURES,
        LABEL,
        LABEL_ID,
        SCORE,
        TOP_K,
        "unit",
        "row",
        "stage",
        "reason",
        "run_id",
    ]
    + [field.name for field in _FAILURE_FIELDS]
)
_ENTRY = (
    pa.field(LABEL, pa.string()),
    pa.field(LABEL_ID, pa.int32()),
    pa.field(SCORE, pa.float32()),
)
CLASSIFY_FIELDS = (*_ENTRY, pa.field(TOP_K, pa.list_(pa.struct(_ENTRY))))
"""What task `classify` adds."""


IMAGE_FIELDS = pa.schema([pa.field(IMAGE, pa.large_binary())])
"""What sources of images yield: the encoded image, null where `error` is set."""


def feature_fields(num_features: int) -> pa.Schema:
    """Return what sources of features yield: a vector per row, zeros where `error` is set."""
    return pa.schema([pa.field(FEATURES, pa.list_(pa.float32(), num_features))])


def empty_column(kind: pa.DataType, num_rows: int) -> pa.Array:
    """Return the values of rows without an input: zeros of fixed-size lists, otherwise nulls."""
    if not pa.types.is_fixed_size_list(kind):
        return pa.nulls(num_rows, kind)
    zeros = pa.array(np.zeros(num_rows * kind.list_size, kind.value_type.to_pandas_dtype()))
    return pa.FixedSizeListArray.from_arrays(zeros, kind.list_size)


def source_schema(pass_through: Sequence[pa.Field], fields: pa.Schema = IMAGE_FIELDS) -> pa.Schema:
    """Rows as the source yields them; `fields` are the columns that hold the input."""
    return pa.schema(
        [
            pa.field(ROW_ID, pa.string(), nullable=False),
            pa.field(URI, pa.string(), nullable=False),
            *pass_through,
            *fields,
            *_FAILURE_FIELDS,
        ]
    )


def prediction_schema(
    pass_through: Sequence[pa.Field], task_fields: Sequence[pa.Field] = CLASSIFY_FIELDS
) -> pa.Schema:
    """Rows as they are published: ids, pass-through columns, then the columns of the task."""
    return pa.schema(
        [
            pa.field(ROW_ID, pa.string(), nullable=False),
            pa.field(URI, pa.string(), nullable=False),
            *pass_through,
            *task_fields,
        ]
    )


def staged_schema(
    pass_through: Sequence[pa.Field], task_fields: Sequence[pa.Field] = CLASSIFY_FIELDS
) -> pa.Schema:
    """Rows of a staged part: predictions and failures together, in input order."""
    return pa.schema([*prediction_schema(pass_through, task_fields), *_FAILURE_FIELDS])


QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field(ROW_ID, pa.string(), nullable=False),
        pa.field(URI, pa.string(), nullable=False),
        pa.field("stage", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field(MESSAGE, pa.string()),
        pa.field(SHA256, pa.string()),
        pa.field(NUM_BYTES, pa.int64()),
        pa.field("run_id", pa.string()),
    ]
)


@dataclass(frozen=True)
class Failure:
    """Why one row failed: what the error columns of that row will say."""

    reason: Reason
    stage: str
    message: str
    sha256: str | None = None
    num_bytes: int | None = None


def failure_columns(failures: Sequence[Failure | None]) -> dict[str, pa.Array]:
    """Turn one failure (or None) a row into the five error columns."""
    return {
        ERROR: pa.array([f.reason.value if f else None for f in failures], pa.string()),
        ERROR_STAGE: pa.array([f.stage if f else None for f in failures], pa.string()),
        MESSAGE: pa.array([clean_message(f.message) if f else None for f in failures], pa.string()),
        SHA256: pa.array([f.sha256 if f else None for f in failures], pa.string()),
        NUM_BYTES: pa.array([f.num_bytes if f else None for f in failures], pa.int64()),
    }


def failures_of(table: pa.Table) -> list[Failure | None]:
    """Read the error columns of a table back into one failure (or None) a row."""
    columns = [
        table.column(name).to_pylist() for name in (ERROR, ERROR_STAGE, MESSAGE, SHA256, NUM_BYTES)
    ]
    return [
        Failure(Reason(error), stage or "", message or "", sha256, num_bytes) if error else None
        for error, stage, message, sha256, num_bytes in zip(*columns, strict=True)
    ]


def images_to_arrow(images: npt.NDArray[np.uint8]) -> pa.Array:
    """Wrap uint8 (N, S, S, 3) as a fixed-size binary array without copying."""
    num_rows = images.shape[0]
    row_bytes = int(np.prod(images.shape[1:]))
    data = pa.py_buffer(np.ascontiguousarray(images))
    return pa.Array.from_buffers(pa.binary(row_bytes), num_rows, [None, data])


def as_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column as one array; Arrow's own combine_chunks copies even a single chunk."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def images_from_arrow(column: pa.ChunkedArray | pa.Array, size_px: int) -> npt.NDArray[np.uint8]:
    """View a fixed-size binary column as uint8 (N, S, S, 3); read-only, no copy for one chunk."""
    array = as_array(column)
    row_bytes = size_px * size_px * 3
    flat = np.frombuffer(array.buffers()[1] or b"", dtype=np.uint8)
    flat.flags.writeable = False
    start = array.offset * row_bytes
    stop = start + len(array) * row_bytes
    return flat[start:stop].reshape(len(array), size_px, size_px, 3)


def features_from_arrow(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.float32]:
    """View a fixed-size list column as float32 (N, F); read-only."""
    array = as_array(column)
    width = array.type.list_size
    flat = array.values.slice(array.offset * width, len(array) * width)
    return np.asarray(flat.to_numpy(zero_copy_only=False), np.float32).reshape(len(array), width)


@dataclass(frozen=True)
class SliceKey:
    """Which rows these are: [start, end) of a unit."""

    unit: int
    start: int
    end: int
    is_last: bool

    @property
    def num_rows(self) -> int:
        return self.end - self.start


def pack(key: SliceKey, counters: dict[str, dict[str, float]], rows: pa.Table) -> pa.Table:
    """Wrap the rows of a slice as one row: unit, start, end, is_last, counters (JSON), rows."""
    struct = as_array(rows.combine_chunks().to_struct_array())
    return pa.table(
        {
            "unit": pa.array([key.unit], pa.int64()),
            "start": pa.array([key.start], pa.int64()),
            "end": pa.array([key.end], pa.int64()),
            "is_last": pa.array([key.is_last], pa.bool_()),
            "counters": pa.array([json.dumps(counters)], pa.string()),
            "rows": pa.ListArray.from_arrays(pa.array([0, len(struct)], pa.int32()), struct),
        }
    )


def unpack(block: pa.Table) -> list[tuple[SliceKey, dict[str, dict[str, float]], pa.Table]]:
    """Undo `pack` for every row of a block; slices come back in order, rows without a copy."""
    slices = []
    for batch in block.to_batches():
        lists = batch.column("rows")
        offsets = lists.offsets.to_pylist()
        fields = ("unit", "start", "end", "is_last", "counters")
        for index, values in enumerate(batch.select(fields).to_pylist()):
            counters = json.loads(values.pop("counters"))
            struct = lists.values.slice(offsets[index], offsets[index + 1] - offsets[index])
            table = pa.Table.from_batches([pa.RecordBatch.from_struct_array(struct)])
            slices.append((SliceKey(**values), counters, table))
    return slices
