"""Failures as data: why a row could not be predicted, and the columns that say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.printable import clean_message
from pipeline.core.schema import ERROR, ERROR_STAGE, MESSAGE, NUM_BYTES, SHA256


class Reason(StrEnum):
    """Why a row could not be predicted: a closed set."""

    UNREADABLE_SHARD = "unreadable_shard"
    MISSING = "missing"
    ACCESS_DENIED = "access_denied"
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
    INPUT_TOO_LONG = "input_too_long"
    OUTPUT_TRUNCATED = "output_truncated"
    OUTPUT_INVALID = "output_invalid"
    EMPTY_OUTPUT = "empty_output"
    DUPLICATE_ID = "duplicate_id"


TRANSFORM_FACTORY = "transform.factory"
"""The field that names a user's own transform; messages of rows that fail in it contain it."""


class RowError(Exception):
    """One row cannot go on: the reason code and one line of explanation."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Failure:
    """Why one row failed: what the error columns of that row will say."""

    reason: Reason
    stage: str
    message: str
    sha256: str | None = None
    num_bytes: int | None = None

    @property
    def is_of_job(self) -> bool:
        """Tell whether the job is at fault if all first rows fail so, before the model sees one.

        The user's own transform raised, or returned what is not declared; or a file is denied.
        """
        return is_of_job(self.reason, self.message)


def is_of_job(reason: str, message: str | None) -> bool:
    """Tell the same of a failure's reason and message."""
    is_of_transform = reason == Reason.DECODE_ERROR and TRANSFORM_FACTORY in (message or "")
    return is_of_transform or reason == Reason.ACCESS_DENIED


def of_part(part: str, failure: Failure) -> Failure:
    """Return a failure of one of several inputs, whose message names the input."""
    return replace(failure, message=f"input {part!r}: {failure.message}")


def failure_columns(failures: Sequence[Failure | None]) -> dict[str, pa.Array]:
    """Turn a failure (or None) per row into the five error columns."""
    if not any(failures):
        types = {name: pa.string() for name in (ERROR, ERROR_STAGE, MESSAGE, SHA256)}
        return {
            name: pa.nulls(len(failures), column_type)
            for name, column_type in {**types, NUM_BYTES: pa.int64()}.items()
        }
    return {
        ERROR: pa.array([f.reason.value if f else None for f in failures], pa.string()),
        ERROR_STAGE: pa.array([f.stage if f else None for f in failures], pa.string()),
        MESSAGE: pa.array([clean_message(f.message) if f else None for f in failures], pa.string()),
        SHA256: pa.array([f.sha256 if f else None for f in failures], pa.string()),
        NUM_BYTES: pa.array([f.num_bytes if f else None for f in failures], pa.int64()),
    }


def failures_of(table: pa.Table) -> list[Failure | None]:
    """Read the error columns of a table back into a failure (or None) per row."""
    if table.column(ERROR).null_count == table.num_rows:
        return [None] * table.num_rows
    columns = [
        table.column(name).to_pylist() for name in (ERROR, ERROR_STAGE, MESSAGE, SHA256, NUM_BYTES)
    ]
    return [
        Failure(Reason(error), stage or "", message or "", sha256, num_bytes) if error else None
        for error, stage, message, sha256, num_bytes in zip(*columns, strict=True)
    ]


def without_failure(failures: Sequence[Failure | None]) -> npt.NDArray[np.bool_]:
    """Return bool (N,): rows that have not failed."""
    if not any(failures):
        return np.ones(len(failures), np.bool_)
    return np.array([failure is None for failure in failures], np.bool_)
