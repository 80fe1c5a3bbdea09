"""Readers find every published row in every engine, with and without folders for columns.

The engines are pyarrow, pandas, DuckDB, Polars, Ray Data, and a lister of files like Spark.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from support.runs.iceberg_sink import options_at
from support.runs.published import Rows, publish_rows, slice_table

from pipeline.job.job import TableOptions
from pipeline.storage.store import Store

pytestmark = pytest.mark.early

DAYS = ("date=2026-11-24", "date=2026-11-25")
KINDS = ("a/b", "..", None, "50% off", "a=b", "two words", "plain")
COLUMNS = ("date", "row_id", "edition", "kind", "label", "score")
RowSet = set[tuple[Any, ...]]


def published(
    folder: Path, partition_columns: tuple[str, ...], table: TableOptions | None = None
) -> tuple[str, RowSet]:
    """Publish two days; return the folder to read, and the rows that must be found there."""
    store, expected = Store(str(folder)), set()
    for edition, day in enumerate(DAYS):
        rows = Rows(
            edition, rows_per_slice=30, num_slices=3, kinds=KINDS,
            partition_columns=partition_columns,
        )  # fmt: skip
        publish_rows(store, day, rows, table=table)
        publish_rows(store, day, rows, table=table)
        for index in range(rows.num_slices):
            good = slice_table(rows, index).to_pylist()
            values = [{**row, "date": day[5:]} for row in good if row["error"] is None]
            expected |= {tuple(row[name] for name in COLUMNS) for row in values}
    assert len(expected) == 2 * 3 * 24
    return str(folder / "predictions"), expected


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RowSet]:
    return published(tmp_path_factory.mktemp("plain"), ())


@pytest.fixture(scope="module")
def by_two_columns(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RowSet]:
    return published(tmp_path_factory.mktemp("by_kind"), ("kind", "label"))


@pytest.fixture(params=["plain", "by_two_columns"])
def output(request: pytest.FixtureRequest) -> tuple[str, RowSet]:
    return request.getfixturevalue(request.param)


def to_rows(rows: list[dict[str, Any]]) -> RowSet:
    """Engines guess that a folder's value is a date, or keep it as text."""
    row_set = set()
    for row in rows:
        value = None if pd.isna(row["kind"]) else row["kind"]
        values = {**row, "date": str(row["date"])[:10], "kind": value}
        row_set.add(tuple(values[name] for name in COLUMNS))
    assert len(row_set) == len(rows), "no row twice"
    return row_set


def with_pyarrow(folder: str) -> list[dict[str, Any]]:
    return ds.dataset(folder, partitioning="hive").to_table(columns=list(COLUMNS)).to_pylist()


def with_pyarrow_parquet(folder: str) -> list[dict[str, Any]]:
    return pq.read_table(folder, columns=list(COLUMNS)).to_pylist()


def with_pandas(folder: str) -> list[dict[str, Any]]:
    # Left to itself, pandas makes a category of a folder's values, which fails where one is null.
    frame = pd.read_parquet(folder, dtype_backend="pyarrow")
    return frame[list(COLUMNS)].to_dict("records")


def with_duckdb(folder: str) -> list[dict[str, Any]]:
    query = (
        f"SELECT {', '.join(COLUMNS)} "
        f"FROM read_parquet('{folder}/**/*.parquet', hive_partitioning = true)"
    )
    with duckdb.connect() as connection:
        names = connection.execute(query)
        return [dict(zip(COLUMNS, row, strict=True)) for row in names.fetchall()]


def with_polars(folder: str) -> list[dict[str, Any]]:
    frame = pl.scan_parquet(folder)
    return frame.select(COLUMNS).collect().to_dicts()


ENGINES = [with_pyarrow, with_pyarrow_parquet, with_pandas, with_duckdb, with_polars]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.__name__)
def test_an_engine_finds_every_row_in_the_folder(
    output: tuple[str, RowSet], engine: Callable[[str], list[dict[str, Any]]]
):
    folder, expected = output
    assert to_rows(engine(folder)) == expected


def spark_lists(folder: Path) -> list[Path]:
    """Spark's rule: what begins with `_` or `.` is not there, unless it is a partition `_a=1`."""
    files: list[Path] = []
    for path in sorted(folder.iterdir()):
        is_hidden = path.name.startswith((".", "_")) and "=" not in path.name
        if not is_hidden:
            files += spark_lists(path) if path.is_dir() else [path]
    return files


def spark_decodes(text: str) -> str | None:
    """As Spark's `unescapePathName`: `%XX` is the character of that number."""
    if text == "__HIVE_DEFAULT_PARTITION__":
        return None
    head, *rest = text.split("%")
    return head + "".join(chr(int(piece[:2], 16)) + piece[2:] for piece in rest)


