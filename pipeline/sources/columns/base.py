"""The protocol of input columns: how columns of a shard become the input of its rows.

Formats with columns ask it which columns to read and what they hold, never the fields of the job.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from pipeline.core.arrays import with_nulls
from pipeline.core.failures import Failure, Reason

STAGE = "read"
Failures = list[Failure | None]
"""One per row; None for a row that has not failed yet."""


@dataclass(frozen=True)
class Place:
    """Where rows come from."""

    store_uri: str
    path: str
    """Of the shard."""
    has_integers: bool = True
    """Whether the shard tells whole numbers from fractions; if not, their values do."""


class InputRows(NamedTuple):
    """The input of N rows."""

    columns: dict[str, pa.Array]
    """Each (N,), with the types of `InputReader.fields`; empty values where a row has failed."""
    uris: list[str | None] | None = None
    """(N,): what the rows name as their URIs; None if they name none."""


class InputReader(Protocol):
    """One kind of input columns; frozen, made from a job's section `source`."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the columns."""
        ...

    @property
    def rows_at_once(self) -> int:
        """Return how many rows at most are read at a time."""
        ...

    @property
    def has_small_rows(self) -> bool:
        """Tell whether rows are those of a table, which are best read by whole row groups."""
        ...

    @property
    def is_fetched(self) -> bool:
        """Tell whether the URI of a row is all that finds its input."""
        ...

    def line_bytes(self, escaped: int) -> int | None:
        """Return the most bytes of it in a line of text, beside numbers; None: text cannot hold it.

        Args:
            escaped: As how many bytes the format may write a byte of a text.
        """
        ...

    def path(self, name: str, kind: pa.DataType) -> str:
        """Return what to read of a column of some type: all of it, or `column.field`."""
        ...

    def trouble(self, name: str, kind: pa.DataType) -> str:
        """Return what was expected of a column instead of this type; '' if it can be read."""
        ...

    def folder_trouble(self, name: str, value: str | None) -> str:
        """Return why a column cannot be in the names of the folders with a value; '' if it can."""
        ...

    def fields(self, schema: pa.Schema | None) -> pa.Schema:
        """Return the columns of a row's input; None: no shard could be read."""
        ...

    def read(self, table: pa.Table, failures: Failures, place: Place) -> InputRows:
        """Read the input of N rows; a row without one fails, earlier failures of a row stay.

        Raises:
            JobError: The job does not allow what a column holds.
        """
        ...


class OneKind:
    """Base of columns of one kind."""

    has_small_rows: ClassVar[bool] = False
    is_fetched: ClassVar[bool] = False

    def line_bytes(self, escaped: int) -> int | None:
        """Return 0, as of numbers and names."""
        return 0


class InShards(OneKind):
    """Base of columns that must be in the shards."""

    def folder_trouble(self, name: str, value: str | None) -> str:
        """Say what can be done with columns in the names of the folders."""
        return (
            "is in the names of the folders, which can only be passed through or be features; "
            "write it into the shards"
        )


def fail(
    failures: Failures,
    rows: Iterable[int],
    reason: Reason,
    message: str,
    num_bytes: int | None = None,
) -> None:
    """Fail rows; earlier failures of a row stay."""
    for row in rows:
        failures[row] = failures[row] or Failure(reason, STAGE, message, num_bytes=num_bytes)


def null_where_failed(column: pa.Array, failures: Failures) -> pa.Array:
    """Return a column that is null where a row has failed."""
    if not any(failures):
        return column
    return with_nulls(column, np.array([failure is not None for failure in failures]))
