"""Inputs, their predictions and what is carried from night to night, by a plain model of it.

A shard has a name and values; a row's prediction follows from its value alone, some values fail. A
shard that an earlier version has under the same name with the same values is carried.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit.layout import Layout, part_name
from pipeline.commit.manifest import Manifest, Part
from pipeline.commit.parts.carried.version import CarriedVersion
from pipeline.commit.parts.compaction import Compacted, Compactor, SizedSlice, compact_slices
from pipeline.commit.parts.row_ids import (
    LabelledDuplicates,
    find_duplicates,
    hash_ids,
    read_hashes,
    sum_hashes,
)
from pipeline.commit.parts.row_positions import read_positions
from pipeline.commit.staging import StagingWriter
from pipeline.core.failures import Failure, Reason, failure_columns
from pipeline.core.schema import (
    CARRIED_ROW,
    CARRIED_SOURCE,
    QUARANTINE_SCHEMA,
    prediction_schema,
    staged_schema,
)
from pipeline.core.slices import SliceKey
from pipeline.planning.carried import Carried, Source
from pipeline.storage.store import Store
from support.runs.published import run_here

WIDTH = 6
PASS_THROUGH = [pa.field("edition", pa.int32())]
TASK = [
    pa.field("label", pa.string()),
    pa.field("embedding", pa.list_(pa.float32(), WIDTH)),
    pa.field("top", pa.list_(pa.struct([pa.field("name", pa.string())]))),
]
SCHEMA = prediction_schema(PASS_THROUGH, TASK)
OWN = ("row_id", "uri", "edition")
FAILS = -1
"""A value that cannot be predicted."""


@dataclass(frozen=True)
class Shard:
    name: str
    values: tuple[int, ...]
    ids: tuple[str, ...] = ()
    """Ids from a column; otherwise they are made of the name."""

    @property
    def places(self) -> list[str]:
        return [f"{self.name}#{row}" for row in range(len(self.values))]


@dataclass(frozen=True)
class Row:
    """A row of the input as it is staged."""

    place: str
    row_id: str
    shard: str
    value: int
    edition: int = 1
    known: tuple[int, int] | None = None
    """Source and number of a prediction that was found by content."""
    has_own: bool = True
    """It was computed."""


def vector(value: int) -> list[float]:
    return [float(x) for x in np.random.default_rng(value).random(WIDTH, np.float32)]


def staged_table(rows: Sequence[Row]) -> pa.Table:
    failures = [
        Failure(Reason.TRUNCATED, "decode", f"{row.row_id} ends early", "ab" * 32, 7)
        if row.value == FAILS
        else None
        for row in rows
    ]
    has = [row.has_own and row.value != FAILS for row in rows]
    pairs = [(row.value if own else None) for row, own in zip(rows, has, strict=True)]
    columns = {
        "row_id": [row.row_id for row in rows],
        "uri": [f"in/{row.shard}" for row in rows],
        "edition": [row.edition for row in rows],
        "label": [None if v is None else f"class {v % 3}" for v in pairs],
        "embedding": [None if v is None else vector(v) for v in pairs],
        "top": [None if v is None else [{"name": f"n{i}"} for i in range(v % 4)] for v in pairs],
        **failure_columns(failures),
    }
    table = pa.table(columns, schema=staged_schema(PASS_THROUGH, TASK))
    if any(row.known for row in rows):
        sources = [row.known[0] if row.known else None for row in rows]
        numbers = [row.known[1] if row.known else None for row in rows]
        table = table.append_column(CARRIED_SOURCE, pa.array(sources, pa.int8()))
        table = table.append_column(CARRIED_ROW, pa.array(numbers, pa.int64()))
    return table


def predictions(rows: Sequence[Row]) -> pa.Table:
    good = [dataclasses.replace(row, known=None) for row in rows if row.value != FAILS]
    return staged_table(good).select(SCHEMA.names)


@dataclass(frozen=True)
class Old:
    """A published version, and what it was made of."""

    version: CarriedVersion
    shards: tuple[Shard, ...]
    broken: frozenset[str]
    """Places of rows without a prediction."""


@dataclass(frozen=True)
class Night:
    """The input of a night, and how it is divided."""

    whole: list[list[Row]]
    """Rows of each unit of the whole plan: of each shard."""
    work: list[list[Row]]
    """Of each unit of the work plan."""
    carried: Carried

    @property
    def unit_rows(self) -> np.ndarray:
        return np.array([len(rows) for rows in self.whole], np.int64)


def divide(
    shards: Sequence[Shard],
    broken: frozenset[str],
    olds: Sequence[Old],
    *,
    checked: frozenset[str] = frozenset(),
    unit_rows: int = 9,
    edition: int = 1,
) -> Night:
    """Carry the shards that an old version has as they are; compute the others, and `checked`.

    Only rows that are computed can be `broken`.
    """
    whole, work = [], list[Row]()
    runs: list[list[int]] = []
    checks: list[list[int]] = []
    for shard in shards:
        rows = [
            Row(place, row_id, shard.name, FAILS if place in broken else value, edition)
            for place, row_id, value in zip(
                shard.places, shard.ids or shard.places, shard.values, strict=True
            )
        ]
        whole.append(rows)
        source = next((s for s, old in enumerate(olds) if shard in old.shards), None)
        if source is None:
            work += rows
            continue
        old = olds[source]
        number = _predictions_before(old, shard)
        for nth, row in enumerate(rows):
            if row.place in old.broken:
                work.append(row)
                continue
            if row.place in checked:
                checks.append([len(work), source, number])
                work.append(row)
            else:
                rows[nth] = dataclasses.replace(row, value=shard.values[nth])
                runs.append([len(work), source, number, 1])
            number += 1
    units = [work[start : start + unit_rows] for start in range(0, len(work), unit_rows)]
    placed = [[at // unit_rows, at % unit_rows, *rest] for at, *rest in runs]
    looked = [[at // unit_rows, at % unit_rows, *rest] for at, *rest in checks]
    sources = tuple(
        Source(o.version.layout.partition, o.version.manifest.number, "t") for o in olds
    )
    return Night(
        whole,
        units,
        Carried(
            sources,
            np.array(placed, np.int64).reshape(-1, 5),
            np.array(looked, np.int64).reshape(-1, 4),
        ),
    )


def look_up(night: Night, olds: Sequence[Old], chosen: Sequence[int], checked: int = 5) -> Night:
    """Let rows of the work be found by their values, of all sources in turn as `chosen` says.

    Every so many that are found are computed all the same; theirs are other predictions.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    for source, old in enumerate(olds):
        rows = divide(old.shards, old.broken, ()).whole
        good = [row.value for unit in rows for row in unit if row.value != FAILS]
        for number, value in enumerate(good):
            found.setdefault(value, []).append((source, number))
    work, nth = [], 0
    for unit in night.work:
        own = []
        for row in unit:
            places = found.get(row.value, [])
            at = chosen[nth % len(chosen)] if chosen else 0
            if places and at:
                has_own = nth % checked == 0
                places = found[min(found)] if has_own else places
                row = dataclasses.replace(row, known=places[at % len(places)], has_own=has_own)
            nth += 1
            own.append(row)
        work.append(own)
    return dataclasses.replace(
        night, work=work, carried=dataclasses.replace(night.carried, by_content=True)
    )


