"""Write parts by the values of partition columns; rows of one value are in input order.

There are two passes, so that a value spread over all slices does not become many tiny files. First,
each group of slices is sorted by value into one file, with a row group per value. Then the row
groups of a value are read in order and written as parts of the target size.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, pairwise, repeat
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.commit.layout import sorted_name
from pipeline.commit.manifest import Part
from pipeline.commit.parts.compaction import (
    Compacted,
    Compactor,
    DuplicateRows,
    Group,
    RunTasks,
    SizedSlice,
    SliceRows,
    cut_groups,
)
from pipeline.commit.parts.part_file import checksums, open_part, write_file
from pipeline.core.arrays import Numbers
from pipeline.core.errors import GateRefused
from pipeline.core.hive_paths import MAX_VALUES, to_segment, to_text, without
from pipeline.core.output_folders import PREDICTIONS, QUARANTINE
from pipeline.core.schema import QUARANTINE_SCHEMA
from pipeline.sources.units import Unit
from pipeline.storage.store import Store

_SORT_BYTES = 16 * 2**20
"""Staged bytes that one task sorts."""
_SORT_MEMORY_BYTES = 512 * 2**20
"""Bytes in memory at which rows are sorted and written; later rows go into another file."""
_READ_AHEAD = 4
_FOLDERS_PER_TASK = 64

T = TypeVar("T")


@dataclass(frozen=True)
class RowGroupRef:
    """Rows of one value: a row group of a sorted file."""

    folder: str
    path: str
    row_group: int
    size_bytes: int


@dataclass(frozen=True)
class SortedGroup:
    """The result of the first pass over a group."""

    pieces: tuple[RowGroupRef, ...]
    ranks: tuple[Numbers, ...]
    """int64 (N,) per piece: how many rows of the input come before each of its rows."""
    quarantine: tuple[Part, ...]


@dataclass(frozen=True)
class FolderGroup:
    """Values whose parts one task writes; the pieces of each are in input order."""

    index: int
    values: tuple[tuple[str, tuple[RowGroupRef, ...]], ...]


@dataclass(frozen=True)
class Regrouper:
    """Both passes over any group of one run; can be pickled."""

    compactor: Compactor
    columns: tuple[str, ...]

    def sort(self, group: Group) -> SortedGroup:
        """Sort the rows of one group by value into a file, or into several if there are many bytes.

        Raises:
            GateRefused: There are too many values.
        """
        quarantine = self.compactor.stream(QUARANTINE, group.index, QUARANTINE_SCHEMA)
        sorted_: list[tuple[RowGroupRef, Numbers]] = []
        held: list[SliceRows] = []
        num_files = 0
        for rows in self.compactor.read(group):
            quarantine.write(rows.quarantined)
            held.append(rows)
            if sum(slice_rows.good.nbytes for slice_rows in held) > _SORT_MEMORY_BYTES:
                sorted_ += self._write_file(held, group.index, num_files)
                held, num_files = [], num_files + 1
        if held:
            sorted_ += self._write_file(held, group.index, num_files)
        pieces, ranks = zip(*sorted_, strict=True) if sorted_ else ((), ())
        return SortedGroup(pieces, ranks, quarantine.close())

    def _write_file(
        self, held: Sequence[SliceRows], index: int, nth: int
    ) -> list[tuple[RowGroupRef, Numbers]]:
        """Write rows sorted by value, one row group per value."""
        rows = pa.concat_tables([slice_rows.good for slice_rows in held])
        ranks = np.concatenate([slice_rows.good_at for slice_rows in held])
        folders, codes = _folders_of(rows, self.columns)
        order = np.argsort(codes, kind="stable")
        bounds = np.searchsorted(codes[order], np.arange(len(folders) + 1)).tolist()
        rows = rows.take(pa.array(order))
        buffer, sizes = io.BytesIO(), list[int]()
        with write_file(buffer, rows.schema, compression="zstd") as writer:
            for first, end in pairwise(bounds):
                started = buffer.tell()
                writer.write_table(rows.slice(first, end - first), row_group_size=end - first)
                sizes.append(buffer.tell() - started)
        if not folders:
            return []
        data = buffer.getvalue()
        path = sorted_name(index, f"{nth:012d}{checksums(data)}")
        self.compactor.store.put(f"{self.compactor.folder}/{path}", data)
        pieces = np.split(ranks[order], bounds[1:-1])
        refs = map(RowGroupRef, folders, repeat(path), count(), sizes)
        return [*zip(refs, pieces, strict=True)]

    def write_folders(self, group: FolderGroup) -> tuple[Part, ...]:
        """Write the parts of some values."""
        schema = without(self.compactor.schema, self.columns)
        pieces = [piece for _, refs in group.values for piece in refs]
        footers: dict[str, pq.FileMetaData] = {}
        where = self.compactor.store, self.compactor.folder
        tables = _read_ahead(lambda piece: read_piece(*where, piece, schema, footers), pieces)
        parts: list[Part] = []
        for number, (folder, refs) in enumerate(group.values):
            index = group.index * _FOLDERS_PER_TASK + number
            stream = self.compactor.stream(f"{PREDICTIONS}/{folder}", index, schema)
            for _ in refs:
                stream.write(next(tables))
            parts += stream.close()
        return tuple(parts)


def read_piece(
    store: Store,
    folder: str,
    piece: RowGroupRef,
    schema: pa.Schema,
    footers: dict[str, pq.FileMetaData],
) -> pa.Table:
    """Read the rows of a piece; `footers` caches the footers of files."""
    path, footer = f"{folder}/{piece.path}", footers.get(piece.path)
    with open_part(store, path, footer=footer, pre_buffer=True) as file:
        # Two threads may read the same footer: both store the same value.
        footers[piece.path] = file.metadata
        return file.read_row_group(piece.row_group, columns=schema.names).select(schema.names)


def compact_by_value(
    compactor: Compactor,
    columns: Sequence[str],
    slices: Sequence[SizedSlice],
    units: Sequence[Unit],
    duplicates: DuplicateRows,
    run_tasks: RunTasks,
) -> Compacted:
    """Compact all slices of a run into folders by the values of columns.

    Args:
        compactor: Writes the parts.
        columns: Names of the partition columns, outermost folder first.
        slices: All slices, in input order.
        units: The units of the plan.
        duplicates: Rows to quarantine because of their ids.
        run_tasks: Calls a function with each tuple of arguments; returns results in order.

    Raises:
        GateRefused: There are too many values.
    """
    regrouper = Regrouper(compactor, tuple(columns))
    groups = cut_groups(slices, units, _SORT_BYTES, duplicates)
    done: list[SortedGroup] = run_tasks(regrouper.sort, [(group,) for group in groups])
    values: dict[str, list[RowGroupRef]] = {}
    ranks: dict[str, list[Numbers]] = {}
    for group in done:
        for piece, piece_ranks in zip(group.pieces, group.ranks, strict=True):
            values.setdefault(piece.folder, []).append(piece)
            ranks.setdefault(piece.folder, []).append(piece_ranks)
    _require_few(len(values), columns, "")
    folder_groups = _group_folders(values, compactor.target_bytes)
    written: list[tuple[Part, ...]] = run_tasks(
        regrouper.write_folders, [(s,) for s in folder_groups]
    )
    return compactor.whole(
        [part for parts in written for part in parts],
        [part for group in done for part in group.quarantine],
        np.concatenate(
            [
                np.zeros(0, np.int64),
                *(piece_ranks for name in sorted(ranks) for piece_ranks in ranks[name]),
            ]
        ),
    )


def _group_folders(values: dict[str, list[RowGroupRef]], target_bytes: float) -> list[FolderGroup]:
    """Group values by size, sorted by folder: small values share a task, large ones do not."""
    folder_groups: list[FolderGroup] = []
    pending: list[tuple[str, tuple[RowGroupRef, ...]]] = []
    pending_bytes = 0
    for folder in sorted(values):
        pending.append((folder, tuple(values[folder])))
        pending_bytes += sum(piece.size_bytes for piece in values[folder])
        if pending_bytes >= target_bytes or len(pending) == _FOLDERS_PER_TASK:
            folder_groups.append(FolderGroup(len(folder_groups), tuple(pending)))
            pending, pending_bytes = [], 0
    if pending:
        folder_groups.append(FolderGroup(len(folder_groups), tuple(pending)))
    return folder_groups


def _folders_of(rows: pa.Table, columns: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the folders of all rows, sorted, and for each row the number of its folder."""
    texts = [to_text(rows.column(name)) for name in columns]
    codes = np.zeros(rows.num_rows, np.int64)
    for text in texts:
        encoded = pc.dictionary_encode(text)
        num_values = len(encoded.dictionary)
        numbers = np.asarray(encoded.indices.fill_null(num_values))
        codes = np.unique(codes * (num_values + 1) + numbers, return_inverse=True)[1]
    _, first_rows, codes = np.unique(codes, return_index=True, return_inverse=True)
    _require_few(len(first_rows), columns, "a piece of the rows alone has ")
    names = [
        "/".join(to_segment(c, t[row].as_py()) for c, t in zip(columns, texts, strict=True))
        for row in first_rows.tolist()
    ]
    ranks = np.empty(len(names), np.int64)
    ranks[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    return sorted(names), ranks[codes]


def _require_few(num_values: int, columns: Sequence[str], where: str) -> None:
    if num_values > MAX_VALUES:
        raise GateRefused(
            f"sink.partition_columns: {', '.join(columns)}: {where}{num_values} different values, "
            f"at most {MAX_VALUES} make folders; partition by a column with fewer"
        )


def _read_ahead(read: Callable[[RowGroupRef], T], pieces: Sequence[RowGroupRef]) -> Iterator[T]:
    """Yield the results of `read` in order, reading a few pieces ahead."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        for piece in pieces:
            waiting.append(pool.submit(read, piece))
            if len(waiting) > _READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
