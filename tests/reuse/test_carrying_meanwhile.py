"""Promise: a version replaced while its rows are carried costs no row; of two runs one wins."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import models
import pytest
from support.faults.watched_store import Event, WatchedStore
from support.runs.carried_runs import TODAY, YESTERDAY, assert_as, change, without
from support.runs.earlier_partitions import EarlierPartition
from support.runs.protocol import assert_tidy

from pipeline.commit.garbage import collect_garbage
from pipeline.commit.layout import Layout
from pipeline.commit.lease import release_lost
from pipeline.commit.manifest import log_numbers
from pipeline.commit.publish import rollback
from pipeline.core.errors import InfraError, PartitionBusy, PublishConflict
from pipeline.published.verify import verify_output
from pipeline.storage.store import Store

SOURCE = Layout(YESTERDAY)
OTHER = {"transform": {**models.TRANSFORM, "size_px": 16}}
LOOKS = r"open predictions/date=2026-11-24/"
"""The first read of rows of yesterday's version."""


@pytest.fixture(scope="module")
def reuse() -> str:
    return "inputs"


@pytest.fixture(scope="module")
def before(photos: EarlierPartition, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of yesterday, of which a version was replaced; the input has changed since."""
    out = Store(str(tmp_path_factory.mktemp("before")))
    with without(photos, "c"):
        photos.at(out, YESTERDAY).run()
    photos.at(out, YESTERDAY).run()
    change(photos, "a/900.jpg", "b/002.jpg")
    return Path(out.uri)


@pytest.fixture
def out(before: Path, tmp_path: Path) -> Store:
    shutil.copytree(before, tmp_path / "out")
    return Store(str(tmp_path / "out"))


def replace_source(
    photos: EarlierPartition, out: Store, *, keep_versions: int = 0, times: int = 1
) -> None:
    """Publish other predictions in place of yesterday's."""
    for size_px in range(16, 16 + times):
        transform = {**models.TRANSFORM, "size_px": size_px}
        photos.at(out, YESTERDAY, transform=transform, sink={"keep_versions": keep_versions}).run()


@pytest.mark.parametrize(
    "how",
    [
        *("retired", "trimmed", "trimmed before", "taken back", "collected"),
        pytest.param("replaced twice", marks=pytest.mark.slow),
    ],
)
def test_rows_of_a_version_replaced_while_it_is_read_are_carried_or_computed(
    how: str, photos: EarlierPartition, out: Store, whole: EarlierPartition
):
    acts: dict[str, Callable[[], object]] = {
        "retired": lambda: replace_source(photos, out, keep_versions=1),
        "trimmed": lambda: replace_source(photos, out),
        "replaced twice": lambda: replace_source(photos, out, times=2),
        "taken back": lambda: rollback(out, SOURCE, "by-hand", keep_versions=0, to_number=1),
        "collected": lambda: [collect_garbage(out, Layout(p), grace_s=3600.0)
                              for p in (YESTERDAY, TODAY)],
    }  # fmt: skip
    before = r"put _control/date=2026-11-25/plan/" if how.endswith("before") else LOOKS
    event = Event(before, acts[how.removesuffix(" before")])
    night = photos.at(WatchedStore(out.uri, watch=event.watch))
    night.run()
    assert event.has_happened
    assert_as(night, whole, YESTERDAY)
    assert bool(night.current().carried) == (how in ("retired", "collected"))


@pytest.mark.parametrize("other", [False, True], ids=["same rows", "other predictions"])
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(r"put _control/date=2026-11-25/staging/", marks=pytest.mark.slow),
        LOOKS,
        pytest.param(r"put .*/keys/", marks=pytest.mark.slow),
        pytest.param(r"copy _control/.*/compacted-", marks=pytest.mark.slow),
        r"create .*/log/",
    ],
    ids=["staging", "reading", "keys", "placing", "log"],
)
def test_one_of_two_runs_that_carry_rows_wins_and_the_other_leaves_nothing(
    moment: str, other: bool, photos: EarlierPartition, out: Store, whole: EarlierPartition
):
    """One run is suspended, loses its lease, and goes on after another run has published."""
    second = photos.at(out, **(OTHER if other else {}))

    def overtake() -> None:
        assert first.record is not None
        release_lost(out, Layout(TODAY), first.record.run_id, InfraError("suspended"))
        second.run()

    event = Event(moment, overtake)
    first = photos.at(WatchedStore(out.uri, watch=event.watch))
    lost = pytest.raises((PartitionBusy, PublishConflict)) if other else suppress(PartitionBusy)
    with lost:
        first.run()
    assert event.has_happened
    assert log_numbers(out, Layout(TODAY)) == [1]
    assert verify_output(out.uri, TODAY, {})["status"] == "ok"
    assert other or second.content() == whole.content()
    # The one that lost is run again.
    again = photos.at(out)
    again.run()
    assert_as(again, whole, YESTERDAY)
    for partition in (YESTERDAY, TODAY):
        collect_garbage(out, Layout(partition), grace_s=-3600.0)
    assert out.list_files(f"{Layout(TODAY).control}/staging") == []
    assert_tidy(out, [1, 2] if other else [1], Layout(TODAY))
