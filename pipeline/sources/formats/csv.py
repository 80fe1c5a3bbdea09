"""CSV: a record is a row, and the header names the columns; only reading a shard counts its rows.

The section `source.options` of a job says how the shards are written.
"""

from __future__ import annotations

import csv
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from pipeline.core.errors import JobError
from pipeline.core.failures import Failure, Reason
from pipeline.core.figures import READ
from pipeline.core.printable import clean_message, listed
from pipeline.core.semantics import SEMANTICS
from pipeline.job.registered import options_of
from pipeline.job.section import Section
from pipeline.job.source import Source
from pipeline.sources.columns.arrow_types import is_number
from pipeline.sources.columns.input_reader import Failures, fail
from pipeline.sources.columns.pass_through import Problems, cast_column
from pipeline.sources.features.vectors import number_of
from pipeline.sources.formats.csv_records import NOT_UTF8, Record, Records, read_records, unreadable
from pipeline.sources.lines.line_columns import Column, Sample, first_objects
from pipeline.sources.lines.line_format import NO_ROWS, LineFormat, Shard, max_line_bytes
from pipeline.sources.rows import Reader
from pipeline.sources.source_format import FirstRows
from pipeline.sources.units import Extent
from pipeline.sources.whole_file import open_sequential
from pipeline.storage.store import Store, StoredFile

Character = Annotated[str, Field(max_length=1, pattern=r"^[^\r\n]$")]
_SIGNS: Sequence[Mapping[str, str]] = (
    *({}, {"decimal": ","}, {"thousands": ","}, {"decimal": ",", "thousands": "."}),
    *({"thousands": " "}, {"decimal": ",", "thousands": " "}),
)
"""Options for other ways to write numbers, the most usual ones first."""
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
    decimal: Literal[".", ","] = "."
    """What is before the fraction of a number: of features, and of columns with `casts` to numbers.
    A number that is written otherwise costs its row."""
    thousands: Literal[",", ".", " ", "'"] | None = None
    """What may be between groups of three digits of such a number."""
    encoding: Literal[
        "utf-8", "latin-1", "cp1250", "cp1251", "cp1252", "iso8859-2", "iso8859-15"
    ] = "utf-8"
    """Of other ones convert the shards: `iconv -f utf-16 -t utf-8`."""
    skip_rows: Annotated[int, Field(ge=0, le=1000)] = 0
    """Lines at the beginning of each shard that are no records, such as a title or `sep=;`."""

    @model_validator(mode="after")
    def _differ(self) -> CsvOptions:
        given = [self.delimiter or ",", self.quote, self.escape]
        if len({character for character in given if character}) < sum(map(bool, given)):
            raise ValueError("delimiter, quote and escape must differ")
        if self.thousands == self.decimal:
            raise ValueError("decimal and thousands must differ")
        if self.columns and len(set(self.columns)) < len(self.columns):
            raise ValueError("columns: name each column once")
        return self

    @property
    def is_plain(self) -> bool:
        """Tell whether numbers are written as Python writes them."""
        return self.decimal == "." and self.thousands is None

    def plain(self, text: str) -> str:
        """Return a number as Python writes it; any other text in quotes, so that it is none."""
        if self.is_plain:
            return text
        if not _number_in(self.decimal, self.thousands).fullmatch(text):
            return f"'{text}'"
        return text.replace(self.thousands or " ", "").replace(self.decimal, ".")

    def records(self, handle: BinaryIO, path: str, max_bytes: int) -> Iterator[Records]:
        """Yield the records of a shard; see `read_records`."""
        dialect, lines = self.dialect(path), self.skip_rows
        return read_records(handle, max_bytes, dialect, encoding=self.encoding, skip_rows=lines)

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


@functools.cache
def _number_in(decimal: str, thousands: str | None) -> re.Pattern[str]:
    """Return the pattern of numbers with these signs, and of other values of a feature."""
    point, group = re.escape(decimal), re.escape(thousands or "")
    whole = f"[0-9]{{1,3}}(?:{group}[0-9]{{3}})+|[0-9]+"
    number = f"(?:(?:{whole})(?:{point}[0-9]*)?|{point}[0-9]+)(?:e[+-]?[0-9]+)?"
    return re.compile(f"[+-]?(?:{number}|inf|nan)|true|false", re.IGNORECASE)


