"""The `Reader` of a job, and the tables of rows in `source_schema` that formats make with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import Numbers, as_array, binary_array, with_nulls
from pipeline.core.failures import Failure, Reason, failure_columns
from pipeline.core.ranges import Ranges
from pipeline.core.schema import ROW_ID, URI, source_schema
from pipeline.core.user_code import ContractError
from pipeline.job.source import Source
from pipeline.sources.columns.arrow_types import is_text
from pipeline.sources.columns.input_reader import Failures, Place, fail
from pipeline.sources.columns.pass_through import PASSED, not_utf8, pass_through
from pipeline.sources.columns.value_sizes import with_compact_dictionaries, without_large
from pipeline.sources.features.vectors import with_fixed_lists
from pipeline.sources.input_columns import columns_of, fields_of_part
from pipeline.sources.uris.policy import published_uri
from pipeline.storage.store import Store

T = TypeVar("T")


@dataclass(frozen=True)
class Reader:
    """All that is needed to read any unit of a job; can be pickled."""

    store: Store
    source: Source
    pass_through: pa.Schema
    fields: pa.Schema
    """The input columns, with the types of the shards."""
    folders: tuple[str, ...] = ()
    """Pass-through columns whose values become folders (`sink.partition_columns`)."""
    table: pa.Schema | None = None
    """The lake table whose files the shards are, as `TableFile.table`; None if there is none."""
    row_timeout_s: float = 120.0
    """Seconds that a row may take, including the time to fetch its URI."""

    @property
    def schema(self) -> pa.Schema:
        """Return the schema of the tables that `read_slices` yields."""
        return source_schema(list(self.pass_through), self.fields)


def make_rows(
    reader: Reader,
    row_ids: Sequence[str] | pa.Array,
    uris: Sequence[str] | pa.Array,
    inputs: Mapping[str, Sequence[bytes | None] | pa.Array],
    failures: Sequence[Failure | None],
    pass_through: dict[str, pa.Array] | None = None,
) -> pa.Table:
    """Make a table of `reader.schema`.

    Args:
        row_ids: (N,).
        uris: (N,), as they are published.
        inputs: The columns of `reader.fields`, each (N,).
        failures: (N,); None for a row that was read.
        pass_through: The columns of `reader.pass_through`, each (N,); None: all null.
    """
    columns = {ROW_ID: _texts(row_ids), URI: _texts(uris)}
    _require_contract(reader.fields, inputs, len(columns[ROW_ID]))
    for field in reader.pass_through:
        columns[field.name] = (
            pa.nulls(len(uris), field.type) if pass_through is None else pass_through[field.name]
        )
    for name, values in inputs.items():
        columns[name] = values if isinstance(values, pa.Array) else binary_array(values)
    columns.update(failure_columns(failures))
    return pa.table(columns, schema=reader.schema)


def _require_contract(
    fields: pa.Schema, inputs: Mapping[str, Sequence[bytes | None] | pa.Array], num_rows: int
) -> None:
    """Check the input columns of a format, which another package may have made wrongly.

    Raises:
        ContractError: The message says what was expected.
    """
    for field in fields:
        if field.name not in inputs:
            named = ", ".join(sorted(inputs)) or "none"
            raise ContractError(f"column {field.name!r} is missing, there are {named}")
        values = inputs[field.name]
        if len(values) != num_rows:
            raise ContractError(f"{field.name} has {len(values)} values for {num_rows} row ids")
        if isinstance(values, pa.Array):
            continue
        if not (pa.types.is_large_binary(field.type) or pa.types.is_large_string(field.type)):
            raise ContractError(f"{field.name} must be a pyarrow array of {field.type}")
        wrong = next((v for v in values if not isinstance(v, bytes | None)), None)
        if wrong is not None:
            is_text = pa.types.is_large_string(field.type)
            what = "texts must be bytes (UTF-8)" if is_text else "encoded values must be bytes"
            raise ContractError(f"{what}, {field.name} has a {type(wrong).__name__}")


def _texts(values: Sequence[str] | pa.Array) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, pa.string())


def chosen(values: Sequence[T], rows: slice | Numbers) -> Sequence[T]:
    """Return the values of some rows, in order."""
    return values[rows] if isinstance(rows, slice) else [values[row] for row in rows.tolist()]


def to_rows(
    reader: Reader,
    path: str,
    numbers: Sequence[int],
    table: pa.Table,
    failures: Failures,
    *,
    has_integers: bool = True,
) -> pa.Table:
    """Turn rows of a shard into a table of `reader.schema`.

    Args:
        numbers: (N,), the numbers of the rows in the shard.
        table: N rows with the columns that the job needs.
        failures: (N,), earlier failures of the rows; extended.
        has_integers: Whether the types of the shard distinguish integers from fractions.

    Raises:
        JobError: The job does not allow the values of a column.
    """
    source = reader.source
    ids = _numbered(path, numbers)
    table = with_compact_dictionaries(table)
    copied = {PASSED + name: column for name, column in source.passed.items()}
    copied |= {name: name for name in (*copied.values(), source.id_column) if name}
    table = without_large(table, copied, failures)
    if source.id_column:
        ids, nulls, broken = text_ids(table.column(source.id_column), ids)
        fail(failures, nulls, Reason.NULL_INPUT, f"{source.id_column} is null or empty")
        for row, text in broken.items():
            message = f"{source.id_column} is not UTF-8: {text}"
            fail(failures, [row], Reason.UNIDENTIFIED, message)
    passed, problems = pass_through(reader.pass_through, source.passed, reader.folders, table, path)
    for row, message in problems.items():
        fail(failures, [row], Reason.BAD_SCHEMA, message)
    place = Place(reader.store.uri, path, has_integers, reader.row_timeout_s)
    for part, section in source.parts.items():
        if section.features:
            fields = fields_of_part(part, source, reader.fields)
            table = with_fixed_lists(section, fields, table, failures)
    inputs = columns_of(source).read(table, failures, place)
    url = reader.store.url(path)
    uris = pa.repeat(pa.scalar(url, pa.string()), table.num_rows)
    if inputs.uris is not None:
        given = [published_uri(uri) if uri else url for uri in inputs.uris]
        uris = pa.array(given, pa.string())
    return make_rows(reader, ids, uris, inputs.columns, failures, passed)


def _numbered(path: str, numbers: Sequence[int]) -> pa.Array:
    """Return the ids of rows by path and number in the shard, text (N,)."""
    runs = [np.arange(run.start, run.stop) for run in Ranges.of(numbers).ranges()]
    values = np.concatenate([np.zeros(0, np.int64), *runs])  # far faster than number by number
    texts = pa.array(values).cast(pa.string())
    return pc.binary_join_element_wise(pa.scalar(f"{path}#"), texts, "")


def text_ids(
    column: pa.ChunkedArray, fallback: pa.Array
) -> tuple[pa.Array, list[int], Mapping[int, str]]:
    """Return ids as text; nulls and empty texts get the fallback.

    Args:
        column: (N,) text, binary or numbers.
        fallback: (N,) text.

    Returns:
        The ids, text (N,); the rows without one; and row -> printable form of an id that is not
        UTF-8.
    """
    given = as_array(column)
    if pa.types.is_dictionary(given.type):
        given = given.dictionary_decode()
    values, broken = _id_texts(given) if is_text(given.type) else (given.cast(pa.string()), {})
    values = pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)
    if not values.null_count:
        return values, [], {}
    are_null = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False)).tolist()
    nulls = [row for row in are_null if row not in broken]
    return pc.coalesce(values, fallback), nulls, broken


def _id_texts(column: pa.Array) -> tuple[pa.Array, Mapping[int, str]]:
    data = column.cast(pa.large_binary())
    try:
        return data.cast(pa.string()), {}
    except pa.ArrowInvalid:  # its message names only one of the values that are not UTF-8
        broken = not_utf8(column)
    is_broken = np.zeros(len(column), np.bool_)
    is_broken[[*broken]] = True
    return with_nulls(data, is_broken).cast(pa.string()), broken
