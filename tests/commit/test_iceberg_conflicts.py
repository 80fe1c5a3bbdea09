"""Promise: kills, races and other writers lose and double nothing in the Iceberg table."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitStateUnknownException
from pyiceberg.table import Table
from pyiceberg.types import StringType
from sqlalchemy import Engine, event
from support.inputs.iceberg_tables import delete_rows
from support.runs.iceberg_sink import (
    TABLE,
    assert_exact,
    good,
    named_by,
    names,
    newest,
    options_at,
    publish,
    publish_until,
    read,
    versions_of,
    with_rows,
)
from support.runs.protocol import Children
from support.runs.published import (
    DAY,
    Rows,
    prepare_version,
    snapshot,
)

from pipeline.commit import publish as publishing
from pipeline.commit import sink_table
from pipeline.commit.layout import Layout, part_target
from pipeline.commit.publish import commit, repair, sync_published_folder
from pipeline.core.errors import InfraError, JobError, PipelineError
from pipeline.core.schema import CLASSIFY_FIELDS, prediction_schema
from pipeline.job.job import TableOptions
from pipeline.published.verify import verify_output
from pipeline.storage.store import Store

pytestmark = [pytest.mark.no_ray, pytest.mark.early]

LAYOUT, OTHER_DAY = Layout(DAY), "date=2026-11-25"


# ---------------------------------------------------------------- kills and races

SLOW = pytest.mark.slow
POINTS = [
    "before_log",
    "after_log",
    "before_table",
    "after_table",
    *(
        pytest.param(name, marks=SLOW)
        for name in ("placed_part", "before_current", "before_success", "kept", "retired")
    ),
]


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_publication_is_finished_by_the_next_run(
    point: str, usual_store: Store, options: TableOptions, children: Children
):
    store = usual_store
    publish(store, options, Rows(3), OTHER_DAY)
    publish(store, options, Rows(1))
    child = children.start(publish, store, options, Rows(2), point=f"{point}:kill:1")
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert read(newest(store, options), OTHER_DAY) == good(Rows(3))
    manifest = publish(store, options, Rows(2))
    assert manifest.number == 2
    table = newest(store, options)
    assert read(table, DAY) == good(Rows(2))
    assert read(table, OTHER_DAY) == good(Rows(3))
    assert versions_of(table) == ["1", "1", "2"], "once, whatever was killed"
    verify_output(store.uri, None, dict(store.storage_options))


@pytest.mark.slow
def test_a_kill_at_any_step_of_the_commit_leaves_one_of_two_versions(
    any_store: Store, options: TableOptions, children: Children
):
    """Its files, and the entry of the catalog, for the first version and for a replacement."""
    store = any_store
    was_killed, num_kills = True, 0
    publish(store, options, Rows(3), OTHER_DAY)
    for edition in range(1, 100):
        rows = Rows(edition)
        old = read(newest(store, options), DAY)
        child = children.start(publish_until, edition, store, options, rows, DAY, point="none:kill")
        child.join(120)
        was_killed = child.exitcode == -signal.SIGKILL
        assert was_killed or child.exitcode == 0
        assert read(newest(store, options), DAY) in (old, good(rows))
        publish(store, options, rows)
        assert read(newest(store, options), DAY) == good(rows)
        assert versions_of(newest(store, options))[1:] == [str(n) for n in range(1, edition + 1)]
        if not was_killed:
            break
        num_kills += 1
    assert num_kills >= 6, "manifests, their list, the metadata, before and after the catalog"
    verify_output(store.uri, None, dict(store.storage_options))


@pytest.mark.slow
def test_one_of_many_writers_commits_a_version(any_store: Store, options: TableOptions):
    publish(any_store, options, Rows(1))
    ours, folder = prepare_version(any_store, LAYOUT, Rows(2), 2, "ours")
    placed = commit(any_store, LAYOUT, ours, folder)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: names(any_store, options).commit(LAYOUT, placed), range(4)))
    sync_published_folder(any_store, LAYOUT, placed, 2, table=names(any_store, options))
    table = newest(any_store, options)
    assert versions_of(table) == ["1", "2"]
    assert read(table) == good(Rows(2))


def test_an_older_run_that_commits_at_once_with_a_newer_one_never_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The table has no file of the partition yet, so no missing file tells the older one.

    With this property of the table the library would try again, and find no conflict.
    """
    more = {"properties": {"write.delete.isolation-level": "snapshot"}}
    store, options = Store(str(tmp_path / "out")), options_at(f"{tmp_path}/catalog.db", **more)
    publish(store, options, Rows(9), OTHER_DAY)
    placed = []
    for number in (1, 2):
        manifest, folder = prepare_version(store, LAYOUT, Rows(number), number, f"run-{number}")
        placed.append(commit(store, LAYOUT, manifest, folder))

    def newer_first(point: str) -> None:
        monkeypatch.undo()
        assert point == "before_table"
        names(store, options).commit(LAYOUT, placed[1])

    monkeypatch.setattr(sink_table, "failpoint", newer_first)
    names(store, options).commit(LAYOUT, placed[0])
    table = newest(store, options)
    assert read(table, DAY) == good(Rows(2))
    assert versions_of(table) == ["1", "2"]


