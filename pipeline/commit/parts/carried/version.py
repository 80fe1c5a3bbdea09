"""Predictions of published versions, read by their numbers: how many predictions come before.

A part lies in the published folder and, once its version has been replaced, in the history. It is
in the history before it leaves the folder: who does not find it in the one finds it in the other.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, Part
from pipeline.commit.parts.partition_columns import Keyed
from pipeline.core.arrays import Numbers
from pipeline.core.errors import InfraError, PipelineError
from pipeline.storage.store import Store

_ROW_GROUPS_HELD = 4
"""As many as there are sources: rows of all of them may alternate."""
_BATCH_ROWS = 65_536
T = TypeVar("T")


class NotReadable(InfraError):
    """Predictions of an earlier version cannot be read: a part is gone, or damaged."""


@dataclass(frozen=True)
class CarriedVersion:
    """A published version that predictions are taken from."""

    layout: Layout
    manifest: Manifest

    @property
    def num_rows(self) -> int:
        """How many predictions it has."""
        return sum(part.num_rows for part in self.manifest.parts)

    def parts(self) -> list[OldPart]:
        """Return the parts of its predictions, in order."""
        history = self.layout.history(self.manifest.number)
        return [
            OldPart(part, f"{history}/{self.layout.inside(part.path)}")
            for part in self.manifest.parts
        ]


@dataclass(frozen=True)
class OldPart:
    """A part of a published version, which may be replaced meanwhile."""

    part: Part
    history: str
    """Where it lies once its version has been replaced."""

    def find(self, store: Store, act: Callable[[str], T]) -> T:
        """Do something with the part where it lies; it may move at any time.

        Raises:
            NotReadable: It lies nowhere, its bytes are damaged, or the store does not give them.
        """
        trouble: Exception | None = None
        for path in (self.part.path, self.history):
            try:
                return act(path)
            except FileNotFoundError:
                continue
            except (PipelineError, pa.ArrowException, OSError) as error:
                trouble = error  # it may just be moving
        why = f"cannot be read: {trouble}" if trouble else "is gone, also from the history"
        raise NotReadable(f"{store.url(self.part.path)}: {why}") from trouble


@dataclass(frozen=True)
class Traffic:
    """What was moved to take predictions over."""

    parts_copied: int = 0
    bytes_copied: int = 0
    """By the store itself."""
    num_reads: int = 0
    bytes_read: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.parts_copied + other.parts_copied,
            self.bytes_copied + other.bytes_copied,
            self.num_reads + other.num_reads,
            self.bytes_read + other.bytes_read,
        )


@dataclass(frozen=True)
class OldRows:
    """Parts of earlier versions, or some of them, as one list of predictions."""

    parts: tuple[OldPart, ...]
    starts: Numbers
    """int64 (P,): number of the first prediction of each part; those of each version follow those
    of the version before."""

    @classmethod
    def of(cls, versions: Sequence[CarriedVersion]) -> OldRows:
        """Return all predictions of some versions."""
        parts = [part for version in versions for part in version.parts() if part.part.num_rows]
        rows = cls(tuple(parts), np.zeros(0, np.int64))
        return cls(rows.parts, np.cumsum(rows.sizes) - rows.sizes)

    @property
    def sizes(self) -> Numbers:
        """(P,): how many predictions each part has."""
        return np.array([old.part.num_rows for old in self.parts], np.int64)

    @property
    def row_bytes(self) -> npt.NDArray[np.float64]:
        """(P,): mean bytes of a prediction of each part."""
        return np.array([old.part.size_bytes for old in self.parts], np.float64) / self.sizes

    def part_of(self, numbers: Numbers) -> Numbers:
        """Return the index of the part that each prediction lies in."""
        return np.searchsorted(self.starts, numbers, "right") - 1

    def only(self, numbers: Numbers) -> OldRows:
        """Return the parts that these predictions lie in; numbers stay the same."""
        used = np.unique(self.part_of(numbers))
        return OldRows(tuple(self.parts[index] for index in used.tolist()), self.starts[used])


class OldReader:
    """Reads columns of predictions: only the row groups that are needed, and each mostly once."""

    def __init__(self, store: Store, rows: OldRows, schema: pa.Schema) -> None:
        self._store, self._rows, self._schema = store, rows, schema
        self._footers: dict[int, tuple[pq.FileMetaData, list[int]]] = {}
        self._held: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self.traffic = Traffic()

    def read(self, firsts: Numbers, counts: Numbers, keys: Numbers) -> Keyed:
        """Yield predictions in the order of runs, with their keys.

        Args:
            firsts: (R,): number of the first prediction of each run.
            counts: (R,): how many follow each other.
            keys: (R,): key of the first one; those that follow have the next keys.

        Raises:
            NotReadable: A part is gone, or damaged.
        """
        place, pieces, num_rows = (-1, -1), list[tuple[int, int, int]](), 0
        for first, count, key in zip(firsts.tolist(), counts.tolist(), keys.tolist(), strict=True):
            while count:
                part = int(self._rows.part_of(first))
                row = first - int(self._rows.starts[part])
                _, bounds = self._footer(part)
                group = bisect_right(bounds, row) - 1
                if pieces and ((part, group) != place or num_rows >= _BATCH_ROWS):
                    yield self._take(*place, pieces)
                    pieces, num_rows = [], 0
                here = min(count, bounds[group + 1] - row)
                place = part, group
                pieces.append((row - bounds[group], here, key))
                first, key, count, num_rows = (
                    first + here,
                    key + here,
                    count - here,
                    num_rows + here,
                )
        if pieces:
            yield self._take(*place, pieces)

    def at(self, numbers: Numbers) -> pa.Table:
        """Return single predictions, (N,), whose numbers ascend without repeating."""
        heads = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
        counts = np.diff(np.append(heads, len(numbers)))
        found = [rows for rows, _ in self.read(numbers[heads], counts, heads)]
        return pa.concat_tables([self._schema.empty_table(), *found])

    def _take(
        self, part: int, group: int, pieces: list[tuple[int, int, int]]
    ) -> tuple[pa.Table, Numbers]:
        rows = self._row_group(part, group)
        keys = np.concatenate([np.arange(key, key + count) for _, count, key in pieces])
        if len(pieces) == 1:
            return rows.slice(pieces[0][0], pieces[0][1]), keys
        chosen = np.concatenate([np.arange(row, row + count) for row, count, _ in pieces])
        return rows.take(pa.array(chosen)), keys

    def _footer(self, part: int) -> tuple[pq.FileMetaData, list[int]]:
        """Return the footer of a part, and how many rows come before each row group, and in all."""
        if part not in self._footers:
            footer = self._read(part, lambda file: file.metadata)
            groups = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
            bounds = list(accumulate(groups, initial=0))
            known = self._rows.parts[part].part
            if bounds[-1] != known.num_rows:
                raise NotReadable(
                    f"{self._store.url(known.path)}: has {bounds[-1]} rows, its manifest says "
                    f"{known.num_rows}"
                )
            self._footers[part] = footer, bounds
        return self._footers[part]

    def _row_group(self, part: int, group: int) -> pa.Table:
        place = part, group
        if place not in self._held:
            names = self._schema.names
            rows = self._read(part, lambda file: file.read_row_group(group, columns=names))
            try:
                self._held[place] = rows.select(names).cast(self._schema)
            except (KeyError, pa.ArrowException) as error:
                url = self._store.url(self._rows.parts[part].part.path)
                raise NotReadable(f"{url}: has other columns: {error}") from error
            while len(self._held) > _ROW_GROUPS_HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(place)
        return self._held[place]

    def _read(self, part: int, read: Callable[[pq.ParquetFile], T]) -> T:
        old = self._rows.parts[part]
        footer = self._footers[part][0] if part in self._footers else None

        def look(path: str) -> T:
            with open_old(self._store, old, path) as handle:
                found = read(pq.ParquetFile(handle, metadata=footer, pre_buffer=True))
                self.traffic += Traffic(num_reads=handle.num_reads, bytes_read=handle.num_bytes)
            return found

        return old.find(self._store, look)


def open_old(store: Store, old: OldPart, path: str) -> CountedFile:
    """Open a part of an earlier version, counting what is read of it.

    Raises:
        NotReadable: It has not the size that its manifest says.
    """
    handle = CountedFile(store.open(path))
    size_bytes = handle.seek(0, io.SEEK_END)
    if size_bytes != old.part.size_bytes:
        handle.close()
        raise NotReadable(
            f"{store.url(path)}: has {size_bytes} bytes, its manifest says {old.part.size_bytes}"
        )
    return handle


class CountedFile(io.RawIOBase):
    """A file that counts what is read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.num_reads = self.num_bytes = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._file.read(-1 if size is None else size)
        self.num_reads, self.num_bytes = self.num_reads + 1, self.num_bytes + len(data)
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()
