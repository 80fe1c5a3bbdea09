"""CSV: one record is one row, the columns by the header; only reading a shard counts its rows."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv

from pipeline.core.semantics import SEMANTICS
from pipeline.job.extensions import options_of
from pipeline.job.section import Section
from pipeline.job.source import Source
from pipeline.sources.csv.stream import CsvOptions, CsvStream, max_record_bytes, read_named
from pipeline.sources.extents import Extent, UncountedPlan
from pipeline.sources.features.vectors import number_of
from pipeline.sources.lines.format import LineFormat
from pipeline.sources.lines.sample import Sample, first_objects
from pipeline.sources.rows import Reader
from pipeline.storage.store import Store, StoredFile

_BOOL = re.compile(r"true|false", re.IGNORECASE)
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,18})")
_FRACTION = re.compile(r"-?((0|[1-9][0-9]*)(\.[0-9]*)?(e[+-]?[0-9]+)?|inf|nan)", re.IGNORECASE)
_INT64 = range(-(2**63), 2**63)


def sample_csv(
    store: Store, shards: Sequence[StoredFile], source: Source, options: CsvOptions
) -> Sample:
    """Return the first records of the first shard that has some."""
    max_bytes, nulls = max_record_bytes(source), frozenset(options.nulls)

    def read(handle: BinaryIO, path: str) -> Iterator[tuple[Mapping[str, Any] | None, int]]:
        for records in read_named(handle, path, max_bytes, options):
            names = records.names
            for fields, num_bytes in zip(records.fields, records.sizes.tolist(), strict=True):
                if isinstance(fields, str) or len(fields) != len(names):
                    yield None, num_bytes
                    continue
                pairs = zip(names, fields, strict=True)
                yield {name: None if text in nulls else text for name, text in pairs}, num_bytes

    return _CsvSample(source, *first_objects(store, shards, read))


class _CsvSample(Sample):
    """Records of texts."""

    def type_of(self, values: Sequence[Any]) -> pa.DataType:
        """Return the type that all values spell; a number with zeros before it is text."""
        if values and all(map(_BOOL.fullmatch, values)):
            return pa.bool_()
        if values and all(_WHOLE.fullmatch(value) and int(value) in _INT64 for value in values):
            return pa.int64()
        return pa.float64() if values and all(map(_FRACTION.fullmatch, values)) else pa.string()

    def text_trouble(self, values: Sequence[Any]) -> str:
        return ""

    def category_of(self, values: Sequence[Any]) -> str:
        return "text"

    def width_of(self, value: Any) -> int | str:
        is_number = _BOOL.fullmatch(value) or _FRACTION.fullmatch(value)
        return 0 if is_number or number_of(value) is not None else f"{value!r:.80}"


class Csv(LineFormat):
    """CSV with a header, plain or compressed as a whole by gzip or zstd."""

    name = "csv"
    suffixes = (".csv", ".csv.gz", ".csv.zst", ".tsv", ".tsv.gz", ".tsv.zst")
    semantics = SEMANTICS["csv"]
    kinds = frozenset(["CSV", "gzip", "zstd"])
    Options: type[Section] | None = CsvOptions

    def sample(self, store: Store, shards: Sequence[StoredFile], source: Source) -> Sample:
        return sample_csv(store, shards, source, options_of(CsvOptions, source.options))

    def table_of(self, lines: bytes, path: str) -> pa.Table:
        delimiter = CsvOptions().dialect(path)["delimiter"]
        options = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        return pyarrow.csv.read_csv(io.BytesIO(lines), parse_options=options)

    def open_slices(
        self, reader: Reader, extents: Sequence[Extent], cut: UncountedPlan
    ) -> CsvStream:
        options = options_of(CsvOptions, reader.source.options)
        return CsvStream(reader, extents, cut, options)


FORMAT = Csv()
