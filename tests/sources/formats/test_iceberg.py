"""Promise: the rows that are read are the rows of the Iceberg table, as the library reads them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.table import Table
from pyiceberg.transforms import BucketTransform, IdentityTransform
from pyiceberg.types import DoubleType, IntegerType, LongType, StringType
from support.inputs.iceberg_tables import (
    TABLE,
    DeletedBy,
    catalog_at,
    delete_rows,
    folder_of,
    live_files,
    options_at,
    without_catalog,
)
from support.inputs.lake_rows import COLUMNS, Rows, counted, read, rows_of, some_rows
from support.servers.object_stores import S3Server

from pipeline.core.errors import InputMissing, JobError
from pipeline.job.source import Source
from pipeline.sources.listing.inputs import list_inputs

NUM_TABLES = 40
TYPES = {name: dtype for name, dtype in COLUMNS.items() if name != "small"}
CHANGES = ("add", "rename", "drop", "widen")
PARTITIONS = ("text", "is_new", "day", "seen", "cost")


def source_of(table: Table, folder: Path, **options: Any) -> Source:
    names = [field.name for field in table.schema().fields if field.name != "n"]
    return Source(
        uri=str(folder_of(table)),
        format="iceberg",
        features=("n",),
        pass_through=tuple(names),
        options={**options_at(folder), **options},
    )


def due(table: Table, **scan: Any) -> Rows:
    """Return the rows of a table as the library reads them."""
    return counted(table.scan(**scan).to_arrow().to_pylist())


def table_of(
    folder: Path, rows: pa.Table, version: int = 2, location: str | None = None, **access: str
) -> Table:
    """Return a new table with some rows; `access` are options of a catalog in an object store."""
    catalog = catalog_at(folder, **access)
    properties = {"format-version": str(version)}
    table = catalog.create_table(TABLE, rows.schema, location, properties=properties)
    table.append(rows)
    return table


def ten(first: int = 0) -> pa.Table:
    numbers = range(first, first + 10)
    return pa.table({"n": numbers, "text": [f"t{i}" for i in numbers]})


@pytest.mark.parametrize("seed", range(NUM_TABLES))
def test_the_rows_of_a_table_that_the_library_wrote_are_read_as_the_library_reads_them(
    seed: int, tmp_path: Path
):
    chance = random.Random(seed)
    names = chance.sample([*TYPES], chance.randrange(1, len(TYPES)))
    columns = {name: TYPES[name] for name in names}
    table = table_of(tmp_path, some_rows(chance, columns), chance.choice([1, 2]))
    for number in range(chance.randrange(8)):
        step = chance.choice(["append", "append", "delete", "overwrite", "spec", *CHANGES])
        if step == "append":
            table.append(_fitting(table, chance))
        elif step == "overwrite":
            table.overwrite(_fitting(table, chance), f"n < {chance.randrange(60)}")
        elif step == "delete":
            table.delete(f"n > {chance.randrange(100)}")
        elif step == "spec":
            _partition(table)
        else:
            _change(table, step, number, chance)
    source = source_of(table, tmp_path)
    if due(table):
        assert read(source)[0] == due(table)
    for snapshot in table.snapshots()[:-1]:
        number = snapshot.snapshot_id
        there = table.scan(snapshot_id=number).projection().fields
        passed = tuple(field.name for field in there if field.name != "n")
        old = source_of(table, tmp_path, snapshot=number).model_copy(
            update={"pass_through": passed}
        )
        if due(table, snapshot_id=number):
            assert read(old)[0] == due(table, snapshot_id=number)


def _partition(table: Table) -> None:
    """Partition the files to come by another column, too."""
    taken = [field.name for field in table.spec().fields]
    free = [f.name for f in table.schema().fields if f.name in PARTITIONS and f.name not in taken]
    with table.update_spec() as spec:
        if free:
            spec.add_field(free[0], IdentityTransform(), free[0])
        elif "n_bucket" not in taken:
            spec.add_field("n", BucketTransform(3), "n_bucket")


def _change(table: Table, step: str, number: int, chance: random.Random) -> None:
    """Change a column that partitions no files."""
    used = {field.source_id for spec in table.specs().values() for field in spec.fields}
    free = [f for f in table.schema().fields if f.name != "n" and f.field_id not in used]
    with table.update_schema(allow_incompatible_changes=True) as update:
        if step == "add":
            update.add_column(f"late{number}", chance.choice([StringType(), IntegerType()]))
        elif step == "rename" and free:
            update.rename_column(free[0].name, f"{free[0].name}_{number}")
        elif step == "drop" and len(free) > 1:
            update.delete_column(free[-1].name)
        elif step == "widen":
            for field in free:
                if str(field.field_type) == "int":
                    update.update_column(field.name, LongType())


def _fitting(table: Table, chance: random.Random) -> pa.Table:
    """Return some rows with the columns that a table has now."""
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    schema = schema_to_pyarrow(table.schema(), include_field_ids=False)
    known = {name.partition("_")[0]: dtype for name, dtype in TYPES.items()}
    known["is"] = TYPES["is_new"]
    columns = {
        field.name: known.get(field.name.partition("_")[0], pa.string())
        for field in schema
        if field.name != "n" and not field.name.startswith("late")
    }
    rows = some_rows(chance, columns)
    for field in schema:
        if field.name.startswith("late"):
            rows = rows.append_column(field.name, pa.nulls(rows.num_rows, field.type))
    return rows


@pytest.mark.parametrize("by", ["positions", "vector"])
def test_deleted_rows_are_not_read(by: DeletedBy, tmp_path: Path):
    table = table_of(tmp_path, ten())
    table.append(ten(10))
    first, second = [file.file_path for file in live_files(table)]
    delete_rows(table, {first: [0, 3, 4, 9]}, by)
    delete_rows(table, {first: [0, 3, 4, 5, 9], second: [9]}, by)
    source = source_of(table, tmp_path)
    rows, ids = read(source)
    assert rows == due(table)
    assert sum(rows.values()) == 14
    name = first.removeprefix(f"{table.location()}/")
    numbers = {i.rpartition("#")[2] for i in ids.column("row_id").to_pylist() if name in i}
    assert numbers == set("12678")


def test_a_delete_file_spares_files_that_were_added_after_it(tmp_path: Path):
    table = table_of(tmp_path, ten())
    with table.update_spec() as spec:
        spec.add_identity("text")
    [path] = [file.file_path for file in live_files(table)]
    delete_rows(table, {path: range(10)})
    table.append(ten())
    assert read(source_of(table, tmp_path))[0] == due(table) == counted(ten().to_pylist())


def test_files_without_field_ids_are_read_by_the_name_mapping(tmp_path: Path):
    table = table_of(tmp_path, ten())
    added = folder_of(table) / "data" / "added a%20b.parquet"
    pq.write_table(ten(10), added)
    table.add_files([str(added)])
    with table.update_schema() as update:
        update.rename_column("text", "body")
        update.add_column("late", DoubleType())
    assert read(source_of(table, tmp_path))[0] == due(table)
    with table.transaction() as change:
        change.remove_properties("schema.name-mapping.default")
    source = source_of(table, tmp_path)
    rows = rows_of(source, list_inputs(source, max_extent_rows=4))
    errors = [row for row in rows.to_pylist() if "added" in row["row_id"]]
    assert {row["error"] for row in errors} == {"bad_schema"}, "not nulls"
    assert "no field ids" in errors[0]["message"]


def test_partition_values_come_from_the_metadata_if_a_file_lacks_the_column(tmp_path: Path):
    table = table_of(tmp_path, ten().slice(0, 1))
    with table.update_spec() as spec:
        spec.add_identity("text")
    table.append(ten().slice(1, 1))
    [path] = [Path(f.file_path) for f in live_files(table) if "text=" in f.file_path]
    rows = pq.read_table(path, partitioning=None).drop_columns(["text"])
    pq.write_table(rows, path)
    assert read(source_of(table, tmp_path))[0] == due(table)


def test_a_snapshot_is_read_by_id_branch_or_tag(tmp_path: Path):
    table = table_of(tmp_path, ten())
    old = table.current_snapshot().snapshot_id
    table.manage_snapshots().create_tag(old, "before").commit()
    table.append(ten(10))
    table.manage_snapshots().create_branch(table.current_snapshot().snapshot_id, "dev").commit()
    table.append(ten(20), branch="dev")
    ones = {"snapshot": old, "tag": "before"}
    for name, value in ones.items():
        assert sum(read(source_of(table, tmp_path, **{name: value}))[0].values()) == 10
    assert sum(read(source_of(table, tmp_path, branch="dev"))[0].values()) == 30
    assert sum(read(source_of(table, tmp_path))[0].values()) == 20
    for name, value in {"branch": "before", "tag": "none", "snapshot": 7}.items():
        error = InputMissing if name == "snapshot" else JobError  # it may have expired
        with pytest.raises(error, match=rf"source\.options\.{name} = {value}: "):
            list_inputs(source_of(table, tmp_path, **{name: value}), max_extent_rows=4)


def test_a_table_of_version_3_is_read_without_a_catalog(tmp_path: Path):
    table = table_of(tmp_path, ten())
    with table.update_schema() as update:
        update.add_column("late", StringType())
    delete_rows(table, {live_files(table)[0].file_path: [2]}, "vector")
    schemas = [json.loads(schema.model_dump_json()) for schema in table.schemas().values()]
    schemas[-1]["fields"][-1]["initial-default"] = "x"
    version_3 = {"format-version": 3, "next-row-id": 100, "schemas": schemas}
    folder = without_catalog(table, **version_3)
    source = Source(
        uri=str(folder), format="iceberg", features=("n",), pass_through=("text", "late")
    )
    live = [row | {"late": "x"} for row in ten().to_pylist() if row["n"] != 2]
    assert read(source)[0] == counted(live)


def test_a_table_in_an_object_store_is_read_with_the_options_of_the_source(
    s3: S3Server, tmp_path: Path
):
    store = s3.store()
    access = {"s3.endpoint": s3.endpoint_url, "s3.region": "us-east-1"}
    keys = ("s3.access-key-id", "key"), ("s3.secret-access-key", "secret")
    access |= {name: store.storage_options[key] for name, key in keys}
    table = table_of(tmp_path, ten(), location=store.url("rows"), **access)
    delete_rows(table, {live_files(table)[0].file_path: [1, 2]}, "vector")
    source = source_of(table, tmp_path)
    fields = {"uri": store.url("rows"), "storage_options": dict(store.storage_options)}
    source = source.model_copy(update=fields)
    inputs = list_inputs(source, max_extent_rows=4)
    rows = rows_of(source, inputs).select(["text"]).to_pylist()
    assert [row["text"] for row in rows] == [f"t{n}" for n in (0, *range(3, 10))]


def test_what_cannot_be_read_is_refused_with_the_cure(tmp_path: Path):
    table = table_of(tmp_path, ten())
    source = source_of(table, tmp_path)

    def refused(expected: type[Exception], message: str, **changed: Any) -> None:
        with pytest.raises(expected, match=message):
            list_inputs(source.model_copy(update=changed), max_extent_rows=4)

    refused(JobError, "an Iceberg table, .*, source.format: iceberg and", format="parquet")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    refused(JobError, r"has files elsewhere, .*its location is .*db/rows", uri=str(elsewhere))
    refused(JobError, r"no metadata/version-hint.text: give", uri=str(elsewhere), options={})
    refused(InputMissing, "no such table", uri=str(tmp_path / "none"), options={})
    missing = {**options_at(tmp_path), "table": "db.none"}
    refused(InputMissing, r"db\.none: .*run again when it is there", options=missing)
    unknown = {"catalog": "nobody", "table": TABLE}
    refused(JobError, "cannot open the Iceberg catalog nobody: ", options=unknown)
    inputs = list_inputs(source, max_extent_rows=4)
    [path] = [file.file_path for file in live_files(table)]
    delete_rows(table, {path: [1]}, "equality")
    refused(JobError, r"cannot read the Iceberg table db\.rows: .*equality deletes")
    Path(path.removeprefix("file://")).unlink()
    with pytest.raises(InputMissing, match="gone since the run planned"):
        rows_of(source, inputs)
    number = table.snapshots()[0].snapshot_id
    options = {**options_at(tmp_path), "snapshot": number}
    refused(InputMissing, r"1 of 1 files of snapshot \d+ .* read a newer snapshot", options=options)


@pytest.mark.parametrize("place", ["table", "catalog"])
def test_code_that_a_table_or_a_job_names_is_not_run(place: str, tmp_path: Path, monkeypatch: Any):
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Io: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    table = table_of(tmp_path, ten())
    source = source_of(table, tmp_path)
    if place == "table":
        at = Path(table.metadata_location.removeprefix("file://"))
        properties = {"properties": {"py-io-impl": "evil.Io"}}
        at.write_text(json.dumps(json.loads(at.read_text()) | properties))
        with pytest.raises(JobError, match=r"names the code evil\.Io \(py-io-impl\), which is not"):
            list_inputs(source, max_extent_rows=4)
    else:
        catalog = options_at(tmp_path)["catalog"] | {"py-io-impl": "evil.Io"}
        with pytest.raises(ValueError, match="py-io-impl"):
            source_of(table, tmp_path, catalog=catalog)
    assert not ran.exists()


def test_options_that_contradict_each_other_are_refused(tmp_path: Path):
    fields: dict[str, Any] = {"uri": str(tmp_path), "format": "iceberg", "features": ("n",)}
    for options, message in (
        ({"snapshot": 1, "tag": "x"}, "give snapshot, branch or tag"),
        ({"table": TABLE}, "give catalog and table together"),
        ({"catalog": "prod", "table": "rows"}, "pattern"),
        (
            {"catalog": {"type": "sql", "uri": "postgresql://me:pw@host/db"}, "table": TABLE},
            "passw",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Source(**fields, options=options)
