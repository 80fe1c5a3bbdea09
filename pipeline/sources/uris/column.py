"""A column of URIs of images or clips of sound, which are fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from pipeline.core.arrays import as_array
from pipeline.core.failures import Failure
from pipeline.job.source import Source
from pipeline.sources.columns.arrow_types import is_text, plain_type
from pipeline.sources.columns.base import (
    STAGE,
    Failures,
    InputReader,
    InputRows,
    Place,
)
from pipeline.sources.rows import binary_array
from pipeline.sources.uris.fetch import fetch_many
from pipeline.sources.uris.policy import policy_of


@dataclass(frozen=True)
class UriColumn(InputReader):
    """A text column of URIs."""

    names: tuple[str, ...]
    source: Source
    rows_at_once = 64
    is_fetched: ClassVar[bool] = True

    def trouble(self, name: str, kind: pa.DataType) -> str:
        return "" if is_text(plain_type(kind)) else "expected URIs as text"

    def fields(self, schema: pa.Schema | None) -> pa.Schema:
        return self.source.encoded.fields

    def read(self, table: pa.Table, failures: Failures, place: Place) -> InputRows:
        given = uri_values(table.column(self.names[0]))
        [name] = self.source.encoded.fields.names
        found = binary_array(self._fetch(given, failures, place))
        return InputRows({name: found}, uris=given)

    def _fetch(
        self, uris: Sequence[str | None], failures: Failures, place: Place
    ) -> list[bytes | None]:
        """Return the bytes behind the URIs of the rows that have not failed yet."""
        policy = policy_of(self.source, place.store_uri)
        wanted = [index for index, failure in enumerate(failures) if failure is None]
        images: list[bytes | None] = [None] * len(uris)
        found = fetch_many([uris[index] for index in wanted], policy)
        for index, fetched in zip(wanted, found, strict=True):
            images[index] = fetched.data
            if fetched.failure is not None:
                failures[index] = Failure(fetched.failure[0], STAGE, fetched.failure[1])
        return images


def uri_values(column: pa.ChunkedArray) -> list[str | None]:
    """Return the URIs; bytes that are not UTF-8 become replacement characters."""
    given = as_array(column)
    if pa.types.is_dictionary(given.type):
        given = given.dictionary_decode()
    values: list[bytes | None] = given.cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "replace") for value in values]