def _predictions_before(old: Old, shard: Shard) -> int:
    before = old.shards[: old.shards.index(shard)]
    return sum(place not in old.broken for each in before for place in each.places)


def publish_shards(
    store: Store,
    layout: Layout,
    number: int,
    shards: Sequence[Shard],
    broken: frozenset[str] = frozenset(),
    cuts: Sequence[int] = (),
    **how: Any,
) -> Old:
    """Publish the predictions of shards as parts that are cut anywhere."""
    seen = set[str]()
    for unit in divide(shards, broken, ()).whole:
        for row in unit:
            broken = broken | {row.place} if row.row_id in seen else broken
            seen.add(row.row_id)
    rows = [row for unit in divide(shards, broken, ()).whole for row in unit]
    version = publish_parts(store, layout, number, predictions(rows), cuts, **how)
    return Old(version, tuple(shards), broken)


def stage(
    store: Store, folder: str, units: Sequence[Sequence[Row]], slice_rows: Sequence[int] = (7,)
) -> list[SizedSlice]:
    """Stage units in slices whose numbers of rows are taken in turn."""
    writer = StagingWriter(store, folder, "run-1", "zstd", {})
    slices: list[SizedSlice] = []
    for unit, rows in enumerate(units):
        start = 0
        while start < len(rows):
            end = min(len(rows), start + slice_rows[len(slices) % len(slice_rows)])
            key = SliceKey(unit, start, end, is_last=end == len(rows))
            staged = writer.write(key, {}, staged_table(rows[start:end]))
            stored = store.stat(f"{folder}/{staged.name}")
            assert stored is not None
            slices.append((key, stored.path, float(stored.size_bytes)))
            start = end
    return slices


