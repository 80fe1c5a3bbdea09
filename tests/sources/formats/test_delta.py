"""Delta tables: the rows that are read are the rows of the table, as the library reads them."""

from __future__ import annotations

import datetime as dt
import os
import random
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pytest
from support.inputs.delta_tables import DeltaTable
from support.inputs.lake_rows import COLUMNS, Rows, counted, read, rows_of, some_rows

from pipeline.core.errors import InputMissing, JobError
from pipeline.job.source import Source
from pipeline.sources.listing.inputs import list_inputs

NUM_TABLES = 40


def source_of(folder: Path, names: list[str], **options: Any) -> Source:
    passed = tuple(name for name in names if name != "n")
    return Source(
        uri=str(folder), format="delta", features=("n",), pass_through=passed, options=options
    )


def due(folder: Path, **options: Any) -> Rows:
    """Return the rows of a table as the library reads them."""
    table = deltalake.DeltaTable(folder, **options)
    reader = deltalake.QueryBuilder().register("t", table).execute("select * from t")
    return counted(pa.table(reader).to_pylist())


PARTITIONS = ("text", "small", "is_new", "day", "seen")


@pytest.mark.parametrize("seed", range(NUM_TABLES))
def test_the_rows_of_a_table_that_the_library_wrote_are_read_as_the_library_reads_them(
    seed: int, tmp_path: Path
):
    chance = random.Random(seed)
    names = chance.sample([*COLUMNS], chance.randrange(1, len(COLUMNS)))
    by = chance.sample([name for name in names if name in PARTITIONS], 1)[:1] if (
        seed % 2 and set(names) & {*PARTITIONS}
    ) else []  # fmt: skip
    columns = {name: COLUMNS[name] for name in names}
    deltalake.write_deltalake(tmp_path, some_rows(chance, columns), partition_by=by)
    for _ in range(chance.randrange(7)):
        table = deltalake.DeltaTable(tmp_path)
        step = chance.choice(["append", "append", "delete", "update", "add", "merge", "optimize"])
        if step == "add" and (left := [name for name in COLUMNS if name not in columns]):
            columns[left[0]] = COLUMNS[left[0]]
        if step in ("append", "add"):
            rows = some_rows(chance, columns)
            deltalake.write_deltalake(tmp_path, rows, mode="append", schema_mode="merge")
        elif step == "delete":
            table.delete(f"n > {chance.randrange(100)}")
        elif step == "update":
            table.update({"n": "n + 1"}, predicate=f"n < {chance.randrange(60)}")
        elif step == "merge":
            rows = some_rows(chance, columns)
            merging = table.merge(rows, "t.n = s.n and false", source_alias="s", target_alias="t")
            merging.when_not_matched_insert_all().execute()
        elif step == "optimize":
            table.optimize.compact()
    source = source_of(tmp_path, ["n", *columns])
    assert read(source)[0] == due(tmp_path)
    for version in range(deltalake.DeltaTable(tmp_path).version()):
        there = pa.schema(deltalake.DeltaTable(tmp_path, version=version).schema()).names
        old = source_of(tmp_path, there, version=version)
        if due(tmp_path, version=version):
            assert read(old)[0] == due(tmp_path, version=version)


@pytest.mark.parametrize("mapping", ["none", "name", "id"])
def test_deleted_rows_and_renamed_columns_are_those_of_the_table(mapping: Any, tmp_path: Path):
    table = DeltaTable(tmp_path, mapping, partition_by=["day"])
    first = {"n": pa.int64(), "text": pa.string(), "other": pa.string(), "day": pa.date32()}
    ten = pa.table(
        {
            "n": range(10),
            "text": [f"t{i}" for i in range(10)],
            "other": [f"o{i}" for i in range(10)],
        }
    )
    table.commit(first, {"one/a b.parquet": ten}, given={"day": "2026-01-02"})
    table.commit(first, {"b.parquet": ten.slice(0, 4)}, given={"day": None})
    table.commit(first, deleted={"one/a b.parquet": [0, 3, 4, 9], "b.parquet": [3]})
    source = source_of(tmp_path, [*first])
    rows, ids = read(source)
    assert rows == due(tmp_path)
    assert ids.column("row_id").to_pylist() == [
        *(f"b.parquet#{row}" for row in (0, 1, 2)),
        *(f"one/a b.parquet#{row}" for row in (1, 2, 5, 6, 7, 8)),
    ]
    if mapping == "none":
        return
    keys = {name: key for name, (_, key) in table.columns.items()}
    swapped = {
        "n": (pa.int64(), keys["n"]),
        "text": (pa.string(), keys["other"]),
        "other": (pa.string(), keys["text"]),
        "day": (pa.date32(), keys["day"]),
        "new": pa.float64(),
    }
    table.commit(swapped)
    more = ten.append_column("new", pa.array([0.5] * 10))
    table.commit(swapped, {"c.parquet": more}, given={"day": "2026-01-03"})
    table.commit(swapped, deleted={"c.parquet": range(8)})
    source = source_of(tmp_path, [*swapped])
    assert read(source)[0] == due(tmp_path)
    assert sum(due(tmp_path).values()) == 11


