"""The protocol of input columns: how columns of a shard become the input of its rows.

Formats with columns ask it which columns to read and what they hold, never the fields of the job.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.core.arrays import with_nulls
from pipeline.core.failures import Failure, Reason
from pipeline.core.figures import READ

Failures = list[Failure | None]
"""One per row; None for a row that has not failed yet."""
NOT_IN_FOLDERS = (
    "is in the names of the folders, which can only be passed through or be features; write it "
    "into the shards"
)


@dataclass(frozen=True)
class Place:
    """Where rows come from."""

    store_uri: str
    path: str
    """Of the shard."""
    has_integers: bool = True
    """Whether the shard tells whole numbers from fractions; if not, their values do."""
    row_timeout_s: float = 120.0
    """How long a row may take."""


class InputRows(NamedTuple):
    """The input of N rows."""

    columns: dict[str, pa.Array]
    """Each (N,), with the types of `InputReader.fields`; empty values where a row has failed."""
    uris: list[str | None] | None = None
    """(N,): what the rows name as their URIs; None if they name none."""


class InputReader(ABC):
    """One kind of input columns; frozen, made from a job's section `source`."""

    names: tuple[str, ...]
    """The columns."""
    rows_at_once: int
    """How many rows at most are read at a time."""
    has_small_rows: ClassVar[bool] = False
    """Whether rows are those of a table, which are best read by whole row groups."""
    is_fetched: ClassVar[bool] = False
    """Whether the URI of a row is all that finds its input."""

    def line_bytes(self, escaped: int) -> int | None:
        """Return the most bytes of it in a line of text, beside numbers; None: text cannot hold it.

        Args:
            escaped: As how many bytes the format may write a byte of a text.
        """
        return 0

    def path(self, name: str, dtype: pa.DataType) -> str:
        """Return what to read of a column of some type: all of it, or `column.field`."""
        return name

    @abstractmethod
    def trouble(self, name: str, dtype: pa.DataType) -> str:
        """Return what was expected of a column instead of this type; '' if it can be read."""

    def folder_trouble(self, name: str, value: str | None) -> str:
        """Return why a column cannot be in the names of the folders with a value; '' if it can."""
        return NOT_IN_FOLDERS

    @abstractmethod
    def fields(self, schema: pa.Schema | None) -> pa.Schema:
        """Return the columns of a row's input; None: no shard could be read."""

    @abstractmethod
    def read(self, table: pa.Table, failures: Failures, place: Place) -> InputRows:
        """Read the input of N rows; a row without one fails, earlier failures of a row stay.

        Raises:
            JobError: The job does not allow what a column holds.
        """


def fail(
    failures: Failures,
    rows: Iterable[int],
    reason: Reason,
    message: str,
    num_bytes: int | None = None,
) -> None:
    """Fail rows; earlier failures of a row stay."""
    for row in rows:
        failures[row] = failures[row] or Failure(reason, READ, message, num_bytes=num_bytes)


def null_where_failed(column: pa.Array, failures: Failures) -> pa.Array:
    """Return a column that is null where a row has failed."""
    if not any(failures):
        return column
    return with_nulls(column, np.array([failure is not None for failure in failures]))
