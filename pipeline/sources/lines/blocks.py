"""Read the lines of a shard in blocks, through gzip or zstd, within bounded memory.

A line that is too long is skipped without being held. If a shard cannot be read further, a last
block stands for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np

from pipeline.core.arrays import Numbers
from pipeline.sources.whole_file import Broken, opened

_CHUNK_BYTES = 2**18
_BLOCK_BYTES = 2**20
_BOM = b"\xef\xbb\xbf"
BLANK = b" \t\r\n"
"""The bytes of a blank line."""


@dataclass(frozen=True)
class Block:
    """N lines; a view that is cut without a copy."""

    data: bytes
    starts: Numbers
    """int64 (N,), where each line begins in `data`."""
    ends: Numbers
    """int64 (N,), where each line ends, after its line end; `starts` if it was too long."""
    sizes: Numbers
    """int64 (N,), bytes of each line, also of one that was too long."""
    numbers: Numbers
    """int64 (N,), number of each line in the shard, from 1, blank lines included."""
    broken: str = ""
    """If set, the block is one row in place of the rest of the shard, and this says why."""
    has_marks: bool = False
    """Whether a line that was too long has one of the requested marks."""

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: slice | Numbers) -> Block:
        """Return some of the lines, in order."""
        columns = (self.starts, self.ends, self.sizes, self.numbers)
        starts, ends, sizes, numbers = (column[rows] for column in columns)
        return replace(self, starts=starts, ends=ends, sizes=sizes, numbers=numbers)

    def line(self, row: int) -> bytes:
        """Return a line with its line end."""
        return self.data[self.starts[row] : self.ends[row]]


def read_blocks(
    handle: BinaryIO, max_line_bytes: int, what: str, *, with_blank: bool = False, marks: str = ""
) -> Iterator[Block]:
    """Yield all lines of a shard in order; the ends of blocks depend on the shard alone.

    Args:
        handle: The file, at its beginning; must be seekable.
        max_line_bytes: A longer line is not held in memory.
        what: The format of the shard, for messages.
        with_blank: Also yield blank lines.
        marks: Characters to look for in lines that are too long.
    """
    lines = _Lines(max_line_bytes, with_blank=with_blank, marks=marks)
    try:
        read = opened(handle).read
        head = read(_CHUNK_BYTES)
        if 0 in head[:4]:  # how UTF-16 and UTF-32 begin, and no text in UTF-8
            raise Broken(
                f"not {what} in UTF-8: a byte 0 among the first four, as in UTF-16 "
                "(`iconv -f utf-16 -t utf-8` makes UTF-8 of it)"
            )
        chunk = head.removeprefix(_BOM)
        while chunk:
            yield from lines.add(chunk)
            chunk = read(_CHUNK_BYTES)
    except Broken as error:
        yield from lines.whole()
        one = np.zeros(1, np.int64)
        yield Block(b"", one, one, one, one + lines.number, str(error))
        return
    yield from lines.last()


class _Lines:
    """Cuts chunks into blocks of whole lines."""

    def __init__(self, max_line_bytes: int, *, with_blank: bool, marks: str) -> None:
        self._max_bytes = max_line_bytes
        self._with_blank = with_blank
        self._marks = marks.encode()
        self._has_marks = False
        """Whether the dropped bytes contain a mark."""
        self._held: list[bytes] = []
        """Chunks that were read and not handed on."""
        self._num_searched = 0
        """Number of held chunks that are known to have no line end."""
        self._held_bytes = 0
        self._dropped_bytes = 0
        """Dropped bytes of a line that is too long."""
        self.number = 1
        """Number of the first line that was not handed on."""

    def add(self, chunk: bytes) -> Iterator[Block]:
        """Take more bytes; yield the whole lines once there are many."""
        if self._dropped_bytes:
            end = chunk.find(b"\n") + 1
            self._drop(chunk[: end or len(chunk)])
            if not end:
                return
            yield self._too_long()
            chunk = chunk[end:]
        self._held.append(chunk)
        self._held_bytes += len(chunk)
        if self._held_bytes >= _BLOCK_BYTES:
            yield from self.whole()
        if self._held_bytes > self._max_bytes + _BLOCK_BYTES:
            for held in self._held:
                self._drop(held)
            self._held, self._held_bytes, self._num_searched = [], 0, 0

    def _drop(self, data: bytes) -> None:
        self._dropped_bytes += len(data)
        self._has_marks = self._has_marks or any(mark in data for mark in self._marks)

    def whole(self) -> Iterator[Block]:
        """Yield the whole lines that are held."""
        for index in range(len(self._held) - 1, self._num_searched - 1, -1):
            if end := self._held[index].rfind(b"\n") + 1:
                last = self._held[index]
                data = b"".join([*self._held[:index], last[:end]])
                self._held = [last[end:], *self._held[index + 1 :]]
                self._held_bytes -= len(data)
                self._num_searched = len(self._held)
                yield from self._block(data)
                return
        self._num_searched = len(self._held)

    def last(self) -> Iterator[Block]:
        """Yield the rest at the end of the shard, where the last line needs no line end."""
        if self._dropped_bytes:
            yield self._too_long()
        elif self._held_bytes:
            yield from self._block(b"".join(self._held))

    def _too_long(self) -> Block:
        nothing = np.zeros(1, np.int64)
        sizes, numbers = nothing + self._dropped_bytes, nothing + self.number
        block = Block(b"", nothing, nothing, sizes, numbers, has_marks=self._has_marks)
        self.number += 1
        self._dropped_bytes, self._has_marks = 0, False
        return block

    def _block(self, data: bytes) -> Iterator[Block]:
        view = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(view == 0x0A).astype(np.int64) + 1
        if not len(ends) or ends[-1] < len(data):
            ends = np.append(ends, len(data))
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        numbers = np.arange(self.number, self.number + len(ends), dtype=np.int64)
        self.number += len(ends)
        block = Block(data, starts, ends, ends - starts, numbers)
        if self._with_blank:
            yield block
            return
        # All blank bytes are at most a space.
        maybe = np.flatnonzero(view[starts] <= 0x20).tolist()
        blank = [row for row in maybe if not block.line(row).strip(BLANK)]
        if blank:
            block = block.take(np.delete(np.arange(len(ends)), blank))
        if len(block):
            yield block
