"""CSV: one record is one row, the columns by the header; only reading a shard counts its rows."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.csv

from pipeline.core.semantics import SEMANTICS
from pipeline.job.extensions import options_of
from pipeline.job.section import Section
from pipeline.job.source import Source
from pipeline.sources.csv.options import CsvOptions
from pipeline.sources.csv.sample import sample_csv
from pipeline.sources.csv.stream import CsvStream
from pipeline.sources.extents import Extent, UncountedPlan
from pipeline.sources.lines.format import LineFormat
from pipeline.sources.lines.sample import Sample
from pipeline.sources.rows import Reader
from pipeline.storage.store import Store, StoredFile


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
