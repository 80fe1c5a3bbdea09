"""A source of your own: texts in CSV files, one for each line below the header.

`pip install ./examples/text_source` makes it known by the entry point in pyproject.toml; a job then
says `source.format: csv_texts` and names the column in `source.text_column`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from pipeline.core.failures import Failure, Reason
from pipeline.core.figures import READ
from pipeline.core.schema import text_fields
from pipeline.job.source import Source
from pipeline.sources.columns.input_reader import Place
from pipeline.sources.input_columns import columns_of
from pipeline.sources.rows import Reader, make_rows
from pipeline.sources.source_format import (
    CountsRows,
    Measured,
    RowIds,
    Rows,
    SourceFormat,
    failed_rows,
)
from pipeline.sources.units import Extent, changed, require_unchanged
from pipeline.storage.store import Store, StoredFile


class CsvTexts(SourceFormat):
    """CSV in UTF-8 with a header; files are small enough to be read whole."""

    name = "csv_texts"
    suffixes = (".csv",)
    counts_rows: CountsRows = "footer"  # the rows are counted when the files are listed
    semantics = 1  # raise it if the same file gives other rows
    fields = frozenset(["text_column", "max_text_bytes"])

    def check(self, source: Source) -> None:
        """Refuse a job that names no column; the line of the job file is told with it."""
        if source.text_column is None:
            raise ValueError("format 'csv_texts' needs text_column")

    def row_ids(self, source: Source) -> RowIds:
        return "path#row"

    def measure(
        self, store: Store, shards: Sequence[StoredFile], source: Source, *, max_extent_rows: int
    ) -> Measured:
        extents = [e for s in shards for e in _extents(store, s, source, max_extent_rows)]
        return Measured(tuple(extents), fields=text_fields(has_pair=False))

    def read(
        self, reader: Reader, extents: Sequence[Extent], is_wanted: Callable[[int], bool]
    ) -> Iterator[Rows]:
        [extent] = extents  # of one file
        store, column = reader.store, str(reader.source.text_column)
        if extent.reason is not None:  # found when the file was listed; it stands for one row
            failure = Failure(extent.reason, READ, extent.message)
            yield Rows(failed_rows(reader, extent, 0, failure))
            return
        require_unchanged(store, extent)
        texts, lines = _texts(store.read_bytes(extent.path), column), extent.numbers()
        if lines[-1] >= len(texts):
            raise changed(store, extent)
        # A text that is missing or too long becomes a failure of its row, as in other formats.
        failures: list[Failure | None] = [None] * len(lines)
        table = pa.table({column: pa.array([texts[line] for line in lines])})
        found = columns_of(reader.source).read(table, failures, Place(store.uri, extent.path))
        ids, uris = [f"{extent.path}#{line}" for line in lines], [store.url(extent.path)]
        yield Rows(make_rows(reader, ids, uris * len(ids), found.columns, failures))


FORMAT = CsvTexts()


def _extents(store: Store, shard: StoredFile, source: Source, most: int) -> Iterator[Extent]:
    """Cut a file into extents of at most so many rows; one that cannot be read has a reason."""
    file = (shard.path, shard.size_bytes, shard.version)
    try:
        num_rows = len(_texts(store.read_bytes(shard.path), str(source.text_column)))
    except (ValueError, csv.Error) as error:
        yield Extent(*file, 0, 1, 0.0, Reason.UNREADABLE_SHARD, str(error))
        return
    row_bytes = shard.size_bytes / max(1, num_rows)
    for first in range(0, num_rows, most):
        yield Extent(*file, first, min(most, num_rows - first), row_bytes)


def _texts(data: bytes, column: str) -> list[str | None]:
    lines = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    if column not in (lines.fieldnames or ()):
        raise ValueError(f"no column {column!r}, there are {', '.join(lines.fieldnames or ())}")
    return [line[column] for line in lines]
