"""Pass-through columns: their declared types, and the casts of a shard's columns to these types.

A value that does not fit fails its row, never its neighbours.
"""

from __future__ import annotations

import decimal
import json
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import as_array, with_nulls
from pipeline.core.errors import JobError
from pipeline.core.hive_paths import hive_values, without_folder
from pipeline.core.schema import PART, RESERVED_COLUMNS, TEXT_FEATURE, TEXT_OF
from pipeline.job.source import Source
from pipeline.sources.columns.arrow_types import (
    is_text,
    parse_type,
    plain_type,
    published_type,
    type_trouble,
    unified,
)

PASSED = "_passed_"
"""Prefix of columns of lines that are only passed through, before their published name."""
Problems = dict[int, str]
"""Row -> message about its value."""


def declare(source: Source, schema: pa.Schema, path: str) -> pa.Schema:
    """Return the declared types of the pass-through columns.

    Args:
        schema: Their types in the shards; a missing column is in the names of folders.
        path: The path of a shard, for messages.

    Raises:
        JobError: A column cannot be published.
    """
    fields = []
    for name, column in source.passed.items():
        given = schema.field(column).type if schema.get_field_index(column) >= 0 else pa.string()
        declared = published_type(given)
        if name in source.casts:
            declared = parse_type(name, source.casts[name])
        if trouble := type_trouble(declared) or _cast_trouble(given, declared):
            raise JobError(
                f"source.pass_through: column {column!r} of {path} is {given}: {trouble}; leave it "
                "out, or write another type into the shards"
            )
        fields.append(pa.field(name, declared))
    return pa.schema(fields)


def type_problem(source: Source, declared: pa.Schema, schema: pa.Schema) -> str:
    """Return which pass-through column does not have the type of the other shards, or ''."""
    for field in declared:
        column = source.passed[field.name]
        index = schema.get_field_index(column)
        if index < 0:
            continue
        shard_type = schema.field(index).type
        if trouble := _cast_trouble(shard_type, field.type):
            return f"column {column!r} is {shard_type}: {trouble}"
        if field.name not in source.casts and unified(field.type, shard_type) != field.type:
            return (
                f"column {column!r} is {shard_type}, other shards have {field.type}; "
                f"declare one with source.casts"
            )
    return ""


def _cast_trouble(given: pa.DataType, target: pa.DataType) -> str:
    """Return why Arrow cannot cast any value from one type to another, or ''."""
    try:
        pa.nulls(1, given).cast(target)
    except pa.ArrowNotImplementedError:
        return f"Arrow cannot make {target} of it"
    except pa.ArrowException:
        return ""
    return ""


def pass_through(
    fields: pa.Schema,
    names: Mapping[str, str],
    folders: Sequence[str],
    table: pa.Table,
    path: str,
) -> tuple[dict[str, pa.Array], Problems]:
    """Take the pass-through columns from the rows of a shard, or from its path.

    Args:
        fields: The columns as they are published.
        names: Published name -> column of the shard.
        folders: The published names whose values become folders.
        table: N rows of the shard.

    Returns:
        Name -> column (N,), and row -> message for values that do not fit and become null.
    """
    columns: dict[str, pa.Array] = {}
    problems: Problems = {}
    for field in fields:
        column, column_problems = _take(field, names[field.name], table, path)
        if field.name in folders:
            column_problems = {**without_folder(field.name, column), **column_problems}
        columns[field.name] = column
        problems = {**column_problems, **problems}
    return columns, problems


def _take(field: pa.Field, name: str, table: pa.Table, path: str) -> tuple[pa.Array, Problems]:
    keys, field = (PASSED + field.name, name), field.with_name(name)
    for key in keys:
        if key in table.column_names:
            return cast_column(as_array(table.column(key)), field)
    value = hive_values(path).get(name)
    if value is None:
        return pa.nulls(table.num_rows, field.type), {}
    column, folder_problems = cast_column(pa.array([value], pa.string()), field)
    problems = dict.fromkeys(range(table.num_rows), folder_problems[0]) if folder_problems else {}
    return pa.repeat(column[0], table.num_rows), problems


def cast_column(
    column: pa.Array, field: pa.Field, *, may_round: bool = False
) -> tuple[pa.Array, Problems]:
    """Cast a column to its declared type; lossy casts and text that is not UTF-8 are problems.

    Text that is not UTF-8 could be copied, but no engine would read a part that holds it. Text must
    spell the number that it becomes, although Arrow reads hexadecimal digits and rounds.

    Args:
        column: (N,).
        field: The type, and the name for messages.
        may_round: Round integers in text that a floating-point type does not hold; fractions
            always are rounded.

    Returns:
        The column, null at problems, and row -> message.
    """
    is_number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
    if is_number and is_text(plain_type(column.type)):  # Arrow cannot compare views
        column = column.cast(pa.large_string())
    try:
        cast, problems = column.cast(field.type), Problems()
        cast.validate(full=True)
    except pa.ArrowException:
        cast, problems = _cast_rows(column, field)
    if not is_number or not is_text(column.type):
        return cast, problems
    wrong = [row for row in _not_spelt(column, cast, may_round=may_round) if row not in problems]
    for row in wrong:
        text = column[row].as_py()
        problems[row] = f"{field.name} is {text!r:.80}, which {field.type} does not hold"
    if wrong:
        cast = with_nulls(cast, np.isin(np.arange(len(cast)), wrong))
    return cast, problems


