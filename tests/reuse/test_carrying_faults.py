"""Promise: if a look-up or a version fails, its rows are computed and the report says so."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import get_args

import pytest
from support.faults.watched_store import LookUps, Trouble, WatchedStore
from support.runs.carried_runs import TODAY, YESTERDAY, assert_as
from support.runs.earlier_partitions import EarlierPartition

from pipeline.commit.layout import Layout
from pipeline.commit.publish import history_numbers
from pipeline.runs.staleness import survey_job
from pipeline.storage.store import Store


def run_with(
    photos: EarlierPartition, before: Path, out: Path, whole: EarlierPartition, look_ups: LookUps
) -> EarlierPartition:
    """Publish the next version; whatever fails, it equals that of a run of all rows."""
    shutil.copytree(before, out)
    night = photos.at(WatchedStore(str(out), watch=look_ups.watch))
    night.run()
    night.out = Store(str(out))  # later reads are not look-ups
    assert_as(night, whole)
    assert night.current().number == 3
    assert history_numbers(night.out, Layout(TODAY)) == [2]
    return night


def test_rows_come_from_three_versions(
    photos: EarlierPartition, before: Path, whole: EarlierPartition, tmp_path: Path
):
    look_ups = LookUps()
    night = run_with(photos, before, tmp_path / "out", whole, look_ups)
    sources = night.current().carried["sources"]
    assert [(source["partition"], source["version"]) for source in sources] == [
        (TODAY, 2), (TODAY, 1), (YESTERDAY, 1)
    ]  # fmt: skip
    for what in (
        "list _control/date=2026-11-25/history",
        "read _control/date=2026-11-25/log/",
        "read _control/date=2026-11-25/keys/",
        "read _control/date=2026-11-24/keys/",
        "open predictions/date=2026-11-24/",
        "open _control/date=2026-11-25/history/",
    ):
        assert any(done.startswith(what) for done in look_ups.done), (what, look_ups.done)


@pytest.mark.parametrize(
    ("partition", "number", "carried_from"),
    [(TODAY, 1, (TODAY, 2)), (TODAY, 2, (YESTERDAY, 1)), (YESTERDAY, 1, (TODAY, 2))],
)
def test_nothing_is_carried_from_a_version_with_a_damaged_log_entry(
    partition: str,
    number: int,
    carried_from: tuple[str, int],
    photos: EarlierPartition,
    before: Path,
    whole: EarlierPartition,
    tmp_path: Path,
):
    """Nor from earlier ones in its partition, which it may have taken back."""
    night = photos.at(Store(str(shutil.copytree(before, tmp_path / "out"))))
    entry = Layout(partition).log_entry(number)
    night.out.put(entry, night.out.read_bytes(entry)[:-9])
    night.out.delete([Layout(partition).current])
    would = survey_job(night.job, night.new_run().options).a_run_would
    assert would is not None
    assert would.startswith("replace version 2")
    night.run()
    assert_as(night, whole)
    first = night.current().carried["sources"][0]
    assert (first["partition"], first["version"]) == carried_from
    names = [
        (source["partition"], source["version"]) for source in night.current().carried["sources"]
    ]
    assert (partition, number) not in names
    assert night.current().number == 3


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.slow
def test_rows_of_a_failed_look_up_are_computed(
    turn: int,
    photos: EarlierPartition,
    before: Path,
    whole: EarlierPartition,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Each read, copy and pin fails in turn, each with another error."""
    at, troubles = LookUps(), get_args(Trouble)
    run_with(photos, before, tmp_path / "0", whole, at)
    for number in range(1, len(at.done) + 1):
        out = tmp_path / str(number)
        monkeypatch.setenv("XDG_CACHE_HOME", f"{out}-cache")
        run_with(photos, before, out, whole, LookUps(number, troubles[(number + turn) % 4]))
        shutil.rmtree(out)
