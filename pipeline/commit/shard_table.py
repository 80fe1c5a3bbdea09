"""The keys of a version: its shards and their predictions, so that later versions can carry these.

`_control/<partition>/keys/<version>/shards.parquet` has a row per shard, and in its metadata what
the predictions depend on. A prediction is named by its *ordinal*: how many predictions of its
version come before it in the order of the input. That is the order of the parts, unless partition
columns have sorted them by value: then `places.parquet` maps each ordinal to the *place* of the
prediction: how many come before it in the order of the parts.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipeline.commit.layout import PLACES, SHARDS, Layout, keys_version
from pipeline.commit.manifest import Manifest, Part
from pipeline.commit.parts.compaction import Compacted
from pipeline.commit.parts.part_file import open_part, read_columns, write_file
from pipeline.core.documents import known_fields
from pipeline.core.failures import Reason
from pipeline.core.ranges import EMPTY, Ranges
from pipeline.core.schema import ROW, SHARD
from pipeline.core.slices import SliceKey
from pipeline.planning.plan import Plan
from pipeline.planning.predictor_key import digest_of
from pipeline.process.failpoints import failpoint
from pipeline.sources.units import Extent
from pipeline.storage.store import Store, StoredFile

FORMAT = _WITH_RANGES = 4
"""Before, the table had the number of each failed row; now their `Ranges.bounds`."""
PLACES_PER_GROUP = 65_536
_ABOUT = b"pipeline.about"
_THREADS = 8
_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("first", pa.int64(), nullable=False),
        pa.field("failed", pa.list_(pa.int64()), nullable=False),
        pa.field("computed_day", pa.int32(), nullable=False),
        pa.field("breaks_off", pa.bool_(), nullable=False),
    ]
)
_ENCODING = {
    **dict.fromkeys(("uri", "version"), "DELTA_BYTE_ARRAY"),
    **dict.fromkeys(("size_bytes", "num_rows", "first", "computed_day"), "DELTA_BINARY_PACKED"),
    "failed.list.element": "DELTA_BINARY_PACKED",
}


class NoKeys(Exception):
    """No row can be carried from a version; the text gives the reason."""


@dataclass(frozen=True, slots=True)
class KnownShard:
    """A shard as a version knows it."""

    uri: str
    """The whole URI of the shard."""
    size_bytes: int
    version: str
    """As `version_in`; for local files it has the ctime, which no tool can set."""
    num_rows: int
    """Rows of the shard in that version, predicted or quarantined."""
    first: int
    """How many predictions of that version come before its first row."""
    failed: Ranges = EMPTY
    """Rows of the shard without a prediction: also deleted ones, and those that were no input."""
    computed_day: int = 0
    """Day on which the oldest of its predictions was computed, counted from 1970."""
    breaks_off: bool = False
    """Its number of rows is unknown: the last one stands for a rest that could not be read, or the
    rest was no input. A plan whose rows only reading counts carries none, except a retry."""


@dataclass(frozen=True)
class About:
    """What the predictions of a version depend on besides its input."""

    predictor_key: str
    """Empty if unknown."""
    row_settings: str
    """Digest of what decides the other columns of its rows."""
    kind: Literal["inputs", "content"]
    """`content`: rows can also be found by their content."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions of the libraries that decode, tokenise and compute."""
    num_rows: int = 0
    """Number of predictions of the version."""
    has_places: bool = False


@dataclass(frozen=True)
class ShardTable:
    """The shards that a version knows."""

    about: About
    shards: list[KnownShard]
    """In input order."""


def version_in(plan: Plan, extent: Extent) -> str:
    """Return the version of a shard, and of what its table, or the job, says of its columns."""
    if plan.table is None and not extent.given:
        return extent.exact_version
    return f"{extent.exact_version}/{digest_of([plan.table_digest, extent.given])[:16]}"


