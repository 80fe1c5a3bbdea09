"""CSV: one record is one row, the columns by the header; only reading a shard counts its rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.core.semantics import SEMANTICS
from pipeline.job.registered import options_of
from pipeline.job.section import Section
from pipeline.job.source import Source
from pipeline.sources.columns.arrow_types import is_number
from pipeline.sources.features.vectors import number_of
from pipeline.sources.formats.csv_records import NOT_UTF8, Records
from pipeline.sources.formats.csv_rows import (
    CsvOptions,
    csv_shard,
    max_record_bytes,
    number_options,
    read_named,
    record_trouble,
)
from pipeline.sources.lines.rows import NO_ROWS, LineFormat, LineRows
from pipeline.sources.lines.sample import Sample, first_objects
from pipeline.sources.rows import Reader
from pipeline.sources.source_format import FirstRows
from pipeline.sources.units import Extent
from pipeline.sources.whole_file import open_sequential
from pipeline.storage.store import Store, StoredFile

_BOOL = re.compile(r"true|false", re.IGNORECASE)
_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")
_FRACTION = re.compile(r"-?((0|[1-9][0-9]*)(\.[0-9]*)?(e[+-]?[0-9]+)?|inf|nan)", re.IGNORECASE)
_SPELLINGS = ((pa.bool_(), _BOOL), (pa.int64(), _WHOLE), (pa.float64(), _FRACTION))
_DELIMITERS = ";\t|,"


class _CsvSample(Sample):
    """Records of texts."""

    @cached_property
    def _plain(self) -> Callable[[str], str]:
        return options_of(CsvOptions, self._source.options).plain

    def column(self, values: Sequence[Any]) -> pa.Array:
        """Return the type that all values spell, which proposes a column as a feature.

        A number with zeros before it, or a whole one beyond int64, is text.
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
    kinds = frozenset(["CSV", "gzip", "zstd"])
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

    def read(
        self, reader: Reader, extents: Sequence[Extent], is_wanted: Callable[[int], bool]
    ) -> Iterator[LineRows[Records]]:
        [extent] = extents
        return csv_shard(reader, extent, options_of(CsvOptions, reader.source.options)).rows()


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
