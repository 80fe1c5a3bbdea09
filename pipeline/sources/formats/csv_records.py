"""Read the records of a CSV shard in batches, as Python's `csv` parses them in strict mode.

A record that cannot be parsed ends with the line that reveals the error; the next line begins a new
one. A record that grows too large is not held, and it hides where the next one begins, unless it is
a single line without quotes.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from itertools import chain, islice
from typing import Any, BinaryIO

import numpy as np

from pipeline.core.arrays import Numbers
from pipeline.sources.lines.blocks import Block, read_blocks
from pipeline.sources.rows import chosen
from pipeline.sources.whole_file import Broken

Record = Sequence[str] | str
"""The fields, or a text that says why there are none."""
NOT_UTF8 = "is not UTF-8"


@dataclass(frozen=True)
class Records:
    """N neighbouring records of a shard; empty lines are no records."""

    fields: Sequence[Record]
    sizes: Numbers
    """int64 (N,), bytes of each record, also of one that is too large."""
    numbers: Numbers
    """int64 (N,), number of the line in which each record begins, from 1."""
    names: Sequence[str] = ()
    """The columns of the shard."""
    broken: str = ""
    """If set, this is one row in place of the rest of the shard, and this says why."""

    def __len__(self) -> int:
        return len(self.fields)

    def take(self, rows: slice | Numbers) -> Records:
        """Return some of the records, in order."""
        fields, sizes, numbers = chosen(self.fields, rows), self.sizes[rows], self.numbers[rows]
        return replace(self, fields=fields, sizes=sizes, numbers=numbers)


def unreadable(why: str, number: int = 1) -> Records:
    """Return the row in place of all records from a line on."""
    return Records([why], np.zeros(1, np.int64), np.array([number], np.int64), broken=why)


def read_records(
    handle: BinaryIO,
    max_bytes: int,
    dialect: Mapping[str, Any],
    *,
    encoding: str = "utf-8",
    skip_rows: int = 0,
) -> Iterator[Records]:
    """Yield the records of a shard in order; the ends of batches depend on the shard alone.

    Args:
        handle: The file at its beginning; must be seekable.
        max_bytes: A larger record is not held in memory.
        dialect: Arguments of `csv.reader`.
        encoding: UTF-8, or a superset of ASCII in which each byte is a character.
        skip_rows: Lines before the first record.
    """
    csv.field_size_limit(sys.maxsize)  # it belongs to the process, so records are limited here
    marks = "".join(dialect[name] or "" for name in ("quotechar", "escapechar"))
    blocks = read_blocks(handle, max_bytes, "CSV", with_blank=True, marks=marks)
    lines = _Lines(blocks, max_bytes, encoding, skip_rows)
    batch = _Batch(lines)
    kept = islice(chain.from_iterable(lines), skip_rows, None)
    reader, before = csv.reader(kept, **dialect), skip_rows
    num_blocks = 0
    while True:
        fields: Record
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            fields = f"is not CSV: {str(error).partition(' - ')[0]}"
        except _TooLargeError:
            fields = "is too large"
            before = lines.num_lines
            reader = csv.reader(chain.from_iterable(lines), **dialect)
        except Broken as error:
            yield from batch.flush()
            yield unreadable(str(error), lines.end + 1)
            return
        batch.add(fields, before + reader.line_num)
        if lines.num_blocks > num_blocks:  # the record before was the last of its block
            num_blocks = lines.num_blocks
            yield from batch.flush()
    yield from batch.flush()


class _TooLargeError(Exception):
    """A line that is a record has more bytes than the limit."""


class _Lines:
    """The lines of a shard, block by block, as `csv` requests them."""

    def __init__(
        self, blocks: Iterator[Block], max_bytes: int, encoding: str, num_skipped: int
    ) -> None:
        self._blocks, self._max_bytes, self.encoding = blocks, max_bytes, encoding
        self.num_blocks = 0
        self.num_lines = 0
        """Number of lines that were handed out."""
        self.end = num_skipped
        """Number of lines that belong to whole records."""
        self.sizes = np.zeros(0, np.int64)
        """Bytes of the lines that were handed out, from line `first` on."""
        self.first = 0
        self.has_bad_bytes = False
        """Whether some line so far was not UTF-8."""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> Iterator[str]:
        endless = f"from line {self.end + 1} on: a record of more than {self._max_bytes} bytes"
        if self.sizes[self.end - self.first :].sum() > self._max_bytes:
            raise Broken(f"{endless}, or a quote that nothing closes")
        is_within_record = self.num_lines > self.end
        block = next(self._blocks)
        if block.broken:
            raise Broken(block.broken)
        self.num_blocks += 1
        self.num_lines += len(block)
        self.sizes = np.concatenate([self.sizes, block.sizes])
        if block.sizes[0] and not len(block.line(0)):  # a line that was too long
            if is_within_record or block.has_marks:
                raise Broken(f"{endless}, with quotes, whose end is not looked for")
            raise _TooLargeError
        data = block.data[block.starts[0] : block.ends[-1]]
        try:
            text = data.decode(self.encoding)
        except UnicodeDecodeError:
            text = data.decode(self.encoding, "surrogateescape")
            self.has_bad_bytes = True
        return StringIO(text, newline="\n")  # a carriage return ends no line

    def forget(self, line: int) -> None:
        """Forget the sizes of the lines before this one."""
        self.sizes, self.first = self.sizes[line - self.first :], line


class _Batch:
    """Records that are still to be yielded."""

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines
        self._fields: list[Record] = []
        self._begins: list[int] = []
        self._ends: list[int] = []

    def add(self, fields: Record, end: int) -> None:
        """Add a record that ends with a line, given by its number."""
        if fields:
            if self._lines.has_bad_bytes and not _is_utf8(fields):
                fields = f"is not {self._lines.encoding.upper()}"
            self._fields.append(fields)
            self._begins.append(self._lines.end)
            self._ends.append(end)
        self._lines.end = end

    def flush(self) -> Iterator[Records]:
        """Yield the records if there are any."""
        lines = self._lines
        if self._fields:
            before = np.concatenate([[0], np.cumsum(lines.sizes)])
            begins = np.array(self._begins, np.int64)
            ends = np.array(self._ends, np.int64)
            sizes = before[ends - lines.first] - before[begins - lines.first]
            yield Records(self._fields, sizes, begins + 1)
            self._fields, self._begins, self._ends = [], [], []
        lines.forget(lines.end)


def _is_utf8(fields: Record) -> bool:
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        return False
    return True
