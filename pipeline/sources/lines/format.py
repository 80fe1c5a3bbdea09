"""The base of formats whose rows are lines, with columns that have names."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from pipeline.job.source import FIELDS_OF_COLUMNS, Source
from pipeline.sources.extents import Extent
from pipeline.sources.input_columns import columns_of
from pipeline.sources.lines.sample import Sample
from pipeline.sources.source_format import CountsRows, FirstRows, Measured, RowIds, SourceFormat
from pipeline.sources.uris.policy import policy_of
from pipeline.storage.store import Store, StoredFile

NO_ROWS = "has no rows"


class LineFormat(SourceFormat):
    """Shards of lines, plain or compressed as a whole by gzip or zstd."""

    counts_rows: CountsRows = "reading"
    fields = frozenset(FIELDS_OF_COLUMNS)

    @abstractmethod
    def sample(self, store: Store, shards: Sequence[StoredFile], source: Source) -> Sample:
        """Return the first lines of the first shard that has some."""

    def first_rows(self, store: Store, shard: StoredFile, source: Source) -> FirstRows:
        sample = self.sample(store, [shard], source)
        rows, trouble = sample.rows(), sample.trouble
        empty = NO_ROWS if shard.size_bytes else "is empty"
        return FirstRows(rows, trouble if len(rows) or trouble else empty)

    def check(self, source: Source) -> None:
        """Refuse images and clips that are not in base64, which text cannot hold."""
        for name, part in source.parts.items():
            if columns_of(part).line_bytes(1) is None:
                where = f"input {name!r}: " if name else ""
                kind, what, *_ = part.encoded
                raise ValueError(
                    f"{where}format {self.name!r} holds texts (text_column), features, URIs of "
                    f"{what} (uri_column) or {what} in base64 ({kind}_encoding: base64): name one"
                )

    def row_ids(self, source: Source) -> RowIds:
        return "column" if source.id_column else "path#row"

    def measure(
        self, store: Store, shards: Sequence[StoredFile], source: Source, *, max_extent_rows: int
    ) -> Measured:
        """Return one extent of unknown rows per shard; the first lines declare the columns."""
        if source.has_uris:
            policy_of(source, store.uri)  # raises before anything is started
        extents = tuple(Extent(s.path, s.size_bytes, s.version, 0, 0, 0.0) for s in shards)
        pass_through, fields = self.sample(store, shards, source).declare()
        return Measured(extents, pass_through, fields=fields)
