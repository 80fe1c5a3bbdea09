"""No run is lost at any step of the commit protocol: killed, failing, or with a lost answer.

Each case publishes the next version of a partition that has a current one and one in its history,
on local disk and on a real S3 server, without Ray. Every promise of the protocol is checked after
the fault, after running again, and after late writes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import pyarrow as pa
import pytest
from support.faults.faultplaces import FAULTS, POINTS, Disk, Point, make_place
from support.runs.protocol import (
    FOLDERS,
    LAYOUT,
    Children,
    assert_readable,
    assert_tidy,
    collect,
    content,
    new_run,
    run_once,
    writer_of,
)
from support.runs.published import DAY, Rows, make_plan, slice_table, snapshot
from support.runs.selection import quick_cases

from pipeline.commit.layout import staged_name
from pipeline.commit.staging import list_staged
from pipeline.published.verify import verify_output
from pipeline.storage.store import Store

OLD, NEW, NEXT = Rows(2, num_slices=3), Rows(3, num_slices=4), Rows(4, num_slices=3)
pytestmark = [pytest.mark.usefixtures("impatient"), pytest.mark.early]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of a partition with a current version and one in its history."""
    store = Store(str(tmp_path_factory.mktemp("before")))
    for rows in (Rows(1), OLD):
        run_once(store, rows)
    return {file.path: store.read_bytes(file.path) for file in store.list_files()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.Table, pa.Table]:
    """What an uninterrupted run publishes."""
    store = Store(str(tmp_path_factory.mktemp("expected")))
    return content(store, run_once(store, NEW).manifest)


@pytest.fixture
def place(
    request: pytest.FixtureRequest, tmp_path: Path, before: dict[str, bytes], children: Children
) -> Disk:
    """Where the next version is to be published."""
    return make_place(request, tmp_path / "out", children, before)


def staged_rows(store: Store, rows: Rows) -> int:
    staged = list_staged(store, LAYOUT.staging(make_plan(rows).work))
    return sum(key.num_rows for key in staged)


def num_rows(rows: Rows) -> int:
    return rows.num_slices * rows.rows_per_slice


def what_readers_see(store: Store) -> dict[str, str]:
    return snapshot(store, *FOLDERS, LAYOUT.log, f"{LAYOUT.control}/history")


def assert_published(
    store: Store, expected: tuple[pa.Table, pa.Table], versions: list[int]
) -> None:
    """The new version is what an uninterrupted run makes, and nothing else lies beside it."""
    manifest = assert_readable(store)
    assert manifest is not None
    assert manifest.fingerprint == NEW.fingerprint
    assert content(store, manifest) == expected
    assert_tidy(store, versions)


def write_late(store: Store) -> None:
    """What a worker of a dead run may still do: stage its slice, with another outcome."""
    plan = make_plan(NEW)
    key = next(plan.slices())
    rows = slice_table(Rows(3, num_slices=4, fail_every=1), 0)
    writer_of(new_run(store), plan).write(key, {}, rows)


def is_quick(point: Point, fault: str, place: str) -> bool:
    """On a disk every step; in a bucket an answer that is lost around the commit."""
    at_commit = point.name in ("before_log", "after_log") and fault == "lost answer"
    return place == "local" or at_commit


@pytest.mark.parametrize(
    ("point", "fault", "place"),
    quick_cases(product(POINTS, FAULTS, ["local", "s3"]), is_quick),
    indirect=["place"],
    ids=lambda value: value.name.partition(":")[0] if isinstance(value, Point) else value,
)
def test_a_fault_at_any_step_does_not_change_the_published_result(
    point: Point, fault: str, place: Disk, expected: tuple[pa.Table, pa.Table]
):
    store = place.store
    step: Callable[[Store], object] = partial(run_once, rows=NEW)
    if point.name == "mid_gc":
        step(store)
        write_late(store)
        step = collect
    is_done = place.act(fault, point, step) or point.is_committed

    # A reader of the manifest sees one whole version: the old one up to the commit.
    seen = assert_readable(store)
    assert seen is not None
    assert seen.fingerprint == (NEW if is_done else OLD).fingerprint

    # Again: the same result, and no slice is computed that was staged.
    kept = staged_rows(store, NEW)
    again = run_once(store, NEW)
    assert again.num_computed == (0 if is_done else num_rows(NEW) - kept)
    assert_published(store, expected, [1, 2, 3])

    # Once more, late writers and garbage: no reader sees anything of it.
    settled = what_readers_see(store)
    assert run_once(store, NEW).num_computed == 0
    write_late(store)
    assert run_once(store, NEW).num_computed == 0
    collect(store)
    assert what_readers_see(store) == settled
    assert store.list_files(f"{LAYOUT.control}/staging") == []
    assert store.list_leftovers() == []
    verify_output(store.uri, DAY, dict(store.storage_options))

    # Other inputs take over nothing.
    assert run_once(store, NEXT).num_computed == num_rows(NEXT)
    verify_output(store.uri, DAY, dict(store.storage_options))


def test_the_outcome_of_the_winning_attempt_of_a_slice_counts(tmp_path: Path):
    store, plan = Store(str(tmp_path)), make_plan(NEW)

    def make(rows: Rows, index: int) -> pa.Table:
        """Another run stages the first slice meanwhile, under a name that comes first."""
        key = next(plan.slices())
        if index == 0:
            other = slice_table(Rows(3, num_slices=4, fail_every=2), 0)
            folder = LAYOUT.staging(plan.work)
            written = writer_of(new_run(store), plan).write(key, {}, other)
            store.copy(f"{folder}/{written.name}", f"{folder}/{staged_name(key, '0' * 12)}")
            store.delete([f"{folder}/{written.name}"])
        return slice_table(rows, index)

    manifest = run_once(store, NEW, make=make).manifest
    assert (manifest.num_predicted, manifest.num_quarantined) == (3 + 3 * 5, 3 + 3 * 1)
    verify_output(store.uri, DAY, {})
