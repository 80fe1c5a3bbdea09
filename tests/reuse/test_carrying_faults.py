"""What goes wrong while rows are looked up and taken over: the run computes them, and says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from support.faults.watched_store import LookUps, Trouble, WatchedStore
from support.runs.carried_runs import TODAY, YESTERDAY, Inputs
from support.runs.earlier_partitions import EarlierPartition

from pipeline.commit.layout import Layout
from pipeline.commit.published.rollback import history_numbers
from pipeline.commit.published.verify import verify_output
from pipeline.storage.store import Store


@pytest.fixture(scope="module")
def before(before: Path, inputs: Inputs) -> Path:
    if inputs.kind == "content":
        for path in inputs.photos.glob("[ac]/*.jpg"):
            os.utime(path)
    return before


def run_with(
    inputs: Inputs, before: Path, out: Path, look_ups: LookUps
) -> tuple[EarlierPartition, Store]:
    shutil.copytree(before, out)
    night = inputs.night(WatchedStore(str(out), watch=look_ups.watch))
    night.run()
    return night, Store(str(out))


def assert_published(night: EarlierPartition, store: Store, whole: EarlierPartition) -> None:
    ours, theirs = night.current(), whole.current()
    assert night.content() == whole.content()
    assert (ours.number, ours.fingerprint) == (3, theirs.fingerprint)
    assert (ours.row_id_hash, ours.distribution) == (theirs.row_id_hash, theirs.distribution)
    assert verify_output(store.uri, TODAY, {})["status"] == "ok"


def test_rows_come_from_three_versions(
    inputs: Inputs, before: Path, whole: EarlierPartition, tmp_path: Path
):
    look_ups = LookUps()
    night, store = run_with(inputs, before, tmp_path / "out", look_ups)
    assert_published(night, store, whole)
    assert history_numbers(store, Layout(TODAY)) == [2]
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
        assert any(each.startswith(what) for each in look_ups.done), (what, look_ups.done)


@pytest.mark.parametrize(
    "turn", [0, *(pytest.param(turn, marks=pytest.mark.slow) for turn in (1, 2, 3))]
)
@pytest.mark.slow
def test_a_look_up_that_fails_computes_the_rows_whichever_it_is(
    turn: int,
    inputs: Inputs,
    before: Path,
    whole: EarlierPartition,
    tmp_path: Path,
    empty_cache: Callable[[], None],
):
    """Each read, copy and pin fails in turn; with another trouble each time."""
    empty_cache()
    at, troubles = LookUps(), get_args(Trouble)
    run_with(inputs, before, tmp_path / "0", at)
    for number in range(1, len(at.done) + 1):
        empty_cache()
        out = tmp_path / str(number)
        look_ups = LookUps(number, troubles[(number + turn) % len(troubles)])
        night, store = run_with(inputs, before, out, look_ups)
        failed = look_ups.done[number - 1]
        assert_published(night, store, whole)
        assert history_numbers(store, Layout(TODAY)) == [2], failed
        shutil.rmtree(out)