def known_shards(
    plan: Plan,
    keys: Sequence[SliceKey],
    failed: Mapping[str, Sequence[tuple[int | None, str]]],
    days: Mapping[str, int],
    *,
    today: int,
) -> list[KnownShard]:
    """Return the shards of a version with the ordinals of their predictions, in input order.

    Shards that could not be opened are not among them.

    Args:
        plan: The plan of all rows of the version.
        keys: Its slices.
        failed: URI of a shard -> number, or None, and reason of its rows without a prediction.
        days: URI of a shard -> day on which its predictions were computed, counted from 1970.
        today: The day for all other shards.
    """
    if any(unit.cut is not None and len(unit.extents) != 1 for unit in plan.units):
        return []
    rows_of_unit = rows_of_units(plan, keys)
    root, shards, first = Store(plan.source_root), list[KnownShard](), 0
    counts: dict[str, int] = {}
    missing: defaultdict[str, list[Ranges]] = defaultdict(list)
    extents: dict[str, Extent] = {}
    is_left_out = set[str]()
    for unit in plan.units:
        for extent in unit.extents:
            path = extent.path
            num_rows = extent.num_rows if unit.cut is None else rows_of_unit[unit.index]
            counts[path] = counts.get(path, 0) + num_rows
            if plan.has_gaps:
                end = extents[path].end_row if path in extents else 0
                missing[path].append(missing_rows(extent, end))
            extents[path] = extent
            if extent.is_whole_shard:
                is_left_out.add(path)
    uncounted = plan.counts_by_reading
    for path, num_rows in counts.items():
        uri, extent = root.url(path), extents[path]
        lost = failed.get(uri, ())
        ends_unread = uncounted and (num_rows - 1, Reason.UNREADABLE_SHARD.value) in lost
        if path not in is_left_out:
            numbers = Ranges.of(sorted(row for row, _ in lost if row is not None))
            failed_rows = Ranges.in_at_least(1, [numbers, *missing[path]])
            day = min(today, days.get(uri, today))
            shards.append(
                KnownShard(
                    uri,
                    extent.size_bytes,
                    version_in(plan, extent),
                    num_rows + sum(map(len, missing[path])),
                    first,
                    failed_rows,
                    day,
                    breaks_off=ends_unread or bool(plan.where),
                )
            )
        first += num_rows - len(lost)
    return shards


def missing_rows(extent: Extent, start: int) -> Ranges:
    """Return the numbers from `start` to the end of an extent that are not among its rows."""
    bounds = (start, extent.first_row, *(extent.only.bounds[1:-1] if extent.only else ()))
    return Ranges(bounds if start < extent.first_row else bounds[2:])


def rows_of_units(plan: Plan, keys: Sequence[SliceKey]) -> list[int]:
    """Return the number of rows of each unit of a plan.

    Args:
        plan: A plan whose slices are all staged.
        keys: These slices.
    """
    ends: dict[int, int] = {}
    for key in keys:
        ends[key.unit] = max(key.end, ends.get(key.unit, 0))
    return [
        ends.get(unit.index, 0) if unit.num_rows is None else unit.num_rows for unit in plan.units
    ]


def read_failed(
    store: Store, folder: str, parts: Sequence[Part]
) -> dict[str, list[tuple[int | None, str]]]:
    """Read a quarantine; return shard -> row numbers and reasons.

    Args:
        store: The output.
        folder: What the paths of the parts are relative to, with a `/` at its end.
        parts: The parts of the quarantine.
    """

    def read(part: Part) -> pa.Table:
        return read_columns(store, f"{folder}{part.path}", [SHARD, ROW, "reason"])

    failed: defaultdict[str, list[tuple[int | None, str]]] = defaultdict(list)
    with ThreadPoolExecutor(_THREADS) as pool:
        for table in pool.map(read, parts):
            for shard, row, reason in zip(*table.to_pydict().values(), strict=True):
                failed[shard].append((row, reason))
    return failed