def test_a_listing_like_spark_finds_only_parts_and_the_right_values(
    output: tuple[str, RowSet],
):
    folder, expected = output
    rows = []
    depths = set()
    for path in spark_lists(Path(folder)):
        assert path.suffix == ".parquet"
        pieces = path.relative_to(folder).parts[:-1]
        depths.add(tuple(piece.partition("=")[0] for piece in pieces))
        pairs = [piece.partition("=") for piece in pieces]
        values = {name: spark_decodes(text) for name, _, text in pairs}
        inside = pq.ParquetFile(path).read().to_pylist()
        assert not set(values) & set(inside[0])
        rows += [{**row, **values} for row in inside]
    assert len(depths) == 1, "Spark refuses folders of different depth"
    assert to_rows(rows) == expected
    for day in DAYS:
        current = Path(folder).parent / "_control" / day / "current.json"
        paths = spark_lists(Path(folder) / day)
        listed = {str(path.relative_to(Path(folder).parent)) for path in paths}
        assert {part["path"] for part in json.loads(current.read_text())["parts"]} == listed


def test_filters_on_a_folder_open_only_its_files(by_two_columns: tuple[str, RowSet]):
    folder, expected = by_two_columns
    dataset = ds.dataset(folder, partitioning="hive")
    wanted = (ds.field("label") == "cat") & (ds.field("kind") == "a/b")
    fragments = list(dataset.get_fragments(filter=wanted))
    assert len(fragments) == len(DAYS)
    filtered = dataset.to_table(filter=wanted, columns=list(COLUMNS)).to_pylist()
    assert to_rows(filtered) == {row for row in expected if row[3:5] == ("a/b", "cat")}
    frame = pl.scan_parquet(f"{folder}/**/*.parquet", hive_partitioning=True)
    wanted_too = (pl.col("label") == "cat") & (pl.col("kind") == "a/b")
    assert to_rows(frame.filter(wanted_too).select(COLUMNS).collect().to_dicts()) == to_rows(
        filtered
    )


def test_an_output_without_rows_has_its_columns_for_every_engine(tmp_path: Path):
    rows = Rows(num_slices=0)
    publish_rows(Store(str(tmp_path)), DAYS[0], rows)
    folder = str(tmp_path / "predictions")
    assert ds.dataset(folder, partitioning="hive").to_table().num_rows == 0
    names = [*slice_table(Rows(), 0).column_names[:7], "date"]
    assert pq.read_table(folder).column_names == names
    assert list(pd.read_parquet(folder).columns) == names
    frame = pl.scan_parquet(f"{folder}/**/*.parquet", hive_partitioning=True)
    assert frame.collect_schema().names() == names
    relation = duckdb.sql(f"SELECT * FROM read_parquet('{folder}/**/*.parquet')")
    assert relation.columns == names


RAY = """
import json, sys
from pipeline.execution.cluster.connect import connect
columns, folders = json.loads(sys.argv[1]), sys.argv[2:]
with connect(None):
    import ray
    found = []
    for folder in folders:
        catalog = {"name": "default", "type": "sql", "uri": "sqlite:///" + folder}
        for is_v2 in (False, True):
            ray.data.DataContext.get_current().use_datasource_v2 = is_v2
            if folder.endswith(".db"):
                rows = ray.data.read_iceberg(table_identifier="lake.labels", catalog_kwargs=catalog)
            else:
                rows = ray.data.read_parquet(folder)
            found.append(rows.select_columns(columns).take_all())
print(json.dumps(found, default=str))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_ray_data_finds_every_row_in_the_folder_and_in_the_iceberg_table(
    plain: tuple[str, RowSet], by_two_columns: tuple[str, RowSet], tmp_path: Path
):
    catalog = f"{tmp_path}/catalog.db"
    _, in_table = published(tmp_path / "out", ("kind", "label"), options_at(catalog))
    outputs = [plain, by_two_columns, (catalog, in_table)]
    arguments = [json.dumps(COLUMNS), *(folder for folder, _ in outputs)]
    done = subprocess.run(
        [sys.executable, "-c", RAY, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    tables = json.loads(done.stdout.splitlines()[-1])
    for (_, expected), *versions in zip(outputs, tables[::2], tables[1::2], strict=True):
        for rows in versions:
            for row in rows:  # Ray leaves this name as it is
                if row["kind"] == "__HIVE_DEFAULT_PARTITION__":
                    row["kind"] = None
            assert to_rows(rows) == expected
