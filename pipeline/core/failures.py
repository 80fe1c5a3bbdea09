"""Failed rows: reasons, error columns, and the causes that many rows have in common.

A slice and a run keep a bounded number of causes. Rows of further causes are counted without a
message, so the sums are right for any number of different messages.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import JobError
from pipeline.core.figures import PREDICT
from pipeline.core.printable import clean_message
from pipeline.core.schema import ERROR, ERROR_STAGE, MESSAGE, NUM_BYTES, ROW_ID, SHA256, URI


class Reason(StrEnum):
    """The reason why a row could not be predicted: a closed set."""

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


FAILURE_COLUMNS = (ERROR, ERROR_STAGE, MESSAGE, SHA256, NUM_BYTES)
"""The five error columns of rows in transit."""

TRANSFORM_FACTORY = "transform.factory"
"""The field that names a user's own transform; rows that fail in it have it in their message."""


class RowError(Exception):
    """The failure of one row: a reason code and one line of explanation."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Failure:
    """Why one row failed: the content of its error columns."""

    reason: Reason
    stage: str
    message: str
    sha256: str | None = None
    num_bytes: int | None = None

    @property
    def is_of_job(self) -> bool:
        """Tell whether the job is at fault if all first rows fail like this before the model.

        The user's own transform raised an error or returned undeclared values, or access to a file
        is denied.
        """
        return is_of_job(self.reason, self.message)


def is_of_job(reason: str, message: str | None) -> bool:
    """Return `Failure.is_of_job` for a reason and a message."""
    is_of_transform = reason == Reason.DECODE_ERROR and TRANSFORM_FACTORY in (message or "")
    return is_of_transform or reason == Reason.ACCESS_DENIED


def of_part(part: str, failure: Failure) -> Failure:
    """Return a failure whose message names the input, one of several."""
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
    columns = [table.column(name).to_pylist() for name in FAILURE_COLUMNS]
    return [
        Failure(Reason(error), stage or "", message or "", sha256, num_bytes) if error else None
        for error, stage, message, sha256, num_bytes in zip(*columns, strict=True)
    ]


def without_failure(failures: Sequence[Failure | None]) -> npt.NDArray[np.bool_]:
    """Return bool (N,), true for rows that have not failed."""
    if not any(failures):
        return np.ones(len(failures), np.bool_)
    return np.array([failure is None for failure in failures], np.bool_)


MAX_PER_SLICE = 16
MAX_PER_RUN = 512
_KEY_CHARS, _SHOWN_CHARS, _SHOWN_ID_CHARS = 160, 120, 80
_VARYING = re.compile(r"0x[0-9a-fA-F]+|\d+(?:[.,]\d+)*|'[^']*'|\"[^\"]*\"")
"""The parts of a message that differ between rows of one cause: numbers, addresses, names."""


@dataclass(frozen=True)
class Cause:
    """Rows that failed for the same cause."""

    reason: str
    stage: str = ""
    message: str | None = None
    """The message of an example row; None for rows whose messages were dropped."""
    num_rows: int = 0
    row_id: str | None = None
    key: str = ""
    """The common part of their messages."""
    at_least: bool = False
    """More rows may have failed for this cause: the messages of some of its reason were dropped."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form for the report."""
        document = asdict(self) | {"stage": self.stage or None}
        del document["key"]
        return document


class SystematicFailure(JobError):
    """All rows of the first batches failed for one cause, so the rows are not at fault."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.failed = Cause(Reason.MODEL_ERROR.value, PREDICT)  # attributes survive pickling

    @classmethod
    def of(cls, failed: Cause, where: str = "") -> SystematicFailure:
        """Make the error from a cause; `where` is the place in the user's code."""
        description = f'{failed.reason} "{failed.message}"' + (f" ({where})" if where else "")
        rows = "the only row" if failed.num_rows == 1 else f"all {failed.num_rows} rows"
        error = cls(
            f"{rows} of the first batches failed alike: {description}; nothing was published"
        )
        error.failed = failed
        return error


def key_of(message: str, *names: str) -> str:
    """Return the common part of messages of one cause.

    Args:
        message: The message of one row.
        names: Names of that row, which other rows do not have.
    """
    for name in names:
        message = message.replace(name, "*") if name else message
    return _VARYING.sub("#", message)[:_KEY_CHARS]


