"""Promise: a fault at any step of a run that carries rows does not change its result.

The faults are those of `test_protocol.py`: the process is killed, suspended or fails, or an answer
is lost; then it runs again. In the end the version equals that of a run of all rows, its rows can
be carried, and nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pytest
from support.faults.faultplaces import FAULTS, POINTS, Disk, Point, make_place
from support.runs.carried_runs import TODAY, TOMORROW, YESTERDAY, assert_as
from support.runs.earlier_partitions import EarlierPartition
from support.runs.protocol import LONG_AGO_S, Children, assert_tidy
from support.runs.selection import quick_cases

from pipeline.commit.garbage import collect_garbage
from pipeline.commit.layout import Layout
from pipeline.commit.staging import list_staged, read_footer
from pipeline.storage.store import Store

pytestmark = [pytest.mark.usefixtures("impatient"), pytest.mark.early]
LAYOUT = Layout(TODAY)
PARTS = (f"{LAYOUT.predictions}/part-", f"{LAYOUT.quarantine}/part-")
USUAL = ("planned", "slice_put", "keys_written", "retired:2")
# One slice has all rows that are computed; half a file is there on a disk and on S3 alone.
STEPS = [replace(point, name=point.name.replace("put:2", "put")) for point in POINTS]
CASES = [
    *product(STEPS, FAULTS, ["local", "s3"]),
    *product(STEPS, ["stop"], ["local"]),
    *product((s for s in STEPS if s.name != "mid_put:3"), ["exit"], ["gcs", "azure"]),
]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, before: Path, children: Children) -> Disk:
    """The output in which the next version is published."""
    files = Store(str(before))
    content = {file.path: files.read_bytes(file.path) for file in files.list_files()}
    return make_place(request, tmp_path / "out", children, content)


def publish(photos: EarlierPartition, store: Store) -> None:
    photos.at(store).run()


def staged_rows(store: Store) -> int:
    """Computed rows that are staged for the next version of today, after garbage collection."""
    folders = store.list_folders(f"{LAYOUT.control}/staging")
    files = (f for folder in folders for f in list_staged(store, LAYOUT.staging(folder)).values())
    footers = (read_footer(store, file.path) for file in files)
    return sum(footer.num_rows - footer.num_carried for footer in footers)


def collect(store: Store) -> None:
    for partition in (YESTERDAY, TODAY):
        collect_garbage(store, Layout(partition), grace_s=LONG_AGO_S)


@pytest.mark.parametrize(
    ("point", "fault", "place"),
    quick_cases(CASES, lambda point, *how: how == ("exit", "local") and point.name in USUAL),
    indirect=["place"],
    ids=lambda value: value.name.replace(":", "-") if isinstance(value, Point) else value,
)
def test_a_fault_at_any_step_of_a_run_with_carried_rows_does_not_change_its_result(
    point: Point, fault: str, place: Disk, photos: EarlierPartition, whole: EarlierPartition
):
    store = place.store
    night = replace(photos, lease_ttl_s=1.0) if fault == "stop" else photos
    step: Callable[[Store], object] = partial(publish, night)
    if point.name == "mid_gc":
        step(store)
        store.put(f"{LAYOUT.staging('of another plan')}/notes.json", b"{}")
        step = collect
    is_done = place.act(fault, point, step) or point.is_committed

    # A reader sees one whole version: the old one up to the commit.
    seen = photos.at(store).current()
    assert seen.number == (3 if is_done else 2)
    parts = {part.path for part in seen.all_parts}
    files = {file.path for file in store.list_files() if file.path.startswith(PARTS)}
    assert files == parts if fault == "stop" else files >= parts

    # Again: the same result, and no row is computed that was staged.
    kept = staged_rows(store)
    again = photos.at(store)
    again.run()
    assert again.computed == [] if is_done else again.report()["rows"]["resumed"] == kept
    collect(store)
    assert_as(again, whole, YESTERDAY)
    assert_tidy(store, [1, 2, 3], LAYOUT)
    assert store.list_files(f"{LAYOUT.control}/staging") == []
    assert store.list_leftovers() == []

    # The next night carries rows of it.
    last = photos.at(store, TOMORROW)
    last.run()
    assert last.content() == whole.content()
    assert last.current().carried["sources"][0]["partition"] == TODAY
