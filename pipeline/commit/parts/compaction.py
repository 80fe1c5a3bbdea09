"""Turn staged slices into final parts: predictions and quarantine apart, in input order.

The driver cuts groups of several parts by the bytes that were staged. Each slice has a footer and
dictionaries of its own, so parts take fewer or more bytes: inside a group the bytes that are really
written are divided evenly.

The caller decides where groups are compacted: in a run, in Ray tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit.layout import part_name
from pipeline.commit.manifest import Part
from pipeline.commit.parts.part_file import open_part
from pipeline.commit.parts.part_writer import PartFormat, PartStream
from pipeline.commit.parts.row_ids import sum_of_parts
from pipeline.commit.staging import StagedSlice, staged_of
from pipeline.core.arrays import Numbers
from pipeline.core.failures import Reason
from pipeline.core.figures import PUBLISH
from pipeline.core.output_folders import PREDICTIONS, QUARANTINE
from pipeline.core.schema import (
    ERROR,
    ERROR_STAGE,
    INPUT_HASH,
    INPUT_HASH_FIELD,
    MESSAGE,
    NUM_BYTES,
    QUARANTINE_SCHEMA,
    ROW,
    ROW_ID,
    SHA256,
    SHARD,
    URI,
)
from pipeline.core.slices import SliceKey
from pipeline.sources.units import Unit
from pipeline.storage.errors import listed_files
from pipeline.storage.store import Store

TARGETS_PER_GROUP = 4
"""Staged bytes of a group, in target sizes. Written are 0.3 to 1.2 times as many bytes: 1.2 to 4.8
targets, which divided evenly give parts of about half to one and a half."""
_READ_FILES, _READ_BYTES = 32, 16 * 2**20
_NAMES_PER_GROUP = 100_000
DuplicateRows = Mapping[SliceKey, tuple[int, ...]]
"""Rows (counted within their slice) with the id of an earlier row."""
SizedSlice = tuple[SliceKey, str, float]
"""Key, path and staged bytes."""
RunTasks = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]
DUPLICATE = {
    ERROR: Reason.DUPLICATE_ID.value,
    ERROR_STAGE: PUBLISH,
    MESSAGE: "an earlier row has the same id",
}
"""The error of a row whose id an earlier row has."""


@dataclass(frozen=True)
class Group:
    """Slices that one task compacts."""

    index: int
    slices: tuple[SizedSlice, ...]
    units: Mapping[int, Unit] = field(default_factory=dict)
    """The units of the slices."""
    duplicates: DuplicateRows = field(default_factory=dict)
    is_last: bool = False
    num_before: int = 0
    """Rows of the input before the first slice."""


@dataclass(frozen=True)
class SliceRows:
    """One staged slice, read back."""

    key: SliceKey
    good: pa.Table
    quarantined: pa.Table
    good_at: npt.NDArray[np.int64]
    """How many rows of the input come before each good one."""
    size_bytes: float


@dataclass(frozen=True)
class CompactedGroup:
    """The parts of a group."""

    index: int
    predictions: tuple[Part, ...]
    quarantine: tuple[Part, ...]


@dataclass(frozen=True)
class Compacted:
    """The parts of a version; their paths are relative to the folder."""

    predictions: tuple[Part, ...]
    quarantine: tuple[Part, ...]
    """In input order."""
    ranks: Numbers | None = None
    """int64 (N,): in the order of the parts, how many rows of the input come before each
    prediction; None if that is the order of the input."""

    @property
    def row_id_hash(self) -> str:
        """The sum in the manifest."""
        return sum_of_parts(self.predictions + self.quarantine)


@dataclass(frozen=True)
class Compactor:
    """Compacts any group of one run; can be pickled."""

    store: Store
    folder: str
    """Where the parts go: `<folder>/predictions/` and `<folder>/quarantine/`."""
    version: str
    schema: pa.Schema
    """Schema of the predictions."""
    compression: str
    metadata: Mapping[str, str]
    target_bytes: float
    inputs: Store
    """The store of the shards."""

    def compact(self, group: Group) -> CompactedGroup:
        """Write the final parts of one group, each in one put."""
        total = None if group.is_last else sum(size for _, _, size in group.slices)
        predictions = self.stream(PREDICTIONS, group.index, self.schema, total_weight=total)
        quarantine = self.stream(QUARANTINE, group.index, QUARANTINE_SCHEMA)
        for rows in self.read(group):
            predictions.write(rows.good, rows.size_bytes)
            quarantine.write(rows.quarantined)
        return CompactedGroup(group.index, predictions.close(), quarantine.close())

    def stream(
        self,
        folder: str,
        index: int,
        schema: pa.Schema,
        *,
        total_weight: float | None = None,
    ) -> PartStream:
        """Start writing parts.

        Args:
            folder: `predictions` or `quarantine`, with the folders of partition columns.
            index: The group that writes them; keeps names apart until publishing numbers them.
            schema: Their columns.
            total_weight: As for `PartStream`.
        """
        return PartStream(
            self.store,
            self.folder,
            lambda nth: f"{folder}/{part_name(index * _NAMES_PER_GROUP + nth, self.version)}",
            PartFormat(schema, self.compression, self.metadata, self.target_bytes),
            total_weight=total_weight,
        )

    def read(self, group: Group) -> Iterator[SliceRows]:
        """Read the slices of a group in order, some at a time."""
        num_before = group.num_before
        for chunk in _read_chunks(group.slices):
            contents = self.store.read_many([path for _, path, _ in chunk])
            for key, path, size_bytes in chunk:
                staged, rows = _decode(self.store, contents[path], path)
                rows = mark_duplicates(rows, group.duplicates.get(key, ()))
                if INPUT_HASH in self.schema.names and INPUT_HASH not in rows.column_names:
                    # A run whose job did not ask for hashes has staged it.
                    nulls = pa.nulls(rows.num_rows, INPUT_HASH_FIELD.type)
                    rows = rows.append_column(INPUT_HASH, nulls)
                is_good = pc.is_null(rows.column(ERROR))
                good, failed = _divided(rows, is_good)
                at = np.flatnonzero(~np.asarray(is_good))
                yield SliceRows(
                    key=key,
                    good=good.select(self.schema.names),
                    quarantined=to_quarantine(
                        failed, staged, self._shards_of(group.units.get(key.unit), key.start + at)
                    ),
                    good_at=num_before + np.flatnonzero(np.asarray(is_good)),
                    size_bytes=size_bytes,
                )
                num_before += key.num_rows

    def _shards_of(
        self, unit: Unit | None, rows: Numbers
    ) -> tuple[list[str | None], list[int | None]]:
        """Return the shard, and the row in it, of N rows of a unit."""
        places = [unit.place_of(row) if unit else (None, None) for row in rows.tolist()]
        shards = [None if path is None else self.inputs.url(path) for path, _ in places]
        return shards, [row for _, row in places]

    def whole(
        self,
        predictions: Sequence[Part],
        quarantine: Iterable[Part],
        ranks: Numbers | None = None,
    ) -> Compacted:
        """Return all parts; an empty partition gets one part with the schema."""
        if not predictions:
            predictions = self.stream(PREDICTIONS, 0, self.schema).close(at_least_one=True)
        return Compacted(tuple(predictions), tuple(quarantine), ranks)


def compact_slices(
    compactor: Compactor,
    slices: Sequence[SizedSlice],
    units: Sequence[Unit],
    duplicates: DuplicateRows,
    run_tasks: RunTasks,
) -> Compacted:
    """Compact all slices of a run.

    Args:
        compactor: Writes the parts.
        slices: All slices, in input order.
        units: The units of the plan; without them failed rows have no shard.
        duplicates: Rows to quarantine because of their ids.
        run_tasks: Calls a function with each tuple of arguments; returns results in order.
    """
    group_bytes = TARGETS_PER_GROUP * compactor.target_bytes
    groups = cut_groups(slices, units, group_bytes, duplicates)
    done: list[CompactedGroup] = run_tasks(compactor.compact, [(group,) for group in groups])
    return compactor.whole(
        [part for group in done for part in group.predictions],
        [part for group in done for part in group.quarantine],
    )


def cut_groups(
    slices: Sequence[SizedSlice],
    units: Sequence[Unit],
    target_bytes: float,
    duplicates: DuplicateRows,
) -> list[Group]:
    """Cut the slices, in input order, into groups near target_bytes of staged size."""
    cuts: list[list[SizedSlice]] = []
    pending: list[SizedSlice] = []
    pending_bytes = 0.0
    for sized in slices:
        if pending and pending_bytes + sized[2] / 2 > target_bytes:
            cuts.append(pending)
            pending, pending_bytes = [], 0.0
        pending.append(sized)
        pending_bytes += sized[2]
    if pending:
        cuts.append(pending)
    rows = [sum(key.num_rows for key, _, _ in cut) for cut in cuts]
    return [
        Group(
            index,
            tuple(cut),
            {key.unit: units[key.unit] for key, _, _ in cut} if units else {},
            {key: duplicates[key] for key, _, _ in cut if key in duplicates},
            is_last=index == len(cuts) - 1,
            num_before=num_before,
        )
        for index, (cut, num_before) in enumerate(zip(cuts, accumulate([0, *rows]), strict=False))
    ]


def _read_chunks(slices: Sequence[SizedSlice]) -> Iterator[list[SizedSlice]]:
    chunk: list[SizedSlice] = []
    for sized in slices:
        is_full = sum(size for _, _, size in chunk) + sized[2] > _READ_BYTES
        if chunk and (is_full or len(chunk) == _READ_FILES):
            yield chunk
            chunk = []
        chunk.append(sized)
    if chunk:
        yield chunk


def _decode(store: Store, data: bytes | Exception, path: str) -> tuple[StagedSlice, pa.Table]:
    if isinstance(data, Exception):
        with listed_files():
            raise data
    with open_part(store, path, data=data) as part:
        return staged_of(part, path), part.read()


def _divided(rows: pa.Table, is_good: pa.ChunkedArray) -> tuple[pa.Table, pa.Table]:
    """Return the rows without an error, and the others; copies nothing if there are no others."""
    if rows.column(ERROR).null_count == rows.num_rows:
        return rows, rows.slice(0, 0)
    return rows.filter(is_good), rows.filter(pc.invert(is_good))


def mark_duplicates(rows: pa.Table, duplicates: Sequence[int]) -> pa.Table:
    """Fail staged rows because of their ids; rows that have failed keep their reason."""
    if not duplicates:
        return rows
    is_duplicate = np.zeros(rows.num_rows, bool)
    is_duplicate[list(duplicates)] = True
    mask = pc.and_(pa.array(is_duplicate), pc.is_null(rows.column(ERROR)).combine_chunks())
    for name, value in DUPLICATE.items():
        index = rows.column_names.index(name)
        changed = pc.if_else(mask, pa.scalar(value), rows.column(name).combine_chunks())
        rows = rows.set_column(index, name, changed)
    return rows


def to_quarantine(
    rows: pa.Table, staged: StagedSlice, places: tuple[Sequence[str | None], Sequence[int | None]]
) -> pa.Table:
    """Return failed staged rows as rows of the quarantine; `places`: their shards and rows."""
    return pa.table(
        {
            ROW_ID: rows.column(ROW_ID),
            URI: rows.column(URI),
            "stage": rows.column(ERROR_STAGE),
            "reason": rows.column(ERROR),
            MESSAGE: rows.column(MESSAGE),
            SHA256: rows.column(SHA256),
            NUM_BYTES: rows.column(NUM_BYTES),
            SHARD: pa.array(places[0], pa.string()),
            ROW: pa.array(places[1], pa.int64()),
            "run_id": pa.array([staged.run_id] * rows.num_rows, pa.string()),
        },
        schema=QUARANTINE_SCHEMA,
    )