def number_options(texts: Sequence[str]) -> str:
    """Return the options that make all texts numbers; '' if they are anyway, or never can be.

    For `1,234` both ways are named, because only its writer knows.
    """
    fitting = [
        " ".join(f"--set 'source.options.{name}=\"{sign}\"'" for name, sign in signs.items())
        for signs in _SIGNS
        if all(map(_number_in(signs.get("decimal", "."), signs.get("thousands")).fullmatch, texts))
    ]
    return " or ".join(fitting[:2]) if all(fitting) else ""


def csv_shard(reader: Reader, extent: Extent, columns: Mapping[str, Column]) -> Shard[Records]:
    """Return a shard with the functions that read and parse its records."""
    options = options_of(CsvOptions, reader.source.options)
    max_bytes, nulls = max_record_bytes(reader.source), frozenset(options.nulls)

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
            if not options.is_plain and (
                column.role == "number" or (column.dtype and is_number(column.dtype))
            ):
                texts = [None if text is None else options.plain(text) for text in texts]
            made[key], problems = _column(pa.array(texts, pa.large_string()), column)
            for row, message in problems.items():
                fail(failures, [row], Reason.BAD_SCHEMA, message)
        return pa.table(made), failures

    return Shard(reader, extent, max_bytes, read, parse)


def _failure(lines: Records, row: int, max_bytes: int) -> Failure | None:
    """Return why a record is no row; None if it is one."""
    fields, size_bytes = lines.fields[row], int(lines.sizes[row])
    where = f"line {lines.numbers[row]}"
    if size_bytes > max_bytes:
        message = f"{where} has {size_bytes} bytes, the limit is {max_bytes}"
        return Failure(Reason.TOO_LARGE, READ, message, num_bytes=size_bytes)
    if trouble := record_trouble(fields, len(lines.names)):
        return Failure(Reason.DECODE_ERROR, READ, f"{where} {trouble}", num_bytes=size_bytes)
    return None