def test_a_file_whose_rows_are_all_deleted_gives_none(tmp_path: Path):
    table, columns = DeltaTable(tmp_path), {"n": pa.int64()}
    table.commit(columns, {"a.parquet": pa.table({"n": [1, 2]}), "b.parquet": pa.table({"n": [3]})})
    table.commit(columns, deleted={"a.parquet": [0, 1]})
    assert read(source_of(tmp_path, ["n"]))[0] == due(tmp_path) == counted([{"n": 3}])


@pytest.mark.parametrize(("column", "text"), [("day", "x"), ("late", None)])
def test_rows_are_there_although_their_file_has_none_of_the_columns(
    column: str, text: str | None, tmp_path: Path
):
    table = DeltaTable(tmp_path, partition_by=["day"])
    first = {"n": pa.int64(), "day": pa.string()}
    table.commit(first, {"a.parquet": pa.table({"n": range(5)})}, given={"day": "x"})
    table.commit({**first, "late": pa.string()}, deleted={"a.parquet": [1]})
    source = Source(uri=str(tmp_path), format="delta", text_column=column)
    rows = rows_of(source, list_inputs(source, max_extent_rows=4))
    assert rows.column("row_id").to_pylist() == [f"a.parquet#{row}" for row in (0, 2, 3, 4)]
    assert rows.column("error").to_pylist() == [None if text else "null_input"] * 4


def test_a_version_is_read_by_number_or_by_time(tmp_path: Path):
    for number in range(3):
        deltalake.write_deltalake(tmp_path, pa.table({"n": [number]}), mode="overwrite")
        os.utime(tmp_path / f"_delta_log/{number:020}.json", (1000 + number, 1000 + number))
    time = dt.datetime.fromtimestamp(1001.5, dt.UTC).isoformat()
    assert read(source_of(tmp_path, ["n"]))[0] == counted([{"n": 2}])
    assert read(source_of(tmp_path, ["n"], version=0))[0] == counted([{"n": 0}])
    assert read(source_of(tmp_path, ["n"], timestamp=time))[0] == counted([{"n": 1}])
    with pytest.raises(JobError, match=r"version = 9: the newest version .* is 2"):
        list_inputs(source_of(tmp_path, ["n"], version=9), max_extent_rows=4)


def test_a_version_whose_files_are_gone_is_refused_with_the_cure(tmp_path: Path):
    for number in range(2):
        deltalake.write_deltalake(tmp_path, pa.table({"n": [number]}), mode="overwrite")
    table = deltalake.DeltaTable(tmp_path)
    source = source_of(tmp_path, ["n"], version=0)
    inputs = list_inputs(source, max_extent_rows=4)
    table.vacuum(0, dry_run=False, enforce_retention_duration=False)
    with pytest.raises(InputMissing, match="gone since the run planned, as by VACUUM"):
        rows_of(source, inputs)
    with pytest.raises(
        InputMissing, match=r"1 of 1 files of version 0 .* VACUUM .*source\.options\.version"
    ):
        list_inputs(source, max_extent_rows=4)


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [("none", InputMissing, "no such table"), ("", JobError, "no Delta table there")],
)
def test_a_place_without_a_table_is_named(
    place: str, error: type[Exception], message: str, tmp_path: Path
):
    with pytest.raises(error, match=message):
        list_inputs(source_of(tmp_path / place, ["n"]), max_extent_rows=4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.parquet", r"version 1 .* names a\.parquet twice; it is damaged"),
        ("/elsewhere/b.parquet", r"is a shallow clone, .* first \S*/elsewhere/b\.parquet"),
    ],
)
def test_a_log_that_cannot_be_right_is_refused(name: str, message: str, tmp_path: Path):
    table = DeltaTable(tmp_path)
    table.commit({"n": pa.int64()}, {"a.parquet": pa.table({"n": [1, 2]})})
    table.commit({"n": pa.int64()}, deleted={"a.parquet": [0]})
    log = tmp_path / "_delta_log" / f"{1:020}.json"
    first, *others = log.read_text().splitlines(keepends=True)
    lines = [line for line in others if not line.startswith('{"remove"')]
    log.write_text("".join([first, *lines]).replace('"path": "a.parquet"', f'"path": "{name}"'))
    with pytest.raises(JobError, match=message):
        list_inputs(source_of(tmp_path, ["n"]), max_extent_rows=4)


def test_options_that_contradict_each_other_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="give version or timestamp"):
        source_of(tmp_path, ["n"], version=1, timestamp="2026-01-01")
    with pytest.raises(ValueError, match="files has no effect with format 'delta'"):
        Source(uri=str(tmp_path), format="delta", features=("n",), files=("a.parquet",))
