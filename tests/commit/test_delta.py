"""Promise: the Delta table names exactly the published parts, whatever is killed or committed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from support.runs.published import DAY, Rows, prepare_version, publish_rows, slice_table, snapshot
from support.servers.faultproxy import RESET_AFTER, RESET_BEFORE, TRUNCATE, FaultProxy, Rule
from support.servers.object_stores import S3Server

from pipeline.commit import sink_table
from pipeline.commit.delta import Delta
from pipeline.commit.layout import Layout, part_target
from pipeline.commit.manifest import Manifest, current_manifest
from pipeline.commit.publish import commit, repair, sync_published_folder
from pipeline.core.errors import InfraError, JobError, PipelineError
from pipeline.core.schema import CLASSIFY_FIELDS, prediction_schema
from pipeline.published.verify import verify_output
from pipeline.storage.delta_tables import library_options
from pipeline.storage.store import Store

pytestmark = [pytest.mark.no_ray, pytest.mark.early]

LAYOUT = Layout(DAY)
KINDS = ("a/b", None, "50% off", "two words", "\u00e9")
ROWS = Rows(kinds=KINDS, partition_columns=("kind", "edition"))
COLUMNS = ["row_id", "edition", "label"]
RowSet = set[tuple[Any, ...]]


def table_of(store: Store) -> DeltaTable:
    return DeltaTable(store.url("predictions"), storage_options=library_options(store, "a test"))


def named_by(table: DeltaTable) -> set[str]:
    return {unquote(path) for path in pa.table(table.get_add_actions())["path"].to_pylist()}


def parts_of(manifest: Manifest) -> set[str]:
    return {part.path.removeprefix("predictions/") for part in manifest.parts}


def commits_of(table: DeltaTable) -> list[dict[str, Any]]:
    """The metadata of each Delta commit, oldest first."""
    return table.history()[::-1]


def good(rows: Rows) -> RowSet:
    tables = [slice_table(rows, index) for index in range(rows.num_slices)]
    everything = [row for table in tables for row in table.to_pylist() if row["error"] is None]
    return {tuple(row[name] for name in COLUMNS) for row in everything}


def read(store: Store) -> RowSet:
    """All rows of the table, by the reader of the library, without duplicates."""
    rows = table_of(store).to_pyarrow_table(columns=COLUMNS).to_pylist()
    distinct = {tuple(row[name] for name in COLUMNS) for row in rows}
    assert len(distinct) == len(rows)
    return distinct


def publish(store: Store, rows: Rows, day: str | None = DAY, keep: int = 2) -> Manifest:
    return publish_rows(store, day, rows, keep_versions=keep, table="delta")


def assert_exact(store: Store, manifest: Manifest, rows: Rows, num_publishes: int) -> None:
    table = table_of(store)
    assert named_by(table) == parts_of(manifest)
    assert table.transaction_version(f"batch-inference-pipeline/{DAY}") == manifest.number
    numbers = [info["pipeline.version"] for info in commits_of(table)]
    assert numbers == list(range(1, num_publishes + 1))
    assert read(store) == good(rows)
    verify_output(store.uri, DAY, dict(store.storage_options))


def test_each_publication_is_one_commit_that_replaces_the_partition(any_store: Store):
    manifests = []
    for edition in (1, 2):
        rows = Rows(edition, num_slices=2 + edition)
        manifests.append(publish(any_store, rows))
        assert_exact(any_store, manifests[-1], rows, edition)
    last = commits_of(table_of(any_store))[-1]
    assert last["pipeline.fingerprint"] == manifests[-1].fingerprint
    assert last["pipeline.run_id"] == manifests[-1].run_id
    before = snapshot(any_store, "")
    assert publish(any_store, rows) == manifests[-1], "the same again"
    sync_published_folder(any_store, LAYOUT, manifests[-1], 2, table=Delta(any_store))
    assert snapshot(any_store, "") == before
    Delta(any_store).commit(LAYOUT, manifests[0])  # an older version, late
    assert_exact(any_store, manifests[-1], rows, 2)


def test_partitions_share_one_table(usual_store: Store):
    days = ["date=2026-11-24", "date=2026-11-25", "date=2026-11-26"]
    for edition, day in enumerate([*days, days[1]]):
        publish(usual_store, Rows(edition), day)
    frame = table_of(usual_store).to_pyarrow_table(columns=["date", "edition"])
    days_and_editions = {(row["date"], row["edition"]) for row in frame.to_pylist()}
    assert days_and_editions == {("2026-11-24", 0), ("2026-11-25", 3), ("2026-11-26", 2)}
    assert table_of(usual_store).metadata().partition_columns == ["date"]
    where = [("date", "=", "2026-11-25")]
    only = table_of(usual_store).to_pyarrow_table(filters=where, columns=COLUMNS)
    assert only.num_rows == len(good(Rows(3)))


def test_folders_of_columns_are_partitions_of_the_table(usual_store: Store):
    for edition in (1, 2):
        rows = dataclasses.replace(ROWS, edition=edition)
        manifest = publish(usual_store, rows)
        assert_exact(usual_store, manifest, rows, edition)
    table = table_of(usual_store)
    assert table.metadata().partition_columns == ["date", "kind", "edition"]
    assert pa.schema(table.schema().to_arrow()).field("edition").type == pa.int32()
    frame = table.to_pyarrow_table(columns=["kind", "row_id"]).to_pylist()
    assert {row["kind"] for row in frame} == set(KINDS)
    empty = dataclasses.replace(ROWS, num_slices=0)
    assert_exact(usual_store, publish(usual_store, empty), empty, 3)


def test_an_output_without_partitions_is_a_table_without_partitions(usual_store: Store):
    for edition in (1, 2):
        publish(usual_store, Rows(edition), None)
    assert read(usual_store) == good(Rows(2))
    assert table_of(usual_store).metadata().partition_columns == []


def test_polars_and_duckdb_read_the_table(tmp_path: Path):
    store = Store(str(tmp_path))
    rows = dataclasses.replace(ROWS, edition=2)
    publish(store, dataclasses.replace(ROWS, edition=1))
    publish(store, rows)
    folder = store.url("predictions")
    polars = pl.scan_delta(folder).select(COLUMNS).collect().rows()
    assert (set(polars), len(polars)) == (good(rows), len(good(rows)))
    dataset = table_of(store).to_pyarrow_dataset()  # DuckDB finds it by this name
    by_duckdb = duckdb.sql(f"SELECT {', '.join(COLUMNS)} FROM dataset").fetchall()
    assert (set(by_duckdb), len(by_duckdb)) == (good(rows), len(good(rows)))
    assert dataset.count_rows() == len(good(rows))
    only = duckdb.sql("SELECT count(*) FROM dataset WHERE kind = 'a/b'").fetchall()
    assert only == [(sum(row["kind"] == "a/b" for row in pl.read_delta(folder).to_dicts()),)]


def test_a_table_added_later_starts_with_the_current_versions(usual_store: Store):
    for edition in (1, 2):
        publish_rows(usual_store, rows=Rows(edition))
    repair(usual_store, LAYOUT, 2, table=Delta(usual_store))
    table = table_of(usual_store)
    assert named_by(table) == parts_of(current_manifest(usual_store, LAYOUT))
    publish(usual_store, Rows(3))
    assert read(usual_store) == good(Rows(3))


@pytest.mark.slow
def test_one_of_many_writers_commits_a_version(any_store: Store):
    for edition in (1, 2):
        ours, folder = prepare_version(any_store, LAYOUT, Rows(edition), edition, "ours")
        placed = commit(any_store, LAYOUT, ours, folder)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: Delta(any_store).commit(LAYOUT, placed), range(4)))  # noqa: B023
        numbers = [info["pipeline.version"] for info in commits_of(table_of(any_store))]
        assert numbers == list(range(1, edition + 1))
        sync_published_folder(any_store, LAYOUT, placed, 2, table=Delta(any_store))
    assert_exact(any_store, placed, Rows(2), 2)


def test_partitions_published_at_once_are_all_committed(usual_store: Store):
    days = [f"date=2026-11-{day}" for day in range(10, 14)]
    with ThreadPoolExecutor(len(days)) as pool:
        for edition in (1, 2):
            list(pool.map(lambda day: publish(usual_store, Rows(edition), day), days))  # noqa: B023
    frame = table_of(usual_store).to_pyarrow_table(columns=["date", "edition", "row_id"])
    assert frame.num_rows == len(days) * len(good(Rows(2)))
    assert set(frame["edition"].to_pylist()) == {2}
    assert len(commits_of(table_of(usual_store))) == 2 * len(days)


def test_a_checkpoint_keeps_what_was_committed(usual_store: Store):
    publish(usual_store, Rows(1), "date=2026-11-25")
    manifest = publish(usual_store, Rows(1))
    table_of(usual_store).create_checkpoint()
    usual_store.delete([f"predictions/_delta_log/{number:020d}.json" for number in range(1)])
    before = snapshot(usual_store, "")
    sync_published_folder(usual_store, LAYOUT, manifest, 2, table=Delta(usual_store))
    assert snapshot(usual_store, "") == before
    manifest = publish(usual_store, Rows(2))
    mine = {path for path in named_by(table_of(usual_store)) if path.startswith(DAY)}
    assert mine == parts_of(manifest)
    assert read(usual_store) == good(Rows(1)) | good(Rows(2))


def test_changes_of_other_writers_are_replaced(usual_store: Store):
    publish(usual_store, Rows(1))
    publish(usual_store, Rows(1), "date=2026-11-25")
    table = table_of(usual_store)
    table.optimize.compact()
    assert len(named_by(table)) == 2
    manifest = publish(usual_store, Rows(2))
    mine = {path for path in named_by(table_of(usual_store)) if path.startswith(DAY)}
    assert mine == parts_of(manifest)
    assert len(named_by(table_of(usual_store))) == len(mine) + 1


def delete_rows(table: DeltaTable) -> None:
    table.delete("label = 'cat' and date = '2026-11-24'")


def delete_partition(table: DeltaTable) -> None:
    table.delete("date = '2026-11-24'")


def append_rows(table: DeltaTable) -> None:
    rows = table.to_pyarrow_table().slice(0, 3)
    write_deltalake(table, rows, mode="append")


@pytest.mark.parametrize("others", [delete_rows, delete_partition, append_rows])
def test_files_removed_or_added_by_other_writers_are_found_and_corrected_by_the_next_run(
    others: Callable[[DeltaTable], None], tmp_path: Path
):
    store = Store(str(tmp_path))
    publish(store, Rows(2), "date=2026-11-25")
    manifest = publish(store, Rows(1))
    others(table_of(store))
    assert {path for path in named_by(table_of(store)) if DAY in path} != parts_of(manifest)
    files = [file.path for file in store.list_files(f"predictions/{DAY}")]
    strange = [path for path in files if path.endswith(".parquet") and part_target(path) is None]
    if strange:
        with pytest.raises(PipelineError, match=r"not written by this package, .*: remove /.*uet;"):
            verify_output(store.uri, DAY, {})
        store.delete(strange)
    with pytest.raises(
        PipelineError, match=r"checks: table: .*; run the job again, with sink\.tabl"
    ):
        verify_output(store.uri, DAY, {})
    verify_output(store.uri, "date=2026-11-25", {})
    assert repair(store, LAYOUT, 2, table=Delta(store)) == manifest
    assert read(store) == good(Rows(1)) | good(Rows(2))
    verify_output(store.uri, DAY, {})


def test_a_table_of_another_history_is_refused_until_it_is_removed(usual_store: Store):
    for edition in (1, 2, 3):
        publish(usual_store, Rows(edition))
    usual_store.delete([file.path for file in usual_store.list_files("_control")])
    before = snapshot(usual_store, "")
    schema = prediction_schema(list(Rows(4).pass_through), CLASSIFY_FIELDS)
    refused = r"has version 3 of date=2026-11-24, .* is {}: .*Delete predictions/_delta_log"
    with pytest.raises(JobError, match=refused.format(0)):
        Delta(usual_store).require(LAYOUT, {}, schema)
    assert snapshot(usual_store, "") == before
    with pytest.raises(JobError, match=refused.format(1)):
        publish(usual_store, Rows(4))
    usual_store.delete([file.path for file in usual_store.list_files("predictions/_delta_log")])
    Delta(usual_store).require(LAYOUT, {}, schema)
    publish(usual_store, Rows(4))
    assert read(usual_store) == good(Rows(4))


@pytest.mark.parametrize(
    "rule",
    [
        Rule(RESET_BEFORE, method="PUT", path=r"_delta_log/.*json"),
        Rule(RESET_AFTER, method="PUT", path=r"_delta_log/.*json"),
        Rule(TRUNCATE, method="GET", path="_delta_log/_last"),
    ],
    ids=["reset", "lost answer", "truncated"],
)
def test_a_broken_connection_is_tried_again(rule: Rule, s3: S3Server):
    store = s3.store()
    publish(store, Rows(1))
    manifest = publish_rows(store, DAY, Rows(2))
    with FaultProxy(s3.endpoint_url, rule) as proxy:
        Delta(Store(store.uri, s3.options_at(proxy.url))).commit(LAYOUT, manifest)
    assert rule.action in [action for _, _, action in proxy.requests]
    assert_exact(store, manifest, Rows(2), 2)


def test_a_commit_that_keeps_failing_reports_that_the_version_is_published(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sink_table, "_TRIES", 2)
    store = s3.store()
    publish(store, Rows(1))
    manifest = publish_rows(store, DAY, Rows(2))
    always = Rule(RESET_BEFORE, method="PUT", path=r"_delta_log/.*json", last=99)
    with (
        FaultProxy(s3.endpoint_url, always) as proxy,
        pytest.raises(InfraError, match=r"^version 2 of date=2026-11-24 is published, but") as why,
    ):
        Delta(Store(store.uri, s3.options_at(proxy.url))).commit(LAYOUT, manifest)
    message = str(why.value)
    assert "Connection reset by peer" in message[:300]
    assert message.isprintable()
    repair(store, LAYOUT, 2, table=Delta(store))
    assert_exact(store, manifest, Rows(2), 2)


def test_a_new_column_is_added_and_null_in_older_partitions(usual_store: Store):
    publish(usual_store, Rows(1), "date=2026-11-25")
    rows = Rows(2, kinds=("x",))
    plan_schema = prediction_schema(list(rows.pass_through), CLASSIFY_FIELDS)
    Delta(usual_store).require(LAYOUT, {}, plan_schema)
    publish(usual_store, rows)
    publish(usual_store, Rows(3))
    frame = table_of(usual_store).to_pyarrow_table(columns=["date", "edition", "kind"]).to_pylist()
    assert {tuple(row.values()) for row in frame} == {
        ("2026-11-25", 1, None),
        ("2026-11-24", 3, None),
    }
    publish(usual_store, Rows(4, kinds=("x",)))
    frame = table_of(usual_store).to_pyarrow_table(columns=["edition", "kind"]).to_pylist()
    assert {tuple(row.values()) for row in frame} == {(1, None), (4, "x")}


@pytest.mark.parametrize(
    ("partition", "columns", "fields", "message"),
    [
        (DAY, {}, [pa.field("edition", pa.string())], 'edition of this Delta table is .*integer'),
        (DAY, {"label": "string"}, [], r"partitioned by \(date\), the job by \(date, label\)"),
        (None, {}, [], r"partitioned by \(date\), the job by \(\)"),
        (DAY, {}, [pa.field("n", pa.uint16())], "column n is uint16, which no Delta table"),
        (DAY, {}, [pa.field("at", pa.timestamp("ns"))], r"column at is timestamp\[ns\]"),
        (DAY, {}, [pa.field("at", pa.time64("us"))], r"column at is time64\[us\]"),
        (DAY, {}, [pa.field("x", pa.list_(pa.uint8()))], "column x is uint8"),
        (DAY, {}, [pa.field("date", pa.date32())], "have a column date, too"),
    ],
    ids=["type", "columns", "whole", "unsigned", "ns", "time", "nested", "name"],
)  # fmt: skip
def test_types_that_a_table_cannot_hold_are_refused_before_the_run_starts(
    usual_store: Store,
    partition: str | None,
    columns: dict[str, str],
    fields: list[pa.Field],
    message: str,
):
    publish(usual_store, Rows(1))
    before = snapshot(usual_store, "")
    with pytest.raises(JobError, match=message):
        Delta(usual_store).require(
            Layout(partition), columns, prediction_schema(fields, CLASSIFY_FIELDS)
        )
    assert snapshot(usual_store, "") == before


def test_a_store_of_another_kind_is_refused():
    with pytest.raises(JobError, match="can be on local disk or s3://, not gs://"):
        Delta(Store("gs://bucket/out")).require(LAYOUT, {}, prediction_schema([], CLASSIFY_FIELDS))


def test_credentials_are_neither_in_the_log_nor_in_messages(any_store: Store):
    publish(any_store, Rows(1))
    options = dict(any_store.storage_options)
    secrets = [value for value in (options.get("secret"), options.get("key")) if value]
    for file in any_store.list_files("predictions/_delta_log"):
        text = any_store.read_bytes(file.path).decode()
        assert not any(secret in text for secret in secrets)
