"""The rows of CSV: what fields of text become in the columns that a job needs, and its options."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from pipeline.core.failures import Failure, Reason
from pipeline.core.printable import listed
from pipeline.job.section import Section
from pipeline.job.source import Source
from pipeline.sources.columns.base import STAGE, Failures, fail
from pipeline.sources.columns.pass_through import Problems, cast_column
from pipeline.sources.csv.records import Record, Records, read_records, unreadable
from pipeline.sources.extents import Extent
from pipeline.sources.lines.columns import Column, columns_for
from pipeline.sources.lines.rows import Shard, max_line_bytes
from pipeline.sources.rows import Reader

Character = Annotated[str, Field(max_length=1, pattern=r"^[^\r\n]$")]
_ESCAPED = 2
"""CSV may write a quote as two."""


class CsvOptions(Section):
    """How the shards are written."""

    delimiter: Character | None = None
    """What is between fields: one character; left out, a tab in `.tsv`, otherwise a comma."""
    quote: Character | None = '"'
    """What is around fields that hold a delimiter, a quote or a line end; doubled inside them.
    `null`: quotes are characters like others."""
    escape: Character | None = None
    """What takes its meaning from the next character, in quotes and outside; left out: none."""
    nulls: tuple[str, ...] = ("",)
    """Fields that are null, quoted or not. `[]`: an empty field is an empty text."""
    columns: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The names of the columns, in order, of shards without a header; left out, the first record of
    each shard has them."""

    @model_validator(mode="after")
    def _differ(self) -> CsvOptions:
        given = [self.delimiter or ",", self.quote, self.escape]
        if len({character for character in given if character}) < sum(map(bool, given)):
            raise ValueError("delimiter, quote and escape must differ")
        if self.columns and len(set(self.columns)) < len(self.columns):
            raise ValueError("columns: name each column once")
        return self

    def dialect(self, path: str) -> dict[str, Any]:
        """Return the arguments of `csv.reader` for a shard."""
        is_tsv = ".tsv" in path.lower().rpartition("/")[2]
        return {
            "delimiter": self.delimiter or ("\t" if is_tsv else ","),
            "quotechar": self.quote,
            "quoting": csv.QUOTE_NONE if self.quote is None else csv.QUOTE_MINIMAL,
            "escapechar": self.escape,
            "strict": True,
        }


def csv_shard(reader: Reader, extent: Extent, options: CsvOptions) -> Shard[Records]:
    """Return how a shard is read."""
    max_bytes, nulls = max_record_bytes(reader.source), frozenset(options.nulls)
    columns = columns_for(reader, extent.path)

    def read(handle: BinaryIO) -> Iterator[Records]:
        needed = [column.name for column in columns.values()]
        for records in read_named(handle, extent.path, max_bytes, options):
            if not records.broken and (trouble := _trouble(records.names, needed)):
                yield unreadable(trouble)
                return
            yield records

    def parse(lines: Records) -> tuple[pa.Table, Failures]:
        failures: Failures = [_failure(lines, row, max_bytes) for row in range(len(lines))]
        rows = [
            fields if failures[row] is None else None for row, fields in enumerate(lines.fields)
        ]
        made: dict[str, pa.Array] = {}
        for key, column in columns.items():
            at = lines.names.index(column.name)
            texts = [None if row is None or row[at] in nulls else row[at] for row in rows]
            made[key], problems = _column(pa.array(texts, pa.large_string()), column)
            for row, message in problems.items():
                fail(failures, [row], Reason.BAD_SCHEMA, message)
        return pa.table(made), failures

    return Shard(reader, extent, max_bytes, read, parse)


def _failure(lines: Records, row: int, max_bytes: int) -> Failure | None:
    """Return why a record has no fields, if that is so."""
    fields, size_bytes = lines.fields[row], int(lines.sizes[row])
    where = f"line {lines.numbers[row]}"
    if size_bytes > max_bytes:
        message = f"{where} has {size_bytes} bytes, the limit is {max_bytes}"
        return Failure(Reason.TOO_LARGE, STAGE, message, num_bytes=size_bytes)
    if trouble := record_trouble(fields, len(lines.names)):
        return Failure(Reason.DECODE_ERROR, STAGE, f"{where} {trouble}", num_bytes=size_bytes)
    return None


def read_named(
    handle: BinaryIO, path: str, max_bytes: int, options: CsvOptions
) -> Iterator[Records]:
    """Yield the records of a shard, without the header, which gives them their names."""
    names: Sequence[str] | None = options.columns
    for records in read_records(handle, max_bytes, options.dialect(path)):
        if names is None and not records.broken:
            header = records.fields[0]
            if isinstance(header, str):
                yield unreadable(f"its header {header}")
                return
            names, records = header, records.take(slice(1, None))
        if len(records):
            yield Records(
                records.fields, records.sizes, records.numbers, names or (), records.broken
            )


def max_record_bytes(source: Source) -> int:
    """Return the limit of a record."""
    return max_line_bytes(source, _ESCAPED)


def _trouble(names: Sequence[str], needed: Sequence[str]) -> str:
    """Return which column that the job needs a header lacks, or ''."""
    for name in needed:
        if (count := names.count(name)) != 1:
            there = f"expected once; it has {listed(names)}"
            return f"its header has column {name!r} {count} times, {there}"
    return ""


def record_trouble(fields: Record, num_columns: int) -> str:
    """Return why a record is no row, or ''."""
    if isinstance(fields, str):
        return fields
    if len(fields) != num_columns:
        return f"has {len(fields)} fields, expected {num_columns} as there are columns"
    return ""


def _column(texts: pa.Array, column: Column) -> tuple[pa.Array, Problems]:
    """Return a column as its role asks for it, null where a text does not fit, and row -> message.

    Args:
        texts: large_string (N,).
        column: What they are.
    """
    if column.role == "pass" and column.dtype is not None:
        return cast_column(texts, pa.field(column.name, column.dtype))
    if column.role != "number":
        return texts, {}
    is_bool = pc.is_in(pc.utf8_lower(texts), pa.array(["true", "false"], pa.large_string()))
    if pc.any(is_bool).as_py():
        digits = pc.cast(pc.equal(pc.utf8_lower(texts), "true"), pa.int8()).cast(texts.type)
        texts = pc.if_else(is_bool, digits, texts)
    return cast_column(texts, pa.field(column.name, pa.float64()), may_round=True)