def publish_parts(
    store: Store,
    layout: Layout,
    number: int,
    table: pa.Table,
    cuts: Sequence[int] = (),
    *,
    row_group_rows: int = 4,
    compression: str = "zstd",
    is_replaced: bool = False,
) -> CarriedVersion:
    """Write predictions as the parts of a version, cut anywhere; replaced ones are moved."""
    bounds = sorted({0, table.num_rows, *(cut % (table.num_rows + 1) for cut in cuts)})
    parts = []
    for index, (start, end) in enumerate(pairwise(bounds)):
        own, buffer = table.slice(start, end - start), io.BytesIO()
        pq.write_table(own, buffer, compression=compression, row_group_size=row_group_rows)
        name = part_name(index, f"{number:06d}-{'b' * 12}")
        path, data = f"{layout.predictions}/{name}", buffer.getvalue()
        hashes = sum_hashes(hash_ids(own.column("row_id")).tolist())
        digest = hashlib.sha256(data).hexdigest()
        parts.append(Part(path, own.num_rows, len(data), digest, hashes))
        moved = f"{layout.history(number)}/predictions/{name}"
        store.put(moved if is_replaced else path, data)
    rows = table.num_rows
    manifest = Manifest(
        number, "publish", layout.name, "f", "r", "t", "2026-11-24T02:00:00+00:00",
        rows, rows, 0, 0, "", tuple(parts), (), {},
    )  # fmt: skip
    return CarriedVersion(layout, manifest)


def compactor_of(
    store: Store, folder: str, number: int = 9, target_bytes: float = 1e9
) -> Compactor:
    version = f"{number:06d}-{'c' * 12}"
    return Compactor(
        store, folder, version, SCHEMA, "zstd", {"pipeline.run_id": "run-1"}, target_bytes
    )


def recompute(store: Store, night: Night) -> tuple[Compactor, Compacted]:
    """What a run makes that carries nothing."""
    slices = stage(store, "all", night.whole)
    hashes = [read_hashes(store, path) for _, path, _ in slices]
    found = find_duplicates(store, [(key, path) for key, path, _ in slices], hashes)
    compactor = compactor_of(store, "full")
    return compactor, compact_slices(compactor, slices, rows_of(found), run_here)


def rows_of(duplicates: LabelledDuplicates) -> dict[SliceKey, tuple[int, ...]]:
    """The rows without their labels."""
    return {key: tuple(row for row, _ in rows) for key, rows in duplicates.items()}


@dataclass(frozen=True)
class Content:
    """What the parts of a version hold."""

    predictions: pa.Table
    quarantine: pa.Table
    places: list[list[int]]
    """Of the rows of the quarantine: key, unit, row, rank."""
    row_id_hash: str

    @classmethod
    def of(cls, compactor: Compactor, done: Compacted) -> Content:
        good = [_read(compactor, part) for part in done.predictions]
        bad = [_read(compactor, part) for part in done.quarantine]
        assert [f.metadata.num_rows for f in good] == [p.num_rows for p in done.predictions]
        places = [
            read_positions(file.metadata.metadata, file.metadata.num_rows, "x").to_matrix()
            for file in bad
        ]
        return cls(
            pa.concat_tables([SCHEMA.empty_table(), *(_plain(f.read()) for f in good)]),
            pa.concat_tables([QUARANTINE_SCHEMA.empty_table(), *(_plain(f.read()) for f in bad)]),
            np.concatenate([np.zeros((0, 4), np.int64), *places]).tolist(),
            done.row_id_hash,
        )


def _plain(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(None)


def _read(compactor: Compactor, part: Part) -> pq.ParquetFile:
    data = compactor.store.read_bytes(f"{compactor.folder}/{part.path}")
    assert (len(data), hashlib.sha256(data).hexdigest()) == (part.size_bytes, part.sha256)
    return pq.ParquetFile(pa.BufferReader(data))
