"""The base of formats whose rows are lines, with columns that have names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import pyarrow as pa

from pipeline.job.source import FIELDS_OF_COLUMNS, Source
from pipeline.sources.extents import Extent
from pipeline.sources.first_bytes import head_of, inflated, kind_of
from pipeline.sources.input_columns import columns_of
from pipeline.sources.lines.sample import Sample
from pipeline.sources.source_format import CountedByReading, Measured, RowIds
from pipeline.sources.uris.policy import policy_of
from pipeline.storage.store import Store, StoredFile


class LineFormat(CountedByReading, ABC):
    """Shards of lines, plain or compressed as a whole by gzip or zstd."""

    name: str
    fields = frozenset(FIELDS_OF_COLUMNS)

    @abstractmethod
    def sample(self, store: Store, shards: Sequence[StoredFile], source: Source) -> Sample:
        """Return the first lines of the first shard that has some."""

    @abstractmethod
    def table_of(self, lines: bytes, path: str) -> pa.Table:
        """Parse whole lines of a shard, whatever columns they have."""

    def first_rows(self, store: Store, shard: StoredFile) -> pa.Table:
        head = head_of(store, shard)
        kind = kind_of(head)
        text = (inflated(head, kind) if kind else b"") or head
        if len(text) != shard.size_bytes:
            text = text[: text.rfind(b"\n") + 1] or text
        return self.table_of(text, shard.path)

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
