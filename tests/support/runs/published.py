"""Publish small hand-made rows the way a run does, without Ray and without a model.

The pieces are the real ones (StagingWriter, Compactor, commit, settle); only the rows are made up.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, Part
from pipeline.commit.parts.compaction import Compacted, Compactor, cut_groups
from pipeline.commit.parts.part_writer import file_metadata
from pipeline.commit.parts.partition_columns import compact_by_value
from pipeline.commit.parts.row_ids import find_duplicates, read_hashes
from pipeline.commit.plan_store import adopt_plan, named
from pipeline.commit.publish import commit, repair, sync_published_folder
from pipeline.commit.shard_table import About, known_shards, read_failed, write_shard_table
from pipeline.commit.staging import StagingWriter, list_staged
from pipeline.commit.tables import table_of
from pipeline.core.failures import Failure, Reason, failure_columns
from pipeline.core.hive_paths import partition_types
from pipeline.core.schema import CLASSIFY_FIELDS, IMAGE_FIELDS, INPUT_HASH, LABEL, staged_schema
from pipeline.core.slices import SliceKey
from pipeline.job.job import Sink, TableOptions
from pipeline.planning.plan import Plan
from pipeline.reuse.finding import Reuse
from pipeline.runs.work import Work
from pipeline.sources.source_format import RowIds
from pipeline.sources.units import Extent, Unit
from pipeline.storage.store import Store
from support.runs.plan_examples import SPEC

PASS_THROUGH = pa.schema([pa.field("edition", pa.int32())])
LABELS = ("cat", "dog", "fox")
DAY = "date=2026-11-24"
TARGET_BYTES = 2.0**20


@dataclass(frozen=True)
class Rows:
    """What to publish; another `edition` is another fingerprint, and every row carries it."""

    edition: int = 1
    rows_per_slice: int = 6
    num_slices: int = 4
    slices_per_part: int = 2
    fail_every: int = 5
    """Every n-th row of a slice is quarantined; 0: none."""
    row_ids: RowIds = "path#row"
    unreadable_shards: int = 0
    same_id_every: int = 0
    """With row_ids=column: every n-th row repeats the id of row 0; 0: none."""
    partition_columns: tuple[str, ...] = ()
    kinds: tuple[str | None, ...] = ()
    """Values of a pass-through column `kind`, in turn; left out: there is no such column."""
    keys: Literal["inputs", "content"] = "inputs"
    """What is known of rows."""

    @property
    def pass_through(self) -> pa.Schema:
        return PASS_THROUGH.append(pa.field("kind", pa.string())) if self.kinds else PASS_THROUGH

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def ids(self, index: int) -> list[str]:
        """Ids of one slice: of its own shard, as the source makes them."""
        ids = [f"shard-{index}.parquet#{row}" for row in range(self.rows_per_slice)]
        if self.row_ids == "path":
            assert self.rows_per_slice == 1, "a file is a row"
            ids = [f"shard-{index}.parquet"]
        if self.row_ids == "column":
            ids = [f"camera-{index}-{row}" for row in range(self.rows_per_slice)]
        if self.same_id_every:
            ids = [
                "camera-0-0" if (index * len(ids) + row) % self.same_id_every == 0 else value
                for row, value in enumerate(ids)
            ]
        return ids


def make_plan(rows: Rows) -> Plan:
    """One unit; a slice is a shard, and each unreadable shard is one more row in the last one."""
    extents = [
        Extent(f"shard-{index}.parquet", 1000, "v", 0, rows.rows_per_slice, 10.0)
        for index in range(rows.num_slices)
    ]
    bounds = [index * rows.rows_per_slice for index in range(rows.num_slices + 1)]
    for index in range(rows.unreadable_shards):
        path = f"shard-{rows.num_slices + index}.parquet"
        extents.append(Extent(path, 9, "v", 0, 1, 0.0, Reason.UNREADABLE_SHARD, "no footer"))
        bounds[-1] += 1
    plan = Plan(
        fingerprint=rows.fingerprint,
        source_root="in",
        units=(Unit(0, tuple(extents), tuple(bounds)),),
        pass_through=rows.pass_through,
        task_fields=pa.schema(CLASSIFY_FIELDS),
        fields=IMAGE_FIELDS,
        row_ids=rows.row_ids,
        model={
            "name": "made-up",
            "weights_sha256": "ab" * 32,
            "precision": "fp32",
            "runtime": "eager",
        },
        batch_size=rows.rows_per_slice,
        num_shards=len(extents),
        input_bytes=1000 * len(extents),
        predictor_key="made-up",
        row_settings="made-up",
    )
    return named(plan)


def slice_table(rows: Rows, index: int) -> pa.Table:
    """The staged rows of one slice."""
    ids = rows.ids(index)
    failures: list[Failure | None] = [
        Failure(Reason.TRUNCATED, "decode", f"row {row} ends early", "cd" * 32, 7)
        if rows.fail_every and row % rows.fail_every == rows.fail_every - 1
        else None
        for row in range(len(ids))
    ]
    if index == rows.num_slices - 1:
        for more in range(rows.unreadable_shards):
            ids.append(f"shard-{rows.num_slices + more}.parquet")
            failures.append(Failure(Reason.UNREADABLE_SHARD, "read", "no footer", num_bytes=9))
    labels = [
        None if failure else LABELS[row % len(LABELS)] for row, failure in enumerate(failures)
    ]
    numbers = [None if label is None else LABELS.index(label) for label in labels]
    scores = [None if label is None else 0.5 for label in labels]
    top = [
        None if label is None else [{"label": label, "label_id": number, "score": 0.5}]
        for label, number in zip(labels, numbers, strict=True)
    ]
    columns = {
        "row_id": ids,
        "uri": [f"in/{value}" for value in ids],
        "edition": [rows.edition] * len(ids),
        "label": labels,
        "label_id": numbers,
        "score": scores,
        "top_k": top,
        **failure_columns(failures),
    }
    if rows.kinds:
        first = index * rows.rows_per_slice
        columns["kind"] = [rows.kinds[(first + row) % len(rows.kinds)] for row in range(len(ids))]
    table = pa.table(columns, schema=staged_schema(list(rows.pass_through), CLASSIFY_FIELDS))
    if rows.keys == "content":
        table = table.append_column(
            INPUT_HASH, pa.array([hash_of(value) for value in ids], pa.binary(16))
        )
    return table


def hash_of(row_id: str) -> bytes:
    """The hash of what the model sees of a made-up row."""
    return hashlib.sha256(row_id.encode()).digest()[:16]


def run_here(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Do what a run does with Ray tasks, one call after the other."""
    return [function(*arguments) for arguments in calls]


