"""What holds for every table format, also for one that another distribution brings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pytest
import toy_package
import toy_table
from deltalake import DeltaTable
from support.runs.checkout import PYTHONPATH
from support.runs.published import DAY, Rows, prepare_version, publish_rows, sink_of, snapshot
from support.runs.selection import quick_cases

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, current_manifest
from pipeline.commit.publish import commit, repair, sync_published_folder
from pipeline.commit.published.rollback import rollback
from pipeline.commit.tables import table_of
from pipeline.core.environment import FAILPOINT
from pipeline.core.errors import JobError
from pipeline.core.registry import TABLES, load, names
from pipeline.core.schema import CLASSIFY_FIELDS, prediction_schema
from pipeline.storage.store import Store

OTHER_DAY = "date=2026-11-25"
LAYOUT = Layout(DAY)
PLACES = ["before_log", "after_log", "before_table", "after_table", "before_current", "retired"]
TOYS = {"pipeline.tables": {"part-list": "toy_table:PartList", "broken": "toy_table:Nothing"}}


def named_by_delta(store: Store) -> set[str]:
    actions = pa.table(DeltaTable(store.url("predictions")).get_add_actions())
    return {f"predictions/{unquote(path)}" for path in actions["path"].to_pylist()}


NAMED: dict[str, Callable[[Store], set[str]]] = {
    "delta": named_by_delta,
    "part-list": toy_table.listed,
}
"""Table -> the parts that a reader of it sees."""
ALL = pytest.mark.parametrize("name", NAMED)


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = toy_package.install(tmp_path / "site", TOYS)
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def parts_of(*manifests: Manifest | None) -> set[str]:
    return {part.path for manifest in manifests if manifest for part in manifest.parts}


def test_every_table_is_tried_here():
    assert set(names(TABLES)) == {*NAMED, "broken"}
    with pytest.raises(JobError, match=r"'broken': toy_table:Nothing of toys 1\.0 cannot be"):
        load(TABLES, "broken")


@ALL
def test_readers_see_exactly_the_parts_of_what_is_current(name: str, store: Store):
    other = publish_rows(store, OTHER_DAY, Rows(1), table=name)
    for edition in (1, 2, 3):
        manifest = publish_rows(store, DAY, Rows(edition), table=name)
        assert NAMED[name](store) == parts_of(manifest, other)
    back = rollback(store, LAYOUT, "back", keep_versions=2, table=table_of(sink_of(name), store))
    assert NAMED[name](store) == parts_of(back, other)


@ALL
def test_a_number_is_committed_once_and_an_older_one_never_comes_back(name: str, store: Store):
    first = publish_rows(store, DAY, Rows(1), table=name)
    second = publish_rows(store, DAY, Rows(2), table=name)
    before = snapshot(store, "")
    table = table_of(sink_of(name), store)
    assert table is not None
    for manifest in (second, first):
        table.commit(LAYOUT, manifest)
        assert snapshot(store, "") == before
    sync_published_folder(store, LAYOUT, second, 2, table=table)
    assert snapshot(store, "") == before


@ALL
def test_a_table_asked_for_later_begins_with_what_is_current(name: str, store: Store):
    publish_rows(store, DAY, Rows(1))
    manifest = publish_rows(store, DAY, Rows(2))
    table = table_of(sink_of(name), store)
    assert table is not None
    table.require(LAYOUT, {}, prediction_schema([], CLASSIFY_FIELDS))
    repair(store, LAYOUT, 2, table=table)
    assert NAMED[name](store) == parts_of(manifest)


def test_its_options_arrive_and_wrong_ones_are_refused(store: Store):
    table = table_of(sink_of("part-list", folder="predictions/_lists"), store)
    assert table is not None
    table.commit(LAYOUT, publish_rows(store, DAY, Rows(1)))
    assert store.exists(f"predictions/_lists/{LAYOUT.name}/000001")
    with pytest.raises(ValueError, match=r"table_options\.place: unknown key"):
        sink_of("part-list", place="x")
    with pytest.raises(ValueError, match="table_options has no effect with table 'delta'"):
        sink_of("delta", place="x")
    with pytest.raises(ValueError, match="table_options has no effect with no table"):
        sink_of(None, place="x")


PUBLISH = """
import json, sys
from support.runs.published import Rows, publish_rows
from pipeline.storage.store import Store
uri, name = json.loads(sys.argv[1])
publish_rows(Store(uri), rows=Rows(2), table=name)
"""


@ALL
@pytest.mark.parametrize(
    "place", quick_cases(((place,) for place in PLACES), lambda place: place in PLACES[1:3])
)
def test_killed_anywhere_and_done_again_it_is_committed_once(
    name: str, place: str, store: Store, site: Path
):
    publish_rows(store, DAY, Rows(1), table=name)
    # A run first settles what is current, and there passes the last places, too.
    nth = 2 if place in PLACES[3:] else 1
    done = subprocess.run(
        [sys.executable, "-c", PUBLISH, json.dumps([store.uri, name])],
        env={
            **os.environ,
            FAILPOINT: f"{place}:kill:{nth}",
            "PYTHONPATH": f"{PYTHONPATH}{os.pathsep}{site}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    publish_rows(store, DAY, Rows(2), table=name)
    manifest = current_manifest(store, LAYOUT)
    assert NAMED[name](store) == parts_of(manifest)
    before = snapshot(store, "")
    publish_rows(store, DAY, Rows(2), table=name)
    assert snapshot(store, "") == before


@ALL
def test_of_two_that_commit_one_number_it_is_there_once(name: str, store: Store):
    manifest, folder = prepare_version(store, LAYOUT, Rows(1), 1, "ours")
    placed = commit(store, LAYOUT, manifest, folder)
    for _ in range(2):
        table = table_of(sink_of(name), store)
        assert table is not None
        table.commit(LAYOUT, placed)
    assert NAMED[name](store) == parts_of(placed)
