"""Publishing into an Iceberg table of a SQLite catalog, read back, and killed in its commit."""

from __future__ import annotations

import os
import signal
from typing import Any

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.io.pyarrow import PyArrowFile
from pyiceberg.table import Table

from pipeline.commit.manifest import Manifest
from pipeline.commit.sink_table import AnyTable
from pipeline.commit.tables import table_of
from pipeline.job.job import TableOptions
from pipeline.published.verify import verify_output
from pipeline.storage.store import Store
from support.runs.published import DAY, Rows, publish_rows, sink_of, slice_table

TABLE = "lake.labels"
COLUMNS = ["row_id", "edition", "label"]
RowSet = set[tuple[Any, ...]]


def options_at(database: str, **more: Any) -> TableOptions:
    """Options of a job for `TABLE` in a catalog."""
    catalog = {"type": "sql", "uri": f"sqlite:///{database}"}
    return TableOptions.model_validate({"catalog": catalog, "table": TABLE, **more})


def publish(
    store: Store, options: TableOptions, rows: Rows, day: str | None = DAY, keep: int = 2
) -> Manifest:
    """Publish as a run does."""
    return publish_rows(store, day, rows, keep_versions=keep, table=options)


def names(store: Store, options: TableOptions) -> AnyTable:
    table = table_of(sink_of(options), store)
    assert table is not None
    return table


def named_by(store: Store, table: Table) -> set[str]:
    paths = [task.file.file_path for task in table.scan().plan_files()]
    assert len({*paths}) == len(paths), "each file once"
    return {path.removeprefix(f"{store.url('')}/") for path in paths}


def with_rows(manifest: Manifest) -> set[str]:
    return {part.path for part in manifest.parts if part.num_rows}


def good(rows: Rows) -> RowSet:
    tables = [slice_table(rows, index) for index in range(rows.num_slices)]
    everything = [row for table in tables for row in table.to_pylist() if row["error"] is None]
    return {tuple(row[name] for name in COLUMNS) for row in everything}


def read(table: Table, day: str | None = None) -> RowSet:
    """The rows of the table, or of a day, without duplicates."""
    chosen = table.scan(f"date == '{day.partition('=')[2]}'") if day else table.scan()
    # pyiceberg 0.12 finds no row if a partition column is filtered by and not selected.
    chosen = chosen.select(*COLUMNS, "date") if day else chosen.select(*COLUMNS)
    rows = chosen.to_arrow().to_pylist()
    distinct = {tuple(row[name] for name in COLUMNS) for row in rows}
    assert len(distinct) == len(rows)
    return distinct


def versions_of(table: Table) -> list[str]:
    """The version that each of our snapshots names, oldest first; all are readable."""
    for one in table.snapshots():
        for manifest in one.manifests(table.io):
            manifest.fetch_manifest_entry(table.io)
    summaries = [one.summary.additional_properties for one in table.snapshots() if one.summary]
    return [one["pipeline.version"] for one in summaries if "pipeline.version" in one]


def assert_exact(
    store: Store, options: TableOptions, manifest: Manifest, rows: Rows, num_commits: int
) -> None:
    table = newest(store, options)
    assert named_by(store, table) == with_rows(manifest)
    assert table.properties[f"batch-inference-pipeline/{DAY}"] == str(manifest.number)
    assert versions_of(table) == [str(number) for number in range(1, num_commits + 1)]
    assert read(table) == good(rows)
    verify_output(store.uri, DAY, dict(store.storage_options))


def newest(store: Store, options: TableOptions) -> Table:
    """The table as it is now."""
    table = names(store, options).open()
    assert isinstance(table, Table)
    return table


def publish_until(
    num_steps: int, store: Store, options: TableOptions, rows: Rows, day: str
) -> None:
    """Publish, and die by SIGKILL at a step of the table's commit, from 1.

    The steps: each file that the library writes, and the entry of the catalog.
    """
    steps = iter(range(1, num_steps + 1))

    def step() -> None:
        if next(steps, None) == num_steps:
            os.kill(os.getpid(), signal.SIGKILL)

    create, commit = PyArrowFile.create, SqlCatalog.commit_table

    def stepped_create(*args: Any, **options: Any) -> Any:
        stream = create(*args, **options)
        step()  # the file is there, empty
        return stream

    def stepped_commit(*args: Any) -> Any:
        step()
        answer = commit(*args)
        step()
        return answer

    PyArrowFile.create = stepped_create  # type: ignore[method-assign]
    SqlCatalog.commit_table = stepped_commit  # type: ignore[method-assign]
    publish(store, options, rows, day)