def work_of(plan: Plan, base: Manifest | None = None) -> Work:
    """The work of a run that takes nothing over."""
    return Work(plan, SPEC, base, Reuse(plan))


def stage_rows(store: Store, layout: Layout, plan: Plan, rows: Rows, run_id: str) -> None:
    """Write the slices that have no staged part yet."""
    folder = layout.staging(plan.work)
    writer = StagingWriter(store, folder, run_id, "zstd", {"pipeline.run_id": run_id})
    staged = list_staged(store, folder)
    for index, key in enumerate(plan.slices()):
        if key not in staged:
            writer.write(key, {}, slice_table(rows, index))


def prepare_version(
    store: Store, layout: Layout, rows: Rows, number: int, run_id: str
) -> tuple[Manifest, str]:
    """Stage and compact; return the manifest that can be committed, and the folder of its parts."""
    plan = adopt_plan(store, layout, make_plan(rows))
    plan = dataclasses.replace(plan, has_hashes=rows.keys == "content")
    stage_rows(store, layout, plan, rows, run_id)
    staged = list_staged(store, layout.staging(plan.work))
    slices = [(key, staged[key].path) for key in plan.slices()]
    duplicates = _duplicates(store, slices)
    version = f"{number:06d}-{uuid.uuid4().hex[:12]}"
    folder = layout.compacted(plan.work, version)
    schema = plan.prediction_schema()
    compactor = Compactor(
        *(store, folder, version, schema, "zstd"),
        *(file_metadata(plan, run_id), TARGET_BYTES, Store(plan.source_root)),
    )
    done = _compact(compactor, plan, rows, slices, duplicates)
    manifest = make_manifest(layout, plan, number, run_id, done.predictions, done.quarantine)
    failed = read_failed(store, f"{folder}/", done.quarantine)
    shards = known_shards(plan, [key for key, _ in slices], failed, {}, today=0)
    about = About("made-up", "made-up", rows.keys, {"pillow": "12.0"})
    keys = write_shard_table(store, layout.keys(version), about, shards, done)
    return dataclasses.replace(
        manifest,
        keys=keys,
        row_id_hash=done.row_id_hash,
        num_unreadable_shards=rows.unreadable_shards,
        partition_columns=partition_types(rows.partition_columns, schema),
    ), folder


