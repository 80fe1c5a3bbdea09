"""A version with parts of an earlier one is proved, shown, read and rolled back to as any other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs.published import (
    DAY,
    Rows,
    make_manifest,
    make_plan,
    publish_rows,
    run_here,
    slice_table,
)
from support.runs.published_rows import read_predictions

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest
from pipeline.commit.parts.carried.parts import compact_carried
from pipeline.commit.parts.carried.version import CarriedVersion
from pipeline.commit.parts.compaction import Compactor
from pipeline.commit.parts.part_writer import file_metadata
from pipeline.commit.plan_store import adopt_plan
from pipeline.commit.publish import commit, sync_published_folder
from pipeline.commit.published.describe import describe_output
from pipeline.commit.published.rollback import rollback
from pipeline.commit.published.verify import verify_output
from pipeline.commit.staging import StagingWriter
from pipeline.core.slices import SliceKey
from pipeline.planning.carried import Carried, Source
from pipeline.storage.store import Store

YESTERDAY = "date=2026-11-23"
OLD, NEW = Rows(), Rows(num_slices=5)
RENAMED = {"name": "another-name", "runtime": "compile"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def publish_more(store: Store, layout: Layout, old: CarriedVersion, number: int = 1) -> Manifest:
    """Publish a slice more than the old version has, by a model that is called otherwise."""
    plan = make_plan(NEW)
    plan = adopt_plan(store, layout, dataclasses.replace(plan, model={**plan.model, **RENAMED}))
    bad = [row for row in range(OLD.rows_per_slice) if row % OLD.fail_every == OLD.fail_every - 1]
    again = [slice_table(NEW, index).take(pa.array(bad)) for index in range(OLD.num_slices)]
    tables = [pa.concat_tables(again), slice_table(NEW, OLD.num_slices)]
    folder = layout.staging("f" * 64)
    writer = StagingWriter(store, folder, f"run-{number}", "zstd", {})
    slices = []
    for index, table in enumerate(tables):
        key = SliceKey(index, 0, table.num_rows, is_last=True)
        slices.append((key, f"{folder}/{writer.write(key, {}, table).name}", 1000.0))
    runs, first = [], 0
    for index in range(OLD.num_slices):
        for place, count in ((index, bad[0]), (index + 1, OLD.rows_per_slice - bad[0] - 1)):
            runs.append([0, place, 0, first, count])
            first += count
    source = Source(old.layout.partition, old.manifest.number, old.manifest.token)
    carried = Carried((source,), np.array(runs), np.zeros((0, 4), np.int64))
    version = f"{number:06d}-{'d' * 12}"
    compactor = Compactor(
        store, layout.compacted(plan.fingerprint, version), version, plan.prediction_schema(),
        "zstd", file_metadata(plan, f"run-{number}"), max(p.size_bytes for p in old.manifest.parts),
    )  # fmt: skip
    done, traffic = compact_carried(
        compactor,
        slices,
        {},
        carried,
        [old],
        ("row_id", "uri", "edition"),
        np.array([30]),
        run_here,
    )
    assert traffic.parts_copied == len(old.manifest.parts) == 2
    made = make_manifest(layout, plan, number, f"run-{number}", done.predictions, done.quarantine)
    manifest = dataclasses.replace(
        made, row_id_hash=done.row_id_hash, model=plan.model,
        carried={"rows": first, "from": [dataclasses.asdict(source)]},
    )  # fmt: skip
    placed = commit(store, layout, manifest, compactor.folder)
    sync_published_folder(store, layout, placed, 3)
    return placed


def expected() -> pa.Table:
    table = pa.concat_tables([slice_table(NEW, index) for index in range(NEW.num_slices)])
    return table.filter(table["error"].is_null())


def prove(store: Store, partition: str) -> None:
    statuses = {c["status"] for c in verify_output(store.uri, partition, {})["checks"]}
    assert statuses <= {"pass", "skipped"}
    found = read_predictions(store.uri, partition)
    assert found.equals(expected().select(found.column_names).cast(found.schema))


def test_parts_of_another_partition_and_of_a_model_under_another_name(store: Store):
    old = publish_rows(store, YESTERDAY, OLD)
    placed = publish_more(store, Layout(DAY), CarriedVersion(Layout(YESTERDAY), old))
    prove(store, DAY)
    assert verify_output(store.uri, YESTERDAY, {})["status"] == "ok"
    assert describe_output(store.uri, DAY, {})["rows"]["total"] == 30
    # A reader of one part finds there who made it; the manifest says what the whole is.
    made_by = []
    for part in placed.parts:
        with store.open(part.path) as handle:
            made_by.append(pq.ParquetFile(handle).metadata.metadata[b"pipeline.run_id"].decode())
    assert made_by == [old.run_id, old.run_id, "run-1"]
    as_dataset = pq.read_table(f"{store.uri}/predictions/{DAY}")
    assert as_dataset.num_rows == placed.num_predicted


def test_parts_of_the_version_that_is_replaced_and_of_one_that_was(store: Store):
    layout = Layout(DAY)
    old = publish_rows(store, DAY, OLD)
    publish_more(store, layout, CarriedVersion(layout, old), 2)
    prove(store, DAY)
    publish_more(store, layout, CarriedVersion(layout, old), 3)  # its parts are in the history now
    prove(store, DAY)
    back = rollback(store, layout, "r", keep_versions=3, to_number=1)
    assert [p.sha256 for p in back.parts] == [p.sha256 for p in old.parts]
    assert rollback(store, layout, "r", keep_versions=4, to_number=3).carried["rows"] == 20
    prove(store, DAY)
