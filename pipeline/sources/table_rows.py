"""Turn rows of a shard with columns into rows of the job: ids, input, pass-through columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import as_array, with_nulls
from pipeline.core.failures import Reason
from pipeline.sources.columns.arrow_types import is_text
from pipeline.sources.columns.base import Failures, Place, fail
from pipeline.sources.columns.pass_through import PASSED, not_utf8, pass_through
from pipeline.sources.columns.value_sizes import with_compact_dictionaries, without_large
from pipeline.sources.features.vectors import with_fixed_lists
from pipeline.sources.input_columns import columns_of, fields_of_part
from pipeline.sources.rows import Reader, make_rows
from pipeline.sources.uris.policy import published_uri


def to_rows(
    reader: Reader,
    path: str,
    numbers: Sequence[int],
    table: pa.Table,
    failures: Failures,
    *,
    has_integers: bool = True,
) -> pa.Table:
    """Turn rows of a shard into `reader.schema`.

    Args:
        numbers: (N,): the rows' numbers in the shard.
        table: N rows with the columns that the job needs.
        failures: (N,): rows that failed before; grows.
        has_integers: Whether the shard tells whole numbers from fractions.

    Raises:
        JobError: The job does not allow what a column holds.
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
    """Return the ids of rows by their numbers in a shard, text (N,)."""
    if isinstance(numbers, range):  # a hundred times as fast as number by number
        values = np.arange(numbers.start, numbers.stop, numbers.step, dtype=np.int64)
    else:
        values = np.asarray(numbers, np.int64)
    texts = pa.array(values).cast(pa.string())
    return pc.binary_join_element_wise(pa.scalar(f"{path}#"), texts, "")


def text_ids(
    column: pa.ChunkedArray, fallback: pa.Array
) -> tuple[pa.Array, list[int], Mapping[int, str]]:
    """Return ids as text, the fallback for a null and for an empty text.

    Args:
        column: (N,) text, binary or numbers.
        fallback: (N,) text.

    Returns:
        The ids, text (N,); the rows in which there is none; and row -> printable form of those that
        are not UTF-8.
    """
    given = as_array(column)
    if pa.types.is_dictionary(given.type):
        given = given.dictionary_decode()
    values, broken = _texts(given) if is_text(given.type) else (given.cast(pa.string()), {})
    values = pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)
    if not values.null_count:
        return values, [], {}
    are_null = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False)).tolist()
    nulls = [row for row in are_null if row not in broken]
    return pc.coalesce(values, fallback), nulls, broken


def _texts(column: pa.Array) -> tuple[pa.Array, Mapping[int, str]]:
    data = column.cast(pa.large_binary())
    try:
        return data.cast(pa.string()), {}
    except pa.ArrowInvalid:  # which says of one value only that it is not UTF-8
        broken = not_utf8(column)
    is_broken = np.zeros(len(column), np.bool_)
    is_broken[[*broken]] = True
    return with_nulls(data, is_broken).cast(pa.string()), broken