def _compact(
    compactor: Compactor,
    plan: Plan,
    rows: Rows,
    slices: list[tuple[SliceKey, str]],
    duplicates: dict[SliceKey, tuple[int, ...]],
) -> Compacted:
    sized = [(key, path, 1.0) for key, path in slices]
    if rows.partition_columns:
        return compact_by_value(
            compactor, rows.partition_columns, sized, plan.units, duplicates, run_here
        )
    # A group a part, although the slices are far too small for that.
    groups = cut_groups(sized, plan.units, rows.slices_per_part, duplicates)
    done = [compactor.compact(group) for group in groups]
    parts = [part for group in done for part in group.predictions]
    return compactor.whole(parts, [part for group in done for part in group.quarantine])


def _duplicates(
    store: Store, slices: list[tuple[SliceKey, str]]
) -> dict[SliceKey, tuple[int, ...]]:
    hashes = [read_hashes(store, path) for _, path in slices]
    duplicates = find_duplicates(store, slices, hashes)
    return {key: tuple(row for row, _ in pairs) for key, pairs in duplicates.items()}


def make_manifest(
    layout: Layout,
    plan: Plan,
    number: int,
    run_id: str,
    parts: tuple[Part, ...],
    quarantine_parts: tuple[Part, ...],
) -> Manifest:
    """A manifest whose counts are those of its parts."""
    predicted = sum(part.num_rows for part in parts)
    quarantined = sum(part.num_rows for part in quarantine_parts)
    return Manifest(
        number=number,
        kind="publish",
        partition=layout.name,
        fingerprint=plan.fingerprint,
        plan=plan.work,
        run_id=run_id,
        token=uuid.uuid4().hex,
        created_at=f"2026-11-24T02:00:{number % 60:02d}+00:00",
        num_rows=predicted + quarantined,
        num_predicted=predicted,
        num_quarantined=quarantined,
        num_unreadable_shards=0,
        row_id_hash="",
        parts=parts,
        quarantine_parts=quarantine_parts,
        model=plan.model,
        gates=({"name": "max_error_pct", "status": "pass", "value": 1.0, "limit": 5.0},),
    )


def sink_of(table: Literal["delta"] | TableOptions | None) -> Sink:
    """A job's section for a table: a Delta table, or the Iceberg table of these options."""
    if isinstance(table, TableOptions):
        return Sink(uri="out", table="iceberg", table_options=table)
    return Sink(uri="out", table=table)


def publish_rows(
    store: Store,
    partition: str | None = DAY,
    rows: Rows = Rows(),
    *,
    keep_versions: int = 2,
    run_id: str | None = None,
    table: Literal["delta"] | TableOptions | None = None,
) -> Manifest:
    """Publish as a run does: finish what a crashed run left, then do nothing or replace."""
    layout = Layout(partition)
    names = table_of(sink_of(table), store)
    base = repair(store, layout, keep_versions, table=names)
    if base is not None and base.fingerprint == rows.fingerprint:
        return base
    number = base.number + 1 if base else 1
    run_id = run_id or f"20261124T0200{number:02d}Z-{uuid.uuid4().hex[:8]}"
    manifest, folder = prepare_version(store, layout, rows, number, run_id)
    manifest = dataclasses.replace(manifest, table=names.reference if names else {})
    placed = commit(store, layout, manifest, folder)
    sync_published_folder(store, layout, placed, keep_versions, table=names)
    return placed


def encode(table: pa.Table) -> bytes:
    """One Parquet file in memory."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_part_table(store: Store, part: Part) -> pa.Table:
    """All rows and columns of a part."""
    with store.open(part.path) as handle:
        return pq.ParquetFile(handle).read()


def snapshot(store: Store, *folders: str) -> dict[str, str]:
    """Digest of every file below the folders, to see whether a byte changed."""
    return {
        file.path: hashlib.sha256(store.read_bytes(file.path)).hexdigest()
        for folder in folders
        for file in store.list_files(folder)
    }


def put_report(store: Store, partition: str, run_id: str, report: dict[str, object]) -> None:
    """Store a report where a run would."""
    path = Layout(partition).report(run_id, "report.json")
    store.put(path, json.dumps(report).encode())


def labels_of(rows: Rows) -> Counter[str]:
    """How many predictions of `rows` have which label."""
    tables = [slice_table(rows, index) for index in range(rows.num_slices)]
    values = [value for table in tables for value in table.column(LABEL).to_pylist()]
    return Counter(value for value in values if value is not None)


def age_files(root: Path, paths: list[str], *, age_s: float) -> None:
    """Make local files look as if they had been written `age_s` ago."""
    for path in paths:
        then = (root / path).stat().st_mtime - age_s
        os.utime(root / path, (then, then))
