"""JSON lines: one line is one row, its columns by name; only reading a shard counts its rows."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.json

from pipeline.core.semantics import SEMANTICS
from pipeline.job.source import Source
from pipeline.sources.extents import Extent, UncountedPlan
from pipeline.sources.jsonl.sample import sample_jsonl
from pipeline.sources.jsonl.stream import JsonlStream
from pipeline.sources.lines.format import LineFormat
from pipeline.sources.lines.sample import Sample
from pipeline.sources.rows import Reader
from pipeline.storage.store import Store, StoredFile


class Jsonl(LineFormat):
    """JSON lines, plain or compressed as a whole by gzip or zstd."""

    name = "jsonl"
    suffixes = (*(".jsonl", ".jsonl.gz", ".jsonl.zst"), *(".ndjson", ".ndjson.gz", ".ndjson.zst"))
    semantics = SEMANTICS["jsonl"]
    kinds = frozenset(["JSON lines", "gzip", "zstd"])

    def sample(self, store: Store, shards: Sequence[StoredFile], source: Source) -> Sample:
        return sample_jsonl(store, shards, source)

    def table_of(self, lines: bytes, path: str) -> pa.Table:
        return pyarrow.json.read_json(io.BytesIO(lines))

    def open_slices(
        self, reader: Reader, extents: Sequence[Extent], cut: UncountedPlan
    ) -> JsonlStream:
        return JsonlStream(reader, extents, cut)


FORMAT = Jsonl()