def write_shard_table(
    store: Store, folder: str, about: About, shards: Sequence[KnownShard], compacted: Compacted
) -> dict[str, str]:
    """Write the keys of a version; return `Manifest.keys`.

    Args:
        store: The output.
        folder: `Layout.keys` of the version.
        about: What its predictions depend on.
        shards: The shards that it knows.
        compacted: Its parts.
    """
    if compacted.ranks is not None:
        order = np.argsort(compacted.ranks, kind="stable")
        places = pa.table({"place": pa.array(order, pa.int64())})
        store.put(f"{folder}/{PLACES}", _encoded(places, {}, PLACES_PER_GROUP))
    failpoint("keys_places")
    offsets = np.cumsum([0, *(len(shard.failed.bounds) for shard in shards)])
    flat = pa.array([row for shard in shards for row in shard.failed.bounds], pa.int64())
    columns: dict[str, Any] = {
        name: [getattr(shard, name) for shard in shards]
        for name in _SCHEMA.names
        if name != "failed"
    }
    columns["failed"] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)
    facts = {"format": FORMAT, **asdict(about)}
    facts["num_rows"] = sum(part.num_rows for part in compacted.predictions)
    facts["has_places"] = compacted.ranks is not None
    schema = _SCHEMA.with_metadata({_ABOUT: json.dumps(facts).encode()})
    data = _encoded(pa.table(columns, schema=schema), _ENCODING)
    store.put(f"{folder}/{SHARDS}", data)
    failpoint("keys_written")
    return {"folder": folder, "sha256": hashlib.sha256(data).hexdigest()}


def read_shard_table(store: Store, layout: Layout, manifest: Manifest) -> ShardTable:
    """Read the shards that a published version knows.

    Raises:
        NoKeys: It has no table of its shards, or one that cannot be trusted.
        PipelineError: The store failed.
    """
    name = f"version {manifest.number} of {layout.name}"
    if not manifest.keys:
        raise NoKeys(f"{name} has no table of its shards")
    path = f"{manifest.keys['folder']}/{SHARDS}"
    try:
        data = store.read_bytes(path)
    except FileNotFoundError:
        raise NoKeys(f"{name}: the table of its shards is missing") from None
    if hashlib.sha256(data).hexdigest() != manifest.keys["sha256"]:
        raise NoKeys(f"{name}: the table of its shards is damaged")
    # Without threads: one that still holds Python bytes when the process ends aborts it
    # (apache/arrow#34314).
    with open_part(store, path, data=data) as part:
        table = part.read(use_threads=False)
    facts = json.loads(table.schema.metadata[_ABOUT])
    if facts["format"] > FORMAT:
        raise NoKeys(f"{name}: the table of its shards was written by a newer version")
    if facts["num_rows"] != sum(part.num_rows for part in manifest.parts):
        raise NoKeys(f"{name}: the table of its shards belongs to other parts")
    names = [name for name in _SCHEMA.names if name in table.column_names]  # in that order
    columns = {name: table.column(name).to_pylist() for name in names}
    as_ranges = Ranges.of if facts["format"] < _WITH_RANGES else lambda bounds: Ranges((*bounds,))
    columns["failed"] = [*map(as_ranges, columns["failed"])]
    for column in ("uri", "version"):  # mostly the same in several versions
        columns[column] = [*map(sys.intern, columns[column])]
    shards = [KnownShard(*values) for values in zip(*columns.values(), strict=True)]
    return ShardTable(About(**known_fields(About, facts)), shards)


def unneeded_keys(
    store: Store, layout: Layout, versions: Sequence[Manifest]
) -> list[tuple[int, StoredFile]]:
    """Find the keys that no version names that is current or in the history.

    Args:
        store: The output.
        layout: The partition.
        versions: What `kept_manifests` returns.

    Returns:
        Each file, with the number of the version that it was written for.
    """
    named = {manifest.keys.get("folder") for manifest in versions}
    files = [(file.path.rpartition("/")[0], file) for file in store.list_files(layout.all_keys)]
    return [
        (version, file)
        for folder, file in files
        if folder not in named and (version := keys_version(folder)) is not None
    ]


def _encoded(table: pa.Table, encoding: dict[str, str], row_group_rows: int = 2**20) -> bytes:
    """Return a table as a Parquet file without dictionaries."""
    buffer = io.BytesIO()
    options = {"use_dictionary": False, "column_encoding": encoding or None}
    with write_file(buffer, table.schema, compression="zstd", **options) as writer:
        writer.write_table(table, row_group_size=row_group_rows)
    return buffer.getvalue()