def test_partitions_published_at_once_are_all_committed(usual_store: Store, options: TableOptions):
    days = [f"date=2026-11-{day}" for day in range(10, 14)]
    with ThreadPoolExecutor(len(days)) as pool:
        for edition in (1, 2):
            list(pool.map(partial(publish, usual_store, options, Rows(edition)), days))
    table = newest(usual_store, options)
    rows = table.scan().select("edition").to_arrow()
    assert rows.num_rows == len(days) * len(good(Rows(2)))
    assert set(rows["edition"].to_pylist()) == {2}
    assert sorted(versions_of(table)) == ["1"] * len(days) + ["2"] * len(days)


def test_a_catalog_that_another_run_creates_at_once_is_opened(
    tmp_path: Path, options: TableOptions
):
    store, others = Store(str(tmp_path / "out")), list[str]()

    def other_first(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not others and statement.strip().startswith("CREATE TABLE"):
            others.append(statement)
            SqlCatalog("other", uri=f"sqlite:///{tmp_path}/catalog.db")

    event.listen(Engine, "before_cursor_execute", other_first)
    try:
        assert names(store, options).open() is None
    finally:
        event.remove(Engine, "before_cursor_execute", other_first)
    assert others


def test_a_lost_answer_of_the_catalog_is_no_second_commit(
    tmp_path: Path, options: TableOptions, monkeypatch: pytest.MonkeyPatch
):
    store, real = Store(str(tmp_path / "out")), SqlCatalog.commit_table
    publish(store, options, Rows(1))

    def lost(*arguments: Any) -> Any:
        real(*arguments)
        monkeypatch.undo()
        raise CommitStateUnknownException("the connection broke")

    monkeypatch.setattr(SqlCatalog, "commit_table", lost)
    assert_exact(store, options, publish(store, options, Rows(2)), Rows(2), 2)


def test_a_commit_that_keeps_failing_reports_that_the_version_is_published(
    tmp_path: Path, options: TableOptions, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sink_table, "_TRIES", 2)
    store = Store(str(tmp_path / "out"))
    publish(store, options, Rows(1))

    def fail(*_: Any) -> Any:
        raise CommitStateUnknownException("the server is away")

    real = SqlCatalog.commit_table
    monkeypatch.setattr(SqlCatalog, "commit_table", fail)
    with pytest.raises(InfraError, match=r"^version 2 of date=2026-11-24 is published, but"):
        publish(store, options, Rows(2))
    monkeypatch.setattr(SqlCatalog, "commit_table", real)
    repair(store, LAYOUT, 2, table=names(store, options))
    assert read(newest(store, options)) == good(Rows(2))


# ---------------------------------------------------------------- other writers


def append_here(table: Table) -> None:
    table.append(table.scan().to_arrow().slice(0, 3))


def append_elsewhere(table: Table) -> None:
    rows = table.scan().to_arrow().slice(0, 3)
    index = rows.schema.get_field_index("date")
    table.append(rows.set_column(index, "date", pa.array(["2020-01-01"] * 3)))


def add_a_column(table: Table) -> None:
    with table.update_schema() as update:
        update.add_column("note", StringType())


def delete_the_partition(table: Table) -> None:
    table.delete("date == '2026-11-24'")


def rewrite_without_rows(table: Table) -> None:
    table.delete("label == 'cat' and date == '2026-11-24'")


def delete_by_position(table: Table) -> None:
    delete_rows(table, {next(iter(table.scan().plan_files())).file.file_path: [0, 2]})


WRITERS = (
    append_here,
    append_elsewhere,
    add_a_column,
    delete_the_partition,
    rewrite_without_rows,
    delete_by_position,
)
MOMENTS = ("before_log", "after_log", "before_table", "after_table", "before_current", "retired")


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(name, marks=[] if name in ("before_table", "after_table") else SLOW)
        for name in MOMENTS
    ],
)
@pytest.mark.parametrize("act", WRITERS)
def test_what_another_writer_commits_at_any_step_loses_and_doubles_nothing(
    act: Callable[[Table], None],
    moment: str,
    tmp_path: Path,
    options: TableOptions,
    monkeypatch: pytest.MonkeyPatch,
):
    store, acted = Store(str(tmp_path / "out")), []
    publish(store, options, Rows(1))

    def at(point: str) -> None:
        if point == moment and not acted:
            acted.append(point)
            act(newest(store, options))

    for module in (publishing, sink_table):
        monkeypatch.setattr(module, "failpoint", at)
    manifest = publish(store, options, Rows(2))
    assert acted
    repair(store, LAYOUT, 2, table=names(store, options))
    table = newest(store, options)
    assert read(table, DAY) == good(Rows(2))
    elsewhere = 3 if act is append_elsewhere else 0
    assert table.scan().to_arrow().num_rows == len(good(Rows(2))) + elsewhere, "theirs stay"
    assert ("note" in table.schema().column_names) == (act is add_a_column)
    assert {path for path in named_by(store, table) if part_target(path)} == with_rows(manifest)
    assert {*versions_of(table)} == {"1", "2"}
    verify_output(store.uri, DAY, {})


