"""Promise: the Iceberg table names exactly the published parts, for all readers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from pyiceberg.catalog import load_catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.types import StringType
from support.inputs.lake_rows import counted, rows_of
from support.runs.iceberg_sink import (
    COLUMNS,
    TABLE,
    assert_exact,
    good,
    named_by,
    names,
    newest,
    options_at,
    publish,
    read,
    with_rows,
)
from support.runs.published import (
    DAY,
    Rows,
    publish_rows,
    snapshot,
)

from pipeline.commit.garbage import collect_garbage
from pipeline.commit.layout import Layout
from pipeline.commit.manifest import current_manifest
from pipeline.commit.publish import repair, rollback
from pipeline.core.errors import JobError
from pipeline.core.schema import CLASSIFY_FIELDS, prediction_schema
from pipeline.job.job import TableOptions
from pipeline.job.source import Source
from pipeline.sources.listing.inputs import list_inputs
from pipeline.storage.store import Store

pytestmark = [pytest.mark.no_ray, pytest.mark.early]

LAYOUT, OTHER_DAY = Layout(DAY), "date=2026-11-25"
KINDS = ("a/b", None, "50% off", "two words", "\u00e9")
ROWS = Rows(kinds=KINDS, partition_columns=("kind", "edition"))


def test_each_publication_is_one_snapshot_that_replaces_the_partition(
    any_store: Store, options: TableOptions
):
    manifests = []
    for edition in (1, 2):
        rows = Rows(edition, num_slices=2 + edition)
        manifests.append(publish(any_store, options, rows))
        assert_exact(any_store, options, manifests[-1], rows, edition)
    table = newest(any_store, options)
    summary = table.snapshots()[-1].summary
    assert summary is not None
    last = summary.additional_properties
    assert last["pipeline.fingerprint"] == manifests[-1].fingerprint
    assert last["pipeline.run_id"] == manifests[-1].run_id
    before = snapshot(any_store, "")
    assert publish(any_store, options, rows) == manifests[-1], "the same again"
    names(any_store, options).commit(LAYOUT, manifests[0])  # an older version, late
    assert snapshot(any_store, "") == before
    assert newest(any_store, options).metadata == table.metadata
    collect_garbage(any_store, LAYOUT, grace_s=0)
    assert_exact(any_store, options, manifests[-1], rows, 2)
    back = rollback(any_store, LAYOUT, "back", keep_versions=2, table=names(any_store, options))
    assert_exact(any_store, options, back, Rows(1, num_slices=3), 3)


def test_partitions_share_one_table(usual_store: Store, options: TableOptions):
    days = ["date=2026-11-24", "date=2026-11-25", "date=2026-11-26"]
    for edition, day in enumerate([*days, days[1]]):
        publish(usual_store, options, Rows(edition), day)
    table = newest(usual_store, options)
    rows = table.scan().select("date", "edition").to_arrow().to_pylist()
    days_and_editions = {(row["date"], row["edition"]) for row in rows}
    assert days_and_editions == {("2026-11-24", 0), ("2026-11-25", 3), ("2026-11-26", 2)}
    assert read(table, days[1]) == good(Rows(3))
    planned = [*table.scan("date == '2026-11-25'").plan_files()]
    assert all(days[1] in task.file.file_path for task in planned)


def test_folders_of_columns_are_partitions_of_the_table(usual_store: Store, options: TableOptions):
    for edition in (1, 2):
        rows = dataclasses.replace(ROWS, edition=edition)
        manifest = publish(usual_store, options, rows)
        assert_exact(usual_store, options, manifest, rows, edition)
    table = newest(usual_store, options)
    assert [field.name for field in table.spec().fields] == ["date", "kind", "edition"]
    frame = table.scan().select("kind", "edition").to_arrow()
    assert frame.schema.field("edition").type == pa.int32()
    assert set(frame["kind"].to_pylist()) == set(KINDS)
    only = table.scan("kind == 'a/b'").to_arrow()
    assert {*only["kind"].to_pylist()} == {"a/b"}
    empty = dataclasses.replace(ROWS, num_slices=0)
    assert_exact(usual_store, options, publish(usual_store, options, empty), empty, 3)
    assert publish(usual_store, options, empty).number == 3


def test_an_output_without_partitions_is_a_table_without_partitions(
    usual_store: Store, options: TableOptions
):
    for edition in (1, 2):
        publish(usual_store, options, Rows(edition), None)
    table = newest(usual_store, options)
    assert read(table) == good(Rows(2))
    assert table.spec().is_unpartitioned()


def test_readers_get_the_published_rows(
    tmp_path: Path, options: TableOptions, monkeypatch: pytest.MonkeyPatch
):
    """By the catalog, as a reader opens it: pyiceberg, pandas, Polars, DuckDB."""
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")
    store, rows = Store(str(tmp_path / "out")), dataclasses.replace(ROWS, edition=2)
    publish(store, options, dataclasses.replace(ROWS, edition=1))
    publish(store, options, dataclasses.replace(ROWS, edition=1), OTHER_DAY)
    publish(store, options, rows)
    whole = ["date", "kind", *COLUMNS, "score", "top_k"]
    catalog = load_catalog("default", type="sql", uri=f"sqlite:///{tmp_path}/catalog.db")
    table = catalog.load_table(TABLE)
    expected = sorted(map(repr, table.scan().to_arrow().select(whole).to_pylist()))
    assert read(table, DAY) == good(rows)
    assert len(expected) == 2 * len(good(rows))
    for override in ("native", "pyiceberg"):
        frame = pl.scan_iceberg(table, reader_override=override).select(whole).collect()
        assert sorted(map(repr, frame.to_dicts())) == expected
    frame = table.scan().to_pandas()[COLUMNS]
    assert {*frame.itertuples(index=False, name=None)} == good(rows) | good(
        dataclasses.replace(ROWS, edition=1)
    )
    table.scan().to_duckdb("labels", connection := duckdb.connect())
    fetched = connection.sql(f"SELECT {', '.join(COLUMNS)} FROM labels WHERE date = '2026-11-24'")
    assert sorted(fetched.fetchall()) == sorted(good(rows))


def test_another_job_reads_what_was_published(tmp_path: Path, options: TableOptions):
    store = Store(str(tmp_path / "out"))
    publish(store, options, dataclasses.replace(ROWS, edition=1), OTHER_DAY)
    publish(store, options, dataclasses.replace(ROWS, edition=2))
    passed = ("date", "kind", "edition")
    source = Source(
        uri=store.uri,
        format="iceberg",
        options=options.model_dump(exclude={"properties"}, exclude_none=True),
        features=("label_id",),
        pass_through=passed,
    )
    rows = rows_of(source, list_inputs(source, max_extent_rows=4)).select([*passed]).to_pylist()
    table = newest(store, options).scan().to_arrow().select([*passed]).to_pylist()
    assert counted(rows) == counted(table)
    assert {row["date"] for row in rows} == {"2026-11-24", "2026-11-25"}


def test_a_table_added_later_starts_with_the_current_versions(
    usual_store: Store, options: TableOptions
):
    for edition in (1, 2):
        publish_rows(usual_store, rows=Rows(edition))
    repair(usual_store, LAYOUT, 2, table=names(usual_store, options))
    table = newest(usual_store, options)
    assert named_by(usual_store, table) == with_rows(current_manifest(usual_store, LAYOUT))
    publish(usual_store, options, Rows(3))
    assert read(newest(usual_store, options)) == good(Rows(3))


# ---------------------------------------------------------------- columns and settings


def test_a_new_column_is_added_and_null_in_older_partitions(
    usual_store: Store, options: TableOptions
):
    publish(usual_store, options, Rows(1), OTHER_DAY)
    rows = Rows(2, kinds=("x",))
    schema = prediction_schema(list(rows.pass_through), CLASSIFY_FIELDS)
    before = newest(usual_store, options).metadata
    names(usual_store, options).require(LAYOUT, {}, schema)
    assert newest(usual_store, options).metadata == before
    for published in (rows, Rows(3), Rows(4, kinds=("x",))):
        publish(usual_store, options, published)
        table = newest(usual_store, options)
        frame = table.scan().select("date", "edition", "kind").to_arrow().to_pylist()
        kind = "x" if published.kinds else None
        expected = {("2026-11-25", 1, None), ("2026-11-24", published.edition, kind)}
        assert {(row["date"], row["edition"], row["kind"]) for row in frame} == expected


@pytest.mark.parametrize(
    ("partition", "columns", "fields", "message"),
    [
        (DAY, {}, [pa.field("edition", pa.string())], "edition of this Iceberg table is int, the"),
        (DAY, {}, [pa.field("edition", pa.int64())], "edition of this Iceberg table is int, the"),
        (DAY, {"label": "string"}, [], r"partitioned by \(date\), the job by \(date, label\)"),
        (None, {}, [], r"partitioned by \(date\), the job by \(\)"),
        (DAY, {}, [pa.field("n", pa.uint16())], "column n is uint16, which no Iceberg table can"),
        (DAY, {}, [pa.field("n", pa.uint64())], "column n is uint64"),
        (DAY, {}, [pa.field("n", pa.null())], "column n is null"),
        (DAY, {}, [pa.field("n", pa.float16())], "column n is halffloat"),
        (DAY, {}, [pa.field("at", pa.timestamp("ns"))], r"column at is timestamp\[ns\]"),
        (DAY, {}, [pa.field("at", pa.timestamp("us", "Europe/Rome"))], "column at is timestamp"),
        (DAY, {}, [pa.field("at", pa.duration("us"))], "column at is duration"),
        (DAY, {}, [pa.field("x", pa.list_(pa.uint8()))], "column x is uint8"),
        (DAY, {}, [pa.field("date", pa.date32())], "have a column date, too"),
    ],
    ids=[
        *("type", "wider", "columns", "whole", "unsigned", "uint64", "null", "half", "ns"),
        *("zone", "duration", "nested", "name"),
    ],
)  # fmt: skip
def test_what_a_table_cannot_hold_is_refused_before_the_run_starts(
    tmp_path: Path,
    options: TableOptions,
    partition: str | None,
    columns: dict[str, str],
    fields: list[pa.Field],
    message: str,
):
    store = Store(str(tmp_path / "out"))
    publish(store, options, Rows(1))
    before = snapshot(store, "")
    with pytest.raises(JobError, match=message):
        names(store, options).require(
            Layout(partition), columns, prediction_schema(fields, CLASSIFY_FIELDS)
        )
    assert snapshot(store, "") == before


def test_types_of_tasks_and_shards_are_held_and_read(tmp_path: Path, options: TableOptions):
    fields = [
        pa.field("embedding", pa.list_(pa.float32(), 3)),
        pa.field("price", pa.decimal128(9, 2)),
        pa.field("day", pa.date32()),
        pa.field("at", pa.timestamp("ms", "UTC")),
        pa.field("hash", pa.binary(16)),
        pa.field("tags", pa.map_(pa.string(), pa.int64())),
    ]
    schema = prediction_schema(fields, CLASSIFY_FIELDS)
    names(Store(str(tmp_path / "out")), options).require(LAYOUT, {}, schema)


def test_a_table_of_others_is_used_if_it_fits(tmp_path: Path, options: TableOptions):
    """It has rows of other days, and a column more; what it requires must be there."""
    store = Store(str(tmp_path / "out"))
    catalog = SqlCatalog(
        "default", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=str(tmp_path / "theirs")
    )
    catalog.create_namespace("lake")
    schema = pa.schema([("row_id", pa.string()), ("note", pa.string()), ("date", pa.string())])
    table = catalog.create_table(TABLE, schema)
    with table.update_spec() as spec:
        spec.add_identity("date")
    table.append(pa.table({"row_id": ["r"], "note": ["n"], "date": ["2020-01-01"]}, schema=schema))
    publish(store, options, Rows(1))
    rows = newest(store, options).scan().to_arrow()
    assert rows.num_rows == 1 + len(good(Rows(1)))
    assert rows.filter(pa.compute.field("row_id") == "r")["note"].to_pylist() == ["n"]
    with table.refresh().update_schema(allow_incompatible_changes=True) as update:
        update.add_column("must", StringType(), required=True, default_value="m")
    with pytest.raises(JobError, match="requires the column must, which the job does not make"):
        publish(store, options, Rows(2))


def test_credentials_are_in_no_file_of_the_output(any_store: Store, options: TableOptions):
    publish(any_store, options, Rows(1))
    given = dict(any_store.storage_options)
    secrets = [value for value in (given.get("secret"), given.get("key")) if value]
    for file in any_store.list_files(""):
        assert not any(secret.encode() in any_store.read_bytes(file.path) for secret in secrets)


def test_properties_are_those_of_the_new_table(tmp_path: Path):
    more = {"properties": {"gc.enabled": "true", "owner": "night"}}
    store, options = Store(str(tmp_path / "out")), options_at(f"{tmp_path}/catalog.db", **more)
    publish(store, options, Rows(1))
    properties = newest(store, options).properties
    assert (properties["gc.enabled"], properties["owner"]) == ("true", "night")
    assert "commit.retry.num-retries" not in properties


def test_a_store_of_another_kind_is_refused(options: TableOptions):
    with pytest.raises(JobError, match="can be on local disk or s3://, not gs://"):
        names(Store("gs://bucket/out"), options).require(
            LAYOUT, {}, prediction_schema([], CLASSIFY_FIELDS)
        )