def _not_spelt(texts: pa.Array, numbers: pa.Array, *, may_round: bool) -> list[int]:
    """Return the rows whose text Arrow turned into another number."""
    if pa.types.is_integer(numbers.type):
        return _true_rows(pc.match_substring(texts, "x", ignore_case=True))
    is_large = pc.is_inf(numbers)
    if not may_round:
        is_large = pc.greater_equal(pc.abs(numbers), exact_max(numbers.type))
    rows = []
    for row in _true_rows(is_large):
        text, number = texts[row].as_py(), numbers[row].as_py()
        if math.isinf(number):
            is_spelt = "inf" in text.lower()
        else:
            is_whole = text.lstrip("+-").isdecimal()
            is_spelt = not is_whole or decimal.Decimal(text) == decimal.Decimal(number)
        if not is_spelt:
            rows.append(row)
    return rows


def exact_max(dtype: pa.DataType) -> float:
    """Return the number up to which a floating-point type holds all integers."""
    return 2.0 ** {16: 11, 32: 24, 64: 53}[dtype.bit_width]


def _true_rows(mask: pa.Array) -> list[int]:
    if not pc.any(mask).as_py():
        return []
    return np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False)).tolist()


def _cast_rows(column: pa.Array, field: pa.Field) -> tuple[pa.Array, Problems]:
    value_type = field.type
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_dictionary(value_type):
        value_type = (
            value_type.value_type
        )  # the dictionary would hold the values that do not fit as well
    pieces: list[pa.Array] = []
    problems: Problems = {}
    for row in range(len(column)):
        try:
            piece = _alone(column, row).cast(value_type)
            piece.validate(full=True)
        except pa.ArrowException as error:
            piece = pa.nulls(1, value_type)
            problems[row] = _explain(column, row, field, str(error))
        pieces.append(piece)
    made = pa.concat_arrays(pieces)
    if not pa.types.is_dictionary(field.type):
        return made, problems
    encoded = made.dictionary_encode()
    indices = encoded.indices.cast(field.type.index_type)
    return (
        pa.DictionaryArray.from_arrays(indices, encoded.dictionary, ordered=field.type.ordered),
        problems,
    )


def _alone(column: pa.Array, row: int) -> pa.Array:
    """Return one row as an array of its own, as a slice of a list array keeps all items."""
    try:
        return column.take(pa.array([row]))
    except pa.ArrowNotImplementedError:
        return column.slice(row, 1)


def _explain(column: pa.Array, row: int, field: pa.Field, error: str) -> str:
    value = not_utf8(column.slice(row, 1)).get(0)
    if value is not None:
        return f"{field.name} is not UTF-8: {value}"
    return f"{field.name} cannot be {field.type}: {error}"


def not_utf8(column: pa.Array) -> Mapping[int, str]:
    """Return row -> printable form of text that is not UTF-8; {} for other types."""
    if not is_text(column.type):
        return {}
    texts = {}
    for row, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
        try:
            (value or b"").decode("utf-8")
        except UnicodeDecodeError:
            texts[row] = value.decode("utf-8", "backslashreplace")
    return texts


def check_names(source: Source, compared: Collection[str] = ()) -> None:
    """Check the names of pass-through columns and casts, which may also name compared columns.

    Raises:
        JobError: The output has a column of that name, or a cast names another column.
    """
    for name in sorted(source.passed):
        is_in_transit = name.startswith((TEXT_FEATURE, TEXT_OF, *([PART] if source.inputs else [])))
        if name in RESERVED_COLUMNS or is_in_transit:
            raise JobError(taken_name(source, name))
    for name, alias in source.casts.items():
        if name not in source.passed and name not in compared:
            raise JobError(f"source.casts.{name}: no column of source.pass_through")
        parse_type(name, alias)


def taken_name(source: Source, name: str) -> str:
    """Say that the output has such a column, and how to publish the shards' under another name."""
    other = f"source_{name.strip('_')}"
    names = {other if there == name else there: column for there, column in source.passed.items()}
    return (
        f"source.pass_through: {name} is a column that the output makes; publish the other one "
        f"under another name, pass_through: {json.dumps(names)}"
    )
