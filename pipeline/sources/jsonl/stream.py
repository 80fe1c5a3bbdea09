"""The rows of JSON lines. Only lines that are taken are parsed; others are found by their ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa

from pipeline.job.source import Source
from pipeline.sources.columns.base import Failures
from pipeline.sources.extents import Extent, UncountedPlan
from pipeline.sources.jsonl.parse import Parser
from pipeline.sources.lines.blocks import Block, read_blocks
from pipeline.sources.lines.columns import columns_for
from pipeline.sources.lines.stream import LineStream, max_line_bytes
from pipeline.sources.rows import Reader

_ESCAPED = 6
"""JSON may write a byte of a text as six: \\u0041."""


class JsonlStream(LineStream[Block]):
    """The rows of JSON lines in order; a block of lines is read ahead."""

    def __init__(self, reader: Reader, extents: Sequence[Extent], cut: UncountedPlan) -> None:
        super().__init__(reader, extents, cut, max_json_bytes(reader.source))
        self._parsers: dict[str, Parser] = {}

    def read_lines(self, handle: BinaryIO, path: str) -> Iterator[Block]:
        return read_json_blocks(handle, self._max_line_bytes)

    def parse(self, lines: Block, path: str) -> tuple[pa.Table, Failures]:
        if path not in self._parsers:
            columns = columns_for(self._reader, path)
            self._parsers = {path: Parser(columns, self._max_line_bytes)}
        return self._parsers[path].parse(lines)


def read_json_blocks(handle: BinaryIO, max_bytes: int) -> Iterator[Block]:
    """Yield the lines of a shard that are not blank."""
    return read_blocks(handle, max_bytes, "JSON lines")


def max_json_bytes(source: Source) -> int:
    """Return the limit of a line."""
    return max_line_bytes(source, _ESCAPED)
