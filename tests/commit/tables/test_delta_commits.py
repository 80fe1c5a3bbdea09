"""A Delta table names exactly the published parts, whatever is killed or done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from support.runs.checkout import PYTHONPATH
from support.runs.published import DAY, Rows, prepare_version, publish_rows, sink_of, snapshot
from support.runs.selection import quick_cases

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, current_manifest
from pipeline.commit.publish import commit, repair, sync_published_folder
from pipeline.commit.published.rollback import rollback
from pipeline.commit.tables.delta import table_of
from pipeline.core.environment import FAILPOINT
from pipeline.core.schema import CLASSIFY_FIELDS, prediction_schema
from pipeline.storage.store import Store

OTHER_DAY = "date=2026-11-25"
LAYOUT = Layout(DAY)
PLACES = ["before_log", "after_log", "before_table", "after_table", "before_current", "retired"]


def named_by_delta(store: Store) -> set[str]:
    actions = pa.table(DeltaTable(store.url("predictions")).get_add_actions())
    return {f"predictions/{unquote(path)}" for path in actions["path"].to_pylist()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def parts_of(*manifests: Manifest | None) -> set[str]:
    return {part.path for manifest in manifests if manifest for part in manifest.parts}


def test_readers_see_exactly_the_parts_of_what_is_current(store: Store):
    other = publish_rows(store, OTHER_DAY, Rows(1), table="delta")
    for edition in (1, 2, 3):
        manifest = publish_rows(store, DAY, Rows(edition), table="delta")
        assert named_by_delta(store) == parts_of(manifest, other)
    back = rollback(store, LAYOUT, "back", keep_versions=2, table=table_of(sink_of("delta"), store))
    assert named_by_delta(store) == parts_of(back, other)


def test_a_number_is_committed_once_and_an_older_one_never_comes_back(store: Store):
    first = publish_rows(store, DAY, Rows(1), table="delta")
    second = publish_rows(store, DAY, Rows(2), table="delta")
    before = snapshot(store, "")
    table = table_of(sink_of("delta"), store)
    assert table is not None
    for manifest in (second, first):
        table.commit(LAYOUT, manifest)
        assert snapshot(store, "") == before
    sync_published_folder(store, LAYOUT, second, 2, table=table)
    assert snapshot(store, "") == before


def test_a_table_asked_for_later_begins_with_what_is_current(store: Store):
    publish_rows(store, DAY, Rows(1))
    manifest = publish_rows(store, DAY, Rows(2))
    table = table_of(sink_of("delta"), store)
    assert table is not None
    table.require(LAYOUT, {}, prediction_schema([], CLASSIFY_FIELDS))
    repair(store, LAYOUT, 2, table=table)
    assert named_by_delta(store) == parts_of(manifest)


PUBLISH = """
import sys
from support.runs.published import Rows, publish_rows
from pipeline.storage.store import Store
publish_rows(Store(sys.argv[1]), rows=Rows(2), table="delta")
"""


@pytest.mark.parametrize(
    "place", quick_cases(((place,) for place in PLACES), lambda place: place in PLACES[1:3])
)
def test_killed_anywhere_and_done_again_it_is_committed_once(place: str, store: Store):
    publish_rows(store, DAY, Rows(1), table="delta")
    # A run first settles what is current, and there passes the last places, too.
    nth = 2 if place in PLACES[3:] else 1
    done = subprocess.run(
        [sys.executable, "-c", PUBLISH, store.uri],
        env={
            **os.environ,
            FAILPOINT: f"{place}:kill:{nth}",
            "PYTHONPATH": PYTHONPATH,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    publish_rows(store, DAY, Rows(2), table="delta")
    manifest = current_manifest(store, LAYOUT)
    assert named_by_delta(store) == parts_of(manifest)
    before = snapshot(store, "")
    publish_rows(store, DAY, Rows(2), table="delta")
    assert snapshot(store, "") == before


def test_of_two_that_commit_one_number_it_is_there_once(store: Store):
    manifest, folder = prepare_version(store, LAYOUT, Rows(1), 1, "ours")
    placed = commit(store, LAYOUT, manifest, folder)
    for _ in range(2):
        table = table_of(sink_of("delta"), store)
        assert table is not None
        table.commit(LAYOUT, placed)
    assert named_by_delta(store) == parts_of(placed)
