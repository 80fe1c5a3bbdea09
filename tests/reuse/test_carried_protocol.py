"""The commit protocol of a run that carries rows over, at each of its steps.

As `test_protocol.py`: the process is killed, it fails, or an answer is lost; then it is run again.
What is published in the end is what a run of all rows publishes, rows of it can be carried on, and
nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import pytest
from support.faults.faultplaces import COPY, CREATE, DELETE, PUT, Bucket, Disk, Point
from support.runs.carried_runs import TODAY, TOMORROW, YESTERDAY, Inputs, run_night
from support.runs.earlier_partitions import EarlierPartition
from support.runs.protocol import LONG_AGO_S, Children
from support.runs.selection import quick_cases

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import current_manifest, log_numbers, read_manifest
from pipeline.commit.published.garbage import collect_garbage
from pipeline.commit.published.rollback import history_numbers
from pipeline.commit.published.verify import verify_output
from pipeline.commit.staging import list_staged, read_footer
from pipeline.storage.store import Store

pytestmark = [pytest.mark.usefixtures("impatient"), pytest.mark.early]
LAYOUT = Layout(TODAY)
POINTS = (
    Point("leased", CREATE, r"/lease/\d+\.json"),
    Point("planned", CREATE, r"/plan/"),
    Point("slice_put", PUT, r"/staging/\w+/000000-\d+-\d+z?-"),
    Point("tiled", PUT, r"/compacted-[\w-]+/predictions/"),
    Point("judged", COPY, r"/compacted-[\w-]+/predictions/"),
    Point("keys_written", PUT, r"/keys/[\w-]+/shards"),
    Point("compacted", COPY, r"predictions/[^/]+/part-"),
    Point("placed_part", COPY, r"quarantine/[^/]+/part-"),
    Point("before_log", CREATE, r"/log/"),
    Point("after_log", COPY, r"/history/", is_committed=True),
    Point("before_current:2", PUT, r"/current\.json", is_committed=True),
    Point("kept", DELETE, r"predictions/[^/]+/part-", is_committed=True),
    Point("retired:2", DELETE, r"/history/", is_committed=True),
    Point("trimmed:2", DELETE, r"/history/", is_committed=True),
    Point("unstaged", DELETE, r"/staging/", is_committed=True),
    Point("mid_gc", DELETE, r"/staging/", is_committed=True),
)
USUAL = (
    "planned",
    "slice_put",
    "judged",
    "keys_written",
    "placed_part",
    "after_log",
    "retired",
)


@pytest.fixture(scope="module")
def work_rows(inputs: Inputs, before: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many rows an undisturbed run reads."""
    store = Store(str(tmp_path_factory.mktemp("undisturbed")))
    put_all(store, before)
    night = inputs.night(store)
    night.run()
    assert night.current().carried["rows"] > 30
    return len(night.computed)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, before: Path, children: Children) -> Disk:
    """Where the next version is to be published."""
    place = Disk(tmp_path / "out", children)
    if request.param == "s3":
        place = Bucket(*map(request.getfixturevalue, ("s3", "proxy", "children")))
    elif request.param != "local":
        place.store = request.getfixturevalue(request.param).store()
    put_all(place.store, before)
    return place


def put_all(store: Store, before: Path) -> None:
    files = Store(str(before))
    with ThreadPoolExecutor(8) as pool:
        put = pool.map(lambda f: store.put(f.path, files.read_bytes(f.path)), files.list_files())
        assert list(put)


def staged_rows(store: Store) -> int:
    """Computed rows that are staged for today's next version; what was staged is collected."""
    folders = store.list_folders(f"{LAYOUT.control}/staging")
    files = (f for folder in folders for f in list_staged(store, LAYOUT.staging(folder)).values())
    footers = (read_footer(store, file.path) for file in files)
    return sum(footer.num_rows - footer.num_carried for footer in footers)


def collect(store: Store) -> None:
    for partition in (YESTERDAY, TODAY):
        collect_garbage(store, Layout(partition), grace_s=LONG_AGO_S)


def assert_published(store: Store, whole: EarlierPartition) -> None:
    """The new version is what a run of all rows makes, and nothing else lies beside it."""
    ours = current_manifest(store, LAYOUT)
    assert ours is not None
    assert (ours.fingerprint, ours.row_id_hash, ours.distribution) == (
        whole.current().fingerprint, whole.current().row_id_hash, whole.current().distribution
    )  # fmt: skip
    assert log_numbers(store, LAYOUT) == [1, 2, 3]
    assert history_numbers(store, LAYOUT) == [2]
    kept = {read_manifest(store, LAYOUT, number).keys["folder"] for number in (2, 3)}
    assert {f.path.rpartition("/")[0] for f in store.list_files(LAYOUT.all_keys)} == kept
    options = dict(store.storage_options)
    for partition in (YESTERDAY, TODAY):
        assert verify_output(store.uri, partition, options)["status"] == "ok"


def is_quick(point: Point, fault: str, place: str) -> bool:
    return place == "local" and fault == "exit" and point.name in USUAL


def cases() -> list[tuple[Point, str, str]]:
    faults = product(POINTS, ["exit", "raise", "lost answer"], ["local", "s3"])
    return [*faults, *product(POINTS, ["exit"], ["gcs", "azure"])]


@pytest.mark.parametrize(
    ("point", "fault", "place"),
    quick_cases(cases(), is_quick),
    indirect=["place"],
    ids=lambda value: value.name.replace(":", "-") if isinstance(value, Point) else value,
)
def test_a_fault_at_any_step_of_a_run_with_carried_rows_changes_nothing_in_the_end(
    point: Point, fault: str, place: Disk, inputs: Inputs, whole: EarlierPartition, work_rows: int
):
    store = place.store
    step: Callable[[Store], object] = partial(run_night, inputs)
    if point.name == "mid_gc":
        step(store)
        store.put(LAYOUT.ctimes("of another plan", "late"), b"{}")
        step = collect
    act = {"exit": place.die_at, "raise": place.fail_at, "lost answer": place.lose_at}[fault]
    is_done = act(point, step) or point.is_committed

    # A reader sees one whole version: the old one up to the commit.
    seen = current_manifest(store, LAYOUT)
    assert seen is not None
    assert seen.number == (3 if is_done else 2)
    for part in seen.all_parts:
        assert store.exists(part.path)

    # Again: the same result, and no row is computed that was staged.
    kept = staged_rows(store)
    again = inputs.night(store)
    again.run()
    assert len(again.computed) == (0 if is_done else work_rows - kept)
    assert again.content() == whole.content()
    collect(store)
    assert_published(store, whole)
    assert store.list_files(f"{LAYOUT.control}/staging") == []
    assert store.list_leftovers() == []

    # The next night carries rows of it.
    last = inputs.night(store, TOMORROW)
    last.run()
    assert last.content() == whole.content()
    assert last.current().carried["sources"][0]["partition"] == TODAY
