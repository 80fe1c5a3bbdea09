"""Why rows failed, equal causes joined: how many rows each cost, and one of them as an example.

Of a slice and of a run only so many causes are kept; rows of others are counted without a message,
so that the sums stay right whatever the messages say.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from pipeline.core.errors import JobError
from pipeline.core.failures import Failure, Reason, failures_of, is_of_job
from pipeline.core.figures.counters import PREDICT
from pipeline.core.printable import clean_message
from pipeline.core.schema import ERROR, ROW_ID, URI

MAX_PER_SLICE = 16
MAX_PER_RUN = 512
_KEY_CHARS, _SHOWN_CHARS, _SHOWN_ID_CHARS = 160, 120, 80
_VARYING = re.compile(r"0x[0-9a-fA-F]+|\d+(?:[.,]\d+)*|'[^']*'|\"[^\"]*\"")
"""What differs from row to row in messages of one cause: numbers, addresses, quoted names."""


@dataclass(frozen=True)
class Cause:
    """Rows that failed alike."""

    reason: str
    stage: str = ""
    message: str | None = None
    """Of the row that is the example; None stands for all messages that are not told apart."""
    num_rows: int = 0
    row_id: str | None = None
    key: str = ""
    """What their messages have in common."""
    at_least: bool = False
    """More rows may have failed for it: some of this reason are counted without their message."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form for the report."""
        document = asdict(self) | {"stage": self.stage or None}
        del document["key"]
        return document


class SystematicFailure(JobError):
    """All rows of the first batches failed for one cause, so no row is at fault."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.failed = Cause(Reason.MODEL_ERROR.value, PREDICT)  # attributes survive pickling

    @classmethod
    def of(cls, failed: Cause, where: str = "") -> SystematicFailure:
        """Say how many rows failed, of what; `where` is the place in the user's code."""
        description = f'{failed.reason} "{failed.message}"' + (f" ({where})" if where else "")
        rows = "the only row" if failed.num_rows == 1 else f"all {failed.num_rows} rows"
        error = cls(
            f"{rows} of the first batches failed alike: {description}; nothing was published"
        )
        error.failed = failed
        return error


def key_of(message: str, *names: str) -> str:
    """Return what messages of one cause have in common.

    Args:
        message: Of one row.
        names: Names of that row, which others do not have.
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
        assert failure is not None, "only those were taken"
        causes.add([cause_of(failure, row_id, uri)])
    return causes.top(MAX_PER_SLICE + len(Reason))


def cause_of(failure: Failure, row_id: str, uri: str = "") -> Cause:
    """Return the cause of one row's failure."""
    message = clean_message(failure.message)
    key = key_of(message, uri, row_id, row_id.rpartition("/")[2])
    return Cause(failure.reason.value, failure.stage, message, 1, row_id, key)


class Causes:
    """Rows by cause; beyond a limit a message is dropped, and its rows count for all others."""

    def __init__(self, most: int = MAX_PER_RUN) -> None:
        self._most = most
        self._causes: dict[tuple[str, str, str | None], Cause] = {}

    def add(self, causes: Iterable[Cause]) -> None:
        """Add causes."""
        for cause in causes:
            key = (cause.reason, cause.stage, None if cause.message is None else cause.key)
            if key not in self._causes and len(self._causes) >= self._most:
                key = (cause.reason, cause.stage, None)
                cause = Cause(cause.reason, cause.stage, num_rows=cause.num_rows)
            before = self._causes.get(key, cause)
            # Of two examples the first by name, whichever was counted first.
            first = min(before, cause, key=lambda example: (example.row_id is None, example.row_id))
            num_rows = cause.num_rows + (before.num_rows if key in self._causes else 0)
            self._causes[key] = replace(first, num_rows=num_rows)

    def complete(self, reasons: Mapping[str, int]) -> Causes:
        """Return causes that make up these counts: rows of unknown causes have no message."""
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
        """Return the causes of the most rows, in an order that does not depend on the additions."""
        vague = {cause.reason for cause in self._causes.values() if cause.message is None}
        causes = [
            replace(cause, at_least=cause.message is not None and cause.reason in vague)
            for cause in self._causes.values()
        ]
        causes.sort(key=lambda c: (-c.num_rows, c.reason, c.stage, c.key))
        return causes[:number]


def format_causes(causes: Sequence[Cause], num_rows: int, shown: int = 3) -> str:
    """Say why rows failed: `20 empty, e.g. 0000.jpg: the image has 0 bytes`; '' if none did.

    Args:
        causes: The most frequent ones, in order.
        num_rows: Rows that failed, of all causes.
        shown: How many causes at most.
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
    """Return the one cause for which all rows failed that reached the model, at least two.

    The user's own transform stands before the model: if no row got past it, it is judged likewise.

    Args:
        causes: All that are known.
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
