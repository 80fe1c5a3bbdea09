"""The protocol of input columns, by which columns of a shard become the input of its rows.

Formats with columns ask it which columns to read and which types fit, never the fields of the job.
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
"""One per row; None while a row has not failed."""
NOT_IN_FOLDERS = (
    "is in the names of the folders, which can only be passed through or be features; write it "
    "into the shards"
)


@dataclass(frozen=True)
class Place:
    """The origin of rows."""

    store_uri: str
    path: str
    """The path of the shard."""
    has_integers: bool = True
    """Whether types distinguish integers from fractions; if not, the values do."""
    row_timeout_s: float = 120.0
    """Seconds that a row may take."""


class InputRows(NamedTuple):
    """The input of N rows."""

    columns: dict[str, pa.Array]
    """Each (N,), with the types of `InputReader.fields`; values of failed rows are empty."""
    uris: list[str | None] | None = None
    """(N,), the URIs that the rows name; None if the job has no column of URIs."""


class InputReader(ABC):
    """A reader of input columns; frozen, made from the section `source` of a job."""

    names: tuple[str, ...]
    """The columns of the shard."""
    rows_at_once: int
    """Maximum of rows that are read at a time."""
    has_small_rows: ClassVar[bool] = False
    """Whether rows are those of a table, which is best read by whole row groups."""
    is_fetched: ClassVar[bool] = False
    """Whether the input of a row is fetched by its URI."""

    def line_bytes(self, escaped: int) -> int | None:
        """Return the maximum bytes of the input in a line of text; None: text cannot hold it.

        Numbers are not counted.

        Args:
            escaped: Maximum bytes as which the format writes a byte of a text.
        """
        return 0

    def path(self, name: str, dtype: pa.DataType) -> str:
        """Return the part to read of a column of some type: the column, or `column.field`."""
        return name

    @abstractmethod
    def trouble(self, name: str, dtype: pa.DataType) -> str:
        """Return what is expected instead of a column of this type; '' if it can be read."""

    def folder_trouble(self, name: str, value: str | None) -> str:
        """Return why the names of the folders cannot hold a column with a value; '' if they can."""
        return NOT_IN_FOLDERS

    @abstractmethod
    def fields(self, schema: pa.Schema | None) -> pa.Schema:
        """Return the input columns of rows.

        Args:
            schema: The columns of the shards; None if no shard could be read.
        """

    @abstractmethod
    def read(self, table: pa.Table, failures: Failures, place: Place) -> InputRows:
        """Read the input of N rows; a row without one fails, and earlier failures stay.

        Raises:
            JobError: The job does not allow the values of a column.
        """


def fail(
    failures: Failures,
    rows: Iterable[int],
    reason: Reason,
    message: str,
    num_bytes: int | None = None,
) -> None:
    """Fail rows; earlier failures stay."""
    for row in rows:
        failures[row] = failures[row] or Failure(reason, READ, message, num_bytes=num_bytes)


def null_where_failed(column: pa.Array, failures: Failures) -> pa.Array:
    """Return a column with nulls where rows have failed."""
    if not any(failures):
        return column
    return with_nulls(column, np.array([failure is not None for failure in failures]))
