"""Parquet shards: the columns hold images, URIs, features or texts; footers count the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.semantics import SEMANTICS
from pipeline.job.source import FIELDS_OF_COLUMNS, Source
from pipeline.sources.extents import Extent
from pipeline.sources.parquet.batches import read_tables
from pipeline.sources.parquet.footers import declare_columns, extents_of, read_footers
from pipeline.sources.rows import Reader
from pipeline.sources.source_format import (
    CountsRows,
    FirstRows,
    Measured,
    RowIds,
    Rows,
    SourceFormat,
)
from pipeline.storage.store import Store, StoredFile

_FIRST_ROWS = 32


class Parquet(SourceFormat):
    """Parquet shards, read page by page."""

    name = "parquet"
    suffixes = (".parquet", ".pq")
    counts_rows: CountsRows = "footer"
    semantics = SEMANTICS["parquet"]
    kinds = frozenset(["Parquet"])
    fields = frozenset(FIELDS_OF_COLUMNS)

    def first_rows(self, store: Store, shard: StoredFile, source: Source) -> FirstRows:
        """Read no more than a batch: a row group may hold all images of a shard."""
        with store.open(shard.path) as handle:
            file = pq.ParquetFile(handle)
            first = next(file.iter_batches(batch_size=_FIRST_ROWS), None)
            schema = file.schema_arrow
        rows = schema.empty_table() if first is None else pa.Table.from_batches([first])
        return FirstRows(rows, "" if len(rows) else "has no rows")

    def row_ids(self, source: Source) -> RowIds:
        return "column" if source.id_column else "path#row"

    def measure(
        self, store: Store, shards: Sequence[StoredFile], source: Source, *, max_extent_rows: int
    ) -> Measured:
        """Read the footers; neighbouring row groups are joined to extents."""
        footers = read_footers(store, shards, source)
        declared, fields = declare_columns(store, source, shards, footers)
        extents = [
            extent
            for shard, footer in zip(shards, footers, strict=True)
            for extent in extents_of(shard, footer, source, declared, max_extent_rows)
        ]
        return Measured(tuple(extents), declared, fields=fields)

    def read(
        self, reader: Reader, extents: Sequence[Extent], is_wanted: Callable[[int], bool]
    ) -> Iterator[Rows]:
        [extent] = extents
        return map(Rows, read_tables(reader, extent))


FORMAT = Parquet()