def read_named(
    handle: BinaryIO, path: str, max_bytes: int, options: CsvOptions
) -> Iterator[Records]:
    """Yield the records of a shard without the header, with the names of their fields."""
    names: Sequence[str] | None = options.columns
    for records in options.records(handle, path, max_bytes):
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
    """Return which column of the job the header does not have exactly once, or ''."""
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
    """Return a column with the type of its role, null at texts that do not fit, and messages.

    Args:
        texts: large_string (N,).
        column: The column that they belong to.
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


_BOOL = re.compile(r"true|false", re.IGNORECASE)
_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")
_FRACTION = re.compile(r"-?((0|[1-9][0-9]*)(\.[0-9]*)?(e[+-]?[0-9]+)?|inf|nan)", re.IGNORECASE)
_SPELLINGS = ((pa.bool_(), _BOOL), (pa.int64(), _WHOLE), (pa.float64(), _FRACTION))
_DELIMITERS = ";\t|,"


class _CsvSample(Sample):
    """The first records of a shard, whose values are texts."""

    has_types = False

    @cached_property
    def _plain(self) -> Callable[[str], str]:
        return options_of(CsvOptions, self._source.options).plain

    def column(self, values: Sequence[Any]) -> pa.Array:
        """Return the values with the type that all of them spell.

        A number with leading zeros, or an integer beyond int64, is text.
        """
        plain = [None if value is None else self._plain(value) for value in values]
        given = [value for value in plain if value is not None]
        if not given:
            return pa.array(values)
        texts = pa.array(values, pa.string())
        for dtype, spelling in _SPELLINGS:
            if all(map(spelling.fullmatch, given)):
                try:
                    return pa.array(plain, pa.string()).cast(dtype)
                except pa.ArrowInvalid:
                    break
        return texts

    def width_of(self, value: Any) -> int | str:
        plain = self._plain(value)
        is_number = _BOOL.fullmatch(plain) or _FRACTION.fullmatch(plain)
        if is_number or number_of(plain) is not None:
            return 0
        cure = number_options([value])
        return f"{value!r:.80}" + (f" (with {cure} a number)" if cure else "")


class Csv(LineFormat):
    """CSV with a header, plain or compressed as a whole by gzip or zstd."""

    name = "csv"
    suffixes = (".csv", ".csv.gz", ".csv.zst", ".tsv", ".tsv.gz", ".tsv.zst")
    semantics = SEMANTICS["csv"]
    file_types = frozenset(["gzip", "zstd"])
    has_types = False
    Options: type[Section] | None = CsvOptions

    def sample(self, store: Store, shards: Sequence[StoredFile], source: Source) -> Sample:
        options = options_of(CsvOptions, source.options)
        max_bytes, nulls = max_record_bytes(source), frozenset(options.nulls)

        def read(handle: BinaryIO, path: str) -> Iterator[tuple[Mapping[str, Any] | str, int]]:
            for records in read_named(handle, path, max_bytes, options):
                names = records.names
                for row, (fields, num_bytes) in enumerate(
                    zip(records.fields, records.sizes.tolist(), strict=True)
                ):
                    if records.broken or (trouble := record_trouble(fields, len(names))):
                        where = f"line {records.numbers[row]} "
                        yield records.broken or where + trouble, num_bytes
                        continue
                    pairs = zip(names, fields, strict=True)
                    yield {name: None if text in nulls else text for name, text in pairs}, num_bytes

        return _CsvSample(source, *first_objects(store, shards, read))

    def first_rows(self, store: Store, shard: StoredFile, source: Source) -> FirstRows:
        options = options_of(CsvOptions, source.options)
        header = _header(store, shard, source, options)
        doubt = _doubt(header) if options.columns is None else ""
        if options.delimiter is None and not doubt:
            _require_delimiter(header)
        first = super().first_rows(store, shard, source)
        if not len(first.rows) and f"expected {len(header)} as there are" in first.trouble:
            cure = doubt or "if line 1 is no header: --set source.options.skip_rows=1"
            first = first._replace(trouble=f"{first.trouble} ({cure})")
        if NOT_UTF8 in first.trouble:
            cure = "Latin-1 is read with --set source.options.encoding=latin-1"
            first = first._replace(trouble=f"{first.trouble} ({cure})")
        if first.trouble == NO_ROWS and not options.columns:
            return first._replace(trouble=f"{NO_ROWS} but a header")
        if doubt:
            return first._replace(doubt=doubt)
        if [*header] in ([*row.values()] for row in first.rows.to_pylist()):
            return first._replace(doubt="its header is there again among the rows: take it out")
        numbers = [field.name for field in first.rows.schema if is_number(field.type)]
        if options.columns or not numbers or not all(map(_FRACTION.fullmatch, numbers)):
            return first
        names = clean_message(", ".join(first.rows.column_names), 200)
        return first._replace(
            doubt=f"its header ({names}) looks like a row: name the columns with --set "
            "source.options.columns=[...], or if it is a header the input with --set "
            "source.features=[...] or source.text_column=..."
        )

    def shard(
        self, reader: Reader, extent: Extent, columns: Mapping[str, Column]
    ) -> Shard[Records]:
        return csv_shard(reader, extent, columns)


def _header(store: Store, shard: StoredFile, source: Source, options: CsvOptions) -> Sequence[str]:
    """Return the fields of the first record; none if it cannot be read."""
    extent = Extent(shard.path, shard.size_bytes, shard.version, 0, 0, 0.0)
    with open_sequential(store, extent) as handle:
        for records in options.records(handle, shard.path, max_record_bytes(source)):
            first = records.fields[0]
            return () if isinstance(first, str) else first
    return ()


def _doubt(header: Sequence[str]) -> str:
    """Return why the first record may be no header, and what to do; ''."""
    shown, cure = clean_message(", ".join(header), 80), "--set source.options.skip_rows=1"
    if header and header[0].lower().startswith("sep="):
        delimiter = f"--set 'source.options.delimiter={json.dumps(header[0][4:] or ',')}'"
        return f"its first line ({shown}) names the delimiter: {cure} {delimiter}"
    if len([*filter(None, header)]) == 1 < len(header):
        return f"its first line ({shown}) looks like a title: {cure}"
    if header[1:] and all(name.startswith(" ") for name in header[1:]):
        read = "pandas.read_csv(path, skipinitialspace=True).to_parquet(...)"
        return f"its header ({shown}) has blanks behind the delimiter: {read} takes them out"
    return ""


def _require_delimiter(header: Sequence[str]) -> None:
    """Refuse a header of one column that holds what others write between columns.

    Raises:
        JobError: Says how to name the delimiter.
    """
    for other in _DELIMITERS if len(header) == 1 else "":
        if other in header[0]:
            name = clean_message(header[0], 80)
            shown = json.dumps(other)
            raise JobError(
                f"its one column {name!r} looks like delimiter {shown}: --set "
                f"'source.options.delimiter={shown}'"
            )


FORMAT = Csv()
