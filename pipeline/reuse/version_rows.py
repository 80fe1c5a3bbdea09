"""Read rows of a published version, by their ordinals or by the hash of their content.

A part lies in the published folder and, once its version has been replaced, in the history. It is
copied to the history before it leaves the folder, so it is always found in one of them. Size, rows
and page checksums of a part must be those that were written.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit.layout import PLACES, Layout
from pipeline.commit.manifest import Manifest, Part, read_manifest
from pipeline.commit.parts.part_file import open_part
from pipeline.commit.shard_table import PLACES_PER_GROUP
from pipeline.core.arrays import Numbers, as_array
from pipeline.core.errors import InfraError, PipelineError
from pipeline.core.hive_paths import restore
from pipeline.core.node_cache import cached_folder, let_go
from pipeline.core.row_digests import HASH_BYTES
from pipeline.core.schema import INPUT_HASH
from pipeline.storage.store import Store

TOKEN_CHARS = 12
_ROW_GROUPS_HELD = 4
T = TypeVar("T")
UNKNOWN = -1
"""Instead of an ordinal: the row is not known."""
_FILES = ("high", "low", "ordinals")
Hashes = npt.NDArray[np.uint8]
"""(N, HASH_BYTES)."""


class NotReadable(InfraError):
    """Rows of a version cannot be read: a part is missing or damaged."""


@dataclass(frozen=True)
class PartPlace:
    """A part of a published version, which may be replaced meanwhile."""

    part: Part
    history: str
    """Its path once its version has been replaced."""

    @classmethod
    def of(cls, layout: Layout, number: int, part: Part) -> PartPlace:
        """Return the paths of a part of a version."""
        return cls(part, f"{layout.history(number)}/{layout.inside(part.path)}")

    def find(self, store: Store, act: Callable[[str], T]) -> T:
        """Call a function with the path of the part, which may move at any time.

        Raises:
            NotReadable: The part is missing or damaged, or the store failed.
        """
        trouble: Exception | None = None
        for path in (self.part.path, self.history):
            try:
                return act(path)
            except FileNotFoundError:
                continue
            except (PipelineError, pa.ArrowException, OSError, UnicodeDecodeError) as error:
                trouble = error  # it may be moving
        why = f"cannot be read: {trouble}" if trouble else "is gone, also from the history"
        raise NotReadable(f"{store.url(self.part.path)}: {why}") from trouble


@dataclass(frozen=True)
class Version:
    """A published version to carry predictions from; only its name is pickled."""

    store: Store
    partition: str | None
    """Its partition; None if the output has none."""
    number: int
    token: str
    """Token of its manifest, which tells it from another version of the same number."""
    has_places: bool = False
    """Whether its rows are sorted by value."""
    has_hashes: bool = False
    """Whether its parts have hashes of inputs."""
    days: str = ""
    """First and last day of its predictions that may be carried."""

    @property
    def layout(self) -> Layout:
        """Its partition."""
        return Layout(self.partition)

    @property
    def name(self) -> str:
        """Partition and number, for messages."""
        return f"{self.layout.name} version {self.number}"

    @property
    def source(self) -> str:
        """Its name in footers; it changes when other rows may be carried."""
        return f"{self.token[:TOKEN_CHARS]} {self.days}".rstrip()

    @cached_property
    def manifest(self) -> Manifest:
        """Its entry in the log.

        Raises:
            NotReadable: It belongs to another version, or cannot be read.
        """
        try:
            manifest = read_manifest(self.store, self.layout, self.number)
        except (PipelineError, FileNotFoundError) as error:
            raise NotReadable(f"{self.name}: its manifest cannot be read: {error}") from error
        if manifest.token != self.token:
            raise NotReadable(f"{self.name}: another version has its number now")
        return manifest

    def __reduce__(self) -> tuple[Any, ...]:
        names = (self.store, self.partition, self.number, self.token)
        return Version, (*names, self.has_places, self.has_hashes, self.days)


class PartReader:
    """Reads columns of the predictions of a version, each needed row group once."""

    def __init__(self, version: Version, schema: pa.Schema) -> None:
        """Prepare to read; nothing is opened.

        Args:
            version: The version.
            schema: The columns to read, with their types.
        """
        self._version, self._schema = version, schema
        self._parts = [part for part in version.manifest.parts if part.num_rows]
        self._starts = [*accumulate((part.num_rows for part in self._parts), initial=0)]
        self._footers: dict[str, pq.FileMetaData] = {}
        self._held: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()

    def at(self, ordinals: Numbers) -> pa.Table:
        """Return the predictions of ordinals, (N,) both.

        Raises:
            NotReadable: They are missing or damaged.
        """
        places = self._places(ordinals) if self._version.has_places else ordinals
        if len(places) and not 0 <= places.min() <= places.max() < self._starts[-1]:
            raise NotReadable(f"{self._version.name} has fewer predictions")
        wanted, back = np.unique(places, return_inverse=True)
        parts = np.searchsorted(self._starts, wanted, "right") - 1
        tables = [self._schema.empty_table()]
        for index in np.unique(parts).tolist():
            rows = wanted[parts == index] - self._starts[index]
            tables += self._of_part(self._parts[index], rows)
        predictions = pa.concat_tables(tables)
        is_same = len(back) == len(wanted) and (back[1:] > back[:-1]).all()
        return predictions if is_same else predictions.take(pa.array(back))

    def row_groups(self) -> Iterator[pa.Table]:
        """Yield all predictions in the order of the parts."""
        for part in self._parts:
            for group in range(self._footer(part).num_row_groups):
                yield self._row_group(part, group)

    def ordinals(self, places: Numbers) -> Numbers:
        """Return the ordinals of predictions by their places, int64 (N,) both."""
        if not self._version.has_places:
            return places
        all_places = self._places(np.arange(self._starts[-1]))
        back = np.empty(len(all_places), np.int64)
        back[all_places] = np.arange(len(all_places))
        return back[places]

    def _places(self, ordinals: Numbers) -> Numbers:
        path = f"{self._version.manifest.keys['folder']}/{PLACES}"
        groups = ordinals // PLACES_PER_GROUP
        places = np.empty(len(ordinals), np.int64)
        for group in np.unique(groups).tolist():
            try:
                rows = self._read(path, None, group, ["place"]).column(0).to_numpy()
                places[groups == group] = rows[ordinals[groups == group] % PLACES_PER_GROUP]
            except (OSError, ValueError, IndexError, PipelineError, pa.ArrowException) as error:
                name = self._version.name
                raise NotReadable(f"{name}: {PLACES} cannot be read: {error}") from error
        return places

    def _of_part(self, part: Part, rows: Numbers) -> list[pa.Table]:
        footer = self._footer(part)
        sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        bounds = [*accumulate(sizes, initial=0)]
        if bounds[-1] != part.num_rows:
            raise NotReadable(
                f"{self._version.store.url(part.path)}: has {bounds[-1]} rows, its manifest says "
                f"{part.num_rows}"
            )
        tables, groups = [], np.searchsorted(bounds, rows, "right") - 1
        for group in np.unique(groups).tolist():
            chosen = rows[groups == group] - bounds[group]
            table = self._row_group(part, group)
            is_run = chosen[-1] - chosen[0] + 1 == len(chosen)
            tables.append(
                table.slice(int(chosen[0]), len(chosen)) if is_run else table.take(pa.array(chosen))
            )
        return tables

    def _footer(self, part: Part) -> pq.FileMetaData:
        if part.path not in self._footers:
            self._find(part, lambda path: self._open(path, part, lambda _: None))
        return self._footers[part.path]

    def _row_group(self, part: Part, group: int) -> pa.Table:
        key = part.path, group
        if key not in self._held:
            columns = self._version.manifest.partition_columns
            names = [name for name in self._schema.names if name not in columns]
            rows = self._find(part, lambda path: self._read(path, part, group, names))
            try:
                types = [self._schema.field(name).type for name in names]
                if rows.select(names).schema.types != types:  # a cast could fill fields with nulls
                    raise TypeError(f"{rows.schema.types}, expected {types}")
                rows = restore(rows, part.path, columns)
                self._held[key] = rows.select(self._schema.names).cast(self._schema)
            except (KeyError, TypeError, pa.ArrowException) as error:
                url = self._version.store.url(part.path)
                raise NotReadable(f"{url}: has other columns: {error}") from error
            while len(self._held) > _ROW_GROUPS_HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key]

    def _read(self, path: str, part: Part | None, group: int, columns: list[str]) -> pa.Table:
        return self._open(path, part, lambda file: file.read_row_group(group, columns=columns))

    def _open(self, path: str, part: Part | None, act: Callable[[pq.ParquetFile], T]) -> T:
        name = part.path if part else path
        size_bytes, footer = part.size_bytes if part else None, self._footers.get(name)
        with open_part(
            self._version.store, path, size_bytes=size_bytes, footer=footer, pre_buffer=True
        ) as file:
            self._footers[name] = file.metadata
            return act(file)

    def _find(self, part: Part, act: Callable[[str], T]) -> T:
        place = PartPlace.of(self._version.layout, self._version.number, part)
        return place.find(self._version.store, act)


class ContentIndex:
    """Finds predictions of a version by hash; only its name is pickled.

    The hashes are read from the parts at the first look-up, once per node, and lie in the node
    cache as sorted arrays that processes map into their memory.
    """

    def __init__(self, version: Version, left_out: Numbers) -> None:
        """Prepare to look up; nothing is read.

        Args:
            version: The version.
            left_out: int64 (M, 2), ascending: ranges of ordinals that are never found.
        """
        self.version, self._left_out = version, left_out
        self._opened: tuple[Any, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return ContentIndex, (self.version, self._left_out)

    def find(self, hashes: Hashes) -> Numbers:
        """Return the ordinals of rows with N hashes, int64 (N,); UNKNOWN if there is none.

        Of several rows with one hash, any is returned.

        Raises:
            NotReadable: A part is missing or damaged.
            PipelineError: The store failed, or the node cache cannot be used.
        """
        if not self._opened:
            facts = [self.version.token, [part.sha256 for part in self.version.manifest.parts]]
            key = f"hashes-{hashlib.sha256(repr(facts).encode()).hexdigest()}"
            try:
                folder = cached_folder(key, partial(_write_index, self.version))
                self._opened = tuple(np.load(folder / f"{n}.npy", mmap_mode="r") for n in _FILES)
            finally:
                let_go(key)  # a mapping stays valid after its file is removed
        ordinals = _look_up(self._opened, *_halves(hashes))
        within = np.searchsorted(self._left_out[:, 0], ordinals, "right") - 1
        ends = np.append(self._left_out[:, 1], 0)  # at -1: before the first range
        ordinals[ordinals < ends[within]] = UNKNOWN
        return ordinals


def _write_index(version: Version, folder: Path) -> None:
    schema = pa.schema([pa.field(INPUT_HASH, pa.binary(HASH_BYTES))])
    reader, hashes, places, first = PartReader(version, schema), [], [], 0
    for rows in reader.row_groups():
        column = as_array(rows.column(INPUT_HASH))
        is_there = np.asarray(column.is_valid())
        data = np.frombuffer(b"".join(column.drop_null().to_pylist()), np.uint8)
        hashes.append(data.reshape(-1, HASH_BYTES))
        places.append(first + np.flatnonzero(is_there))
        first += rows.num_rows
    all_hashes = np.concatenate([np.zeros((0, HASH_BYTES), np.uint8), *hashes])
    high, low = _halves(all_hashes)
    order = np.argsort(high)
    ordinals = reader.ordinals(np.concatenate([np.zeros(0, np.int64), *places]))
    for name, array in zip(_FILES, (high, low, ordinals), strict=True):
        np.save(folder / f"{name}.npy", array[order])


def _halves(hashes: Hashes) -> tuple[Numbers, Numbers]:
    """Return the halves of hashes as two int64 (N,)."""
    words = np.ascontiguousarray(hashes).view(">i8").astype(np.int64)
    return np.ascontiguousarray(words[:, 0]), np.ascontiguousarray(words[:, 1])


def _look_up(index: tuple[Any, ...], high: Numbers, low: Numbers) -> Numbers:
    """Return the ordinals, int64 (M,), of hashes, whose halves are int64 (M,)."""
    highs, lows, ordinals = index
    places = np.full(len(high), UNKNOWN, np.int64)
    open_rows = np.arange(len(high))
    at = np.searchsorted(highs, high)
    while len(open_rows):
        # Hashes with another second half may come first.
        inside = at < len(highs)
        open_rows, at = open_rows[inside], at[inside]
        same = highs[at] == high[open_rows]
        open_rows, at = open_rows[same], at[same]
        hit = lows[at] == low[open_rows]
        places[open_rows[hit]] = ordinals[at[hit]]
        open_rows, at = open_rows[~hit], at[~hit] + 1
    return places