@pytest.mark.parametrize("act", [append_here, delete_the_partition, delete_by_position])
def test_verify_names_what_another_writer_changed(
    act: Callable[[Table], None], tmp_path: Path, options: TableOptions
):
    store = Store(str(tmp_path / "out"))
    manifest = publish(store, options, Rows(1))
    act(newest(store, options))
    with pytest.raises(PipelineError, match=r"checks: table: .*; run the job again, with sink\.ta"):
        verify_output(store.uri, DAY, {})
    assert repair(store, LAYOUT, 2, table=names(store, options)) == manifest
    verify_output(store.uri, DAY, {})
    assert read(newest(store, options)) == good(Rows(1))


def test_a_table_of_another_history_is_refused_until_it_is_dropped(
    usual_store: Store, options: TableOptions
):
    for edition in (1, 2, 3):
        publish(usual_store, options, Rows(edition))
    usual_store.delete([file.path for file in usual_store.list_files("_control")])
    before = snapshot(usual_store, "")
    schema = prediction_schema(list(Rows(4).pass_through), CLASSIFY_FIELDS)
    refused = r"has version 3 of date=2026-11-24, .* is {}: .*Drop the table without its files"
    with pytest.raises(JobError, match=refused.format(0)):
        names(usual_store, options).require(LAYOUT, {}, schema)
    assert snapshot(usual_store, "") == before
    with pytest.raises(JobError, match=refused.format(1)):
        publish(usual_store, options, Rows(4))
    newest(usual_store, options).catalog.drop_table(TABLE)
    names(usual_store, options).require(LAYOUT, {}, schema)
    publish(usual_store, options, Rows(4))
    assert read(newest(usual_store, options)) == good(Rows(4))
