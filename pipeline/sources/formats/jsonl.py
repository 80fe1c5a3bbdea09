"""JSON lines: a line is a row, with columns by name; only reading a shard counts its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO

from pipeline.core.semantics import SEMANTICS
from pipeline.job.source import Source
from pipeline.sources.formats.jsonl_parse import Parser, parse_line
from pipeline.sources.lines.blocks import Block, read_blocks
from pipeline.sources.lines.line_columns import Sample, columns_for, first_objects
from pipeline.sources.lines.line_format import LineFormat, LineRows, Shard, max_line_bytes
from pipeline.sources.rows import Reader
from pipeline.sources.units import Extent
from pipeline.storage.store import Store, StoredFile

_WHAT = "JSON lines"
_ESCAPED = 6
"""JSON may write a byte of a text as six: \\u0041."""


def _object(line: bytes) -> Mapping[str, Any] | None:
    try:
        value = parse_line(line)
    except ValueError:  # the line fails its row when it is read
        return None
    return value if isinstance(value, dict) else None


class Jsonl(LineFormat):
    """JSON lines, plain or compressed as a whole by gzip or zstd."""

    name = "jsonl"
    suffixes = (*(".jsonl", ".jsonl.gz", ".jsonl.zst"), *(".ndjson", ".ndjson.gz", ".ndjson.zst"))
    semantics = SEMANTICS["jsonl"]
    file_types = frozenset(["gzip", "zstd"])

    def sample(self, store: Store, shards: Sequence[StoredFile], source: Source) -> Sample:
        """Return the first lines of the first shard in which a line is an object."""
        max_bytes = max_line_bytes(source, _ESCAPED)

        def read(handle: BinaryIO, path: str) -> Iterator[tuple[Mapping[str, Any] | str, int]]:
            for block in read_blocks(handle, max_bytes, _WHAT):
                for row in range(len(block)):
                    if block.broken:
                        yield block.broken, 0
                    elif block.sizes[row] <= max_bytes:
                        line = block.line(row)
                        value = _object(line)
                        bad = f"line {block.numbers[row]} is no JSON object"
                        yield bad if value is None else value, len(line)

        return Sample(source, *first_objects(store, shards, read))

    def read(
        self, reader: Reader, extents: Sequence[Extent], is_wanted: Callable[[int], bool]
    ) -> Iterator[LineRows[Block]]:
        [extent] = extents
        max_bytes = max_line_bytes(reader.source, _ESCAPED)
        parser = Parser(columns_for(reader, extent.path), max_bytes)
        read = partial(read_blocks, max_line_bytes=max_bytes, what=_WHAT)
        return Shard(reader, extent, max_bytes, read, parser.parse).rows()


FORMAT = Jsonl()
