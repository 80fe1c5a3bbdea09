"""Read JSON lines, shard after shard, and cut them into slices on the way.

Only lines that are taken are parsed; lines that are passed over are found by their ends alone.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import pyarrow as pa

from pipeline.core.failures import Failure, Reason
from pipeline.core.figures.counters import Counters
from pipeline.job.source import Source
from pipeline.sources.columns.base import STAGE
from pipeline.sources.extents import Extent, SliceCut
from pipeline.sources.jsonl.columns import columns_for
from pipeline.sources.jsonl.lines import Block, read_blocks
from pipeline.sources.jsonl.parse import Parser
from pipeline.sources.rows import Reader, changed, require_unchanged
from pipeline.sources.source_format import failed_shard
from pipeline.sources.table_rows import to_rows
from pipeline.sources.whole_file import open_whole

_MIB = 2**20
_ROOM_BYTES = 8 * _MIB
"""For all of a line that is not its text or image."""
_ESCAPED = 6
"""JSON may write a byte of a text as six: \\u0041."""


class _Lines:
    """Some lines of a shard: a block, and the numbers of its rows in the shard."""

    def __init__(self, extent: Extent, block: Block, rows: Sequence[int]) -> None:
        self.extent, self.block, self.rows = extent, block, rows

    def cut(self, num_rows: int) -> _Lines:
        """Take the first lines off."""
        taken = _Lines(self.extent, self.block.take(slice(num_rows)), self.rows[:num_rows])
        self.block, self.rows = self.block.take(slice(num_rows, None)), self.rows[num_rows:]
        return taken


class JsonlStream:
    """The rows of JSON lines in order; a block of lines is read ahead."""

    def __init__(self, reader: Reader, extents: Sequence[Extent], cut: SliceCut) -> None:
        self._reader = reader
        self._extents = extents
        self._cut = cut
        self._max_line_bytes = max_line_bytes(reader.source)
        self._num_rows = 0
        """Rows that were taken or skipped."""
        self._blocks = self._read()
        self._ahead: _Lines | None = None
        self._parsers: dict[str, Parser] = {}
        self.counted: Counters = {}

    def take(self) -> pa.Table:
        """Return the next slice; without rows only if none are left."""
        taken: list[_Lines] = []
        rows_left, bytes_left = self._cut.slice_rows, self._cut.slice_bytes
        while rows_left and not self.is_at_end():
            assert self._ahead is not None, "not at the end"
            sizes = self._held_bytes(self._ahead.block)
            num_rows = int(np.searchsorted(np.cumsum(sizes), bytes_left, "right"))
            # A line that is too large by itself is a slice of its own.
            num_rows = min(max(num_rows, 0 if taken else 1), self._left(rows_left))
            if not num_rows:
                break
            taken.append(self._advance(num_rows))
            rows_left -= num_rows
            bytes_left -= int(sizes[:num_rows].sum())
        if not self._reader.store.is_object_store:  # an object cannot change under an open file
            for extent in {lines.extent.path: lines.extent for lines in taken}.values():
                self._check_unchanged(extent)
        pieces = [self._to_rows(lines) for lines in taken] or [self._no_rows()]
        return pa.concat_tables(pieces)

    def skip(self, num_rows: int) -> None:
        """Skip rows that are staged.

        Raises:
            InfraError: Fewer rows are left, so a shard changed since they were staged.
        """
        while num_rows:
            if self.is_at_end():
                raise changed(self._reader.store, self._extents[-1])
            num_rows -= len(self._advance(self._left(num_rows)).rows)

    def is_at_end(self) -> bool:
        """Tell whether no rows are left."""
        if self._num_rows == self._cut.max_rows:
            return True
        while self._ahead is None or not self._ahead.rows:
            self._ahead = next(self._blocks, None)
            if self._ahead is None:
                return True
        return False

    def close(self) -> None:
        """Close the open shard."""
        self._blocks.close()
        self._ahead = None

    def _left(self, num_rows: int) -> int:
        """Return how many of so many rows can be taken of the block that is read ahead."""
        assert self._ahead is not None, "not at the end"
        left = min(num_rows, len(self._ahead.rows))
        return (
            left if self._cut.max_rows is None else min(left, self._cut.max_rows - self._num_rows)
        )

    def _advance(self, num_rows: int) -> _Lines:
        assert self._ahead is not None, "not at the end"
        self._num_rows += num_rows
        return self._ahead.cut(num_rows)

    def _held_bytes(self, block: Block) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return the bytes of lines, 0 of those that are too long to be read."""
        return np.where(block.sizes > self._max_line_bytes, 0, block.sizes)

    def _read(self) -> Generator[_Lines, None, None]:
        store, chosen = self._reader.store, self._cut.rows
        before = 0
        for extent in self._extents:
            self._check_unchanged(extent)
            with open_whole(store, extent) as handle:
                first = 0
                for block in read_blocks(handle, self._max_line_bytes):
                    if chosen.is_past(before):
                        return
                    numbers: Sequence[int] = range(first, first + len(block))
                    first += len(block)
                    # The row that stands for the unreadable rest of a shard is always yielded.
                    if chosen.only is not None and not block.broken:
                        own = [
                            row for row in range(len(block))
                            if chosen.number(before + row) is not None
                        ]  # fmt: skip
                        numbers = [numbers[row] for row in own]
                        before += len(block)
                        block = block.take(np.array(own, np.int64))
                    else:
                        before += len(block)
                    yield _Lines(extent, block, numbers)

    def _check_unchanged(self, extent: Extent) -> None:
        try:
            require_unchanged(self._reader.store, extent)
        except FileNotFoundError:
            raise changed(self._reader.store, extent) from None

    def _to_rows(self, lines: _Lines) -> pa.Table:
        extent = lines.extent
        if lines.block.broken:
            failure = Failure(
                Reason.UNREADABLE_SHARD, STAGE, lines.block.broken, num_bytes=extent.size_bytes
            )
            return failed_shard(self._reader, extent, failure)
        if extent.path not in self._parsers:
            columns = columns_for(self._reader, extent.path)
            self._parsers = {extent.path: Parser(columns, self._max_line_bytes)}
        table, failures = self._parsers[extent.path].parse(lines.block)
        return to_rows(
            self._reader, extent.path, lines.rows, table, failures, {}, has_integers=False
        )

    def _no_rows(self) -> pa.Table:
        return self._reader.schema.empty_table()


def max_line_bytes(source: Source) -> int:
    """Return the limit of a line: room for the largest text or image, and for what is beside it."""
    return _ROOM_BYTES + sum(_room_bytes(part) for part in source.parts.values())


def _room_bytes(source: Source) -> int:
    kind, names = source.input_columns
    if kind == "text":
        return _ESCAPED * source.max_text_bytes * len(names)
    return source.max_image_bytes * 3 // 2 if kind == "image" else 0