def causes_of(rows: pa.Table) -> list[Cause]:
    """Count the causes of the failed rows of a slice, the most frequent first."""
    if rows.column(ERROR).null_count == rows.num_rows:
        return []
    failed = rows.filter(rows.column(ERROR).is_valid())
    causes = Causes(MAX_PER_SLICE)
    names = zip(failed.column(ROW_ID).to_pylist(), failed.column(URI).to_pylist(), strict=True)
    for (row_id, uri), failure in zip(names, failures_of(failed), strict=True):
        assert failure is not None, "only failed rows are left"
        causes.add([cause_of(failure, row_id, uri)])
    return causes.top(MAX_PER_SLICE + len(Reason))


def cause_of(failure: Failure, row_id: str, uri: str = "") -> Cause:
    """Return the cause of one row's failure."""
    message = clean_message(failure.message)
    key = key_of(message, uri, row_id, row_id.rpartition("/")[2])
    return Cause(failure.reason.value, failure.stage, message, 1, row_id, key)


class Causes:
    """Rows by cause; beyond a limit, messages are dropped and their rows counted together."""

    def __init__(self, most: int = MAX_PER_RUN) -> None:
        self._most = most
        self._causes: dict[tuple[str, str, str | None], Cause] = {}

    def add(self, causes: Iterable[Cause]) -> None:
        """Add causes."""
        for cause in causes:
            key = (cause.reason, cause.stage, None if cause.message is None else cause.key)
            if key not in self._causes and self._num_messages() >= self._most:
                key = (cause.reason, cause.stage, None)
                cause = Cause(cause.reason, cause.stage, num_rows=cause.num_rows)
            before = self._causes.get(key, cause)
            # Keep the example whose name sorts first: the order of counting must not matter.
            first = min(before, cause, key=lambda example: (example.row_id is None, example.row_id))
            num_rows = cause.num_rows + (before.num_rows if key in self._causes else 0)
            self._causes[key] = replace(first, num_rows=num_rows)

    def _num_messages(self) -> int:
        return sum(message is not None for _, _, message in self._causes)

    def complete(self, reasons: Mapping[str, int]) -> Causes:
        """Return causes that add up to these counts; rows of unknown causes have no message."""
        known = Counter[str]()
        for cause in self._causes.values():
            known[cause.reason] += cause.num_rows
        completed = Causes(self._most)
        completed._causes = dict(self._causes)
        for reason, num_rows in reasons.items():
            if num_rows > known[reason]:
                completed.add([Cause(reason, num_rows=num_rows - known[reason])])
        return completed

    def top(self, number: int) -> list[Cause]:
        """Return the causes with the most rows; the order does not depend on the order of `add`."""
        vague = {cause.reason for cause in self._causes.values() if cause.message is None}
        causes = [
            replace(cause, at_least=cause.message is not None and cause.reason in vague)
            for cause in self._causes.values()
        ]
        causes.sort(key=lambda c: (-c.num_rows, c.reason, c.stage, c.key))
        return causes[:number]


def format_causes(causes: Sequence[Cause], num_rows: int, shown: int = 3) -> str:
    """Say why rows failed: `20 empty, e.g. 0000.jpg: the image has 0 bytes`; '' if none failed.

    Args:
        causes: The most frequent causes, in order.
        num_rows: All rows that failed.
        shown: Most causes to name.
    """
    clauses = [_words(cause) for cause in causes[:shown]]
    left = num_rows - sum(cause.num_rows for cause in causes[:shown])
    if clauses and left > 0:
        clauses.append(f"{left} others")
    return "; ".join(clauses)


def _words(cause: Cause) -> str:
    count = f"{'at least ' if cause.at_least else ''}{cause.num_rows} {cause.reason}"
    example = _short(cause.row_id or "", _SHOWN_ID_CHARS)
    message = _short(cause.message or "", _SHOWN_CHARS)
    if example and message:
        return f"{count}, e.g. {example}: {message}"
    return f"{count}: {message}" if message else count


def _short(text: str, most: int) -> str:
    line = clean_message(text)
    return line if len(line) <= most else line[: most - 3] + "..."


def common_cause(causes: Sequence[Cause], num_predicted: int) -> Cause | None:
    """Return the one cause for which all rows that reached the model failed, at least two rows.

    The user's own transform runs before the model: if no row got past it, its failures count.

    Args:
        causes: All known causes.
        num_predicted: Rows with a prediction.
    """
    of_job = [cause for cause in causes if is_of_job(cause.reason, cause.message)]
    reached = [cause for cause in causes if cause.stage == PREDICT] or of_job
    if num_predicted or len(reached) != 1:
        return None
    (only,) = reached
    is_model = only.reason == Reason.MODEL_ERROR.value and only.message is not None
    is_users = is_model or only in of_job
    return only if is_users and not only.at_least and only.num_rows > 1 else None
