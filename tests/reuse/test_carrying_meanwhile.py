"""What becomes of versions while rows of them are carried, and of runs that are overtaken."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import models
import pytest
from support.faults.watched_store import Event, WatchedStore
from support.runs.carried_runs import TODAY, YESTERDAY, Inputs
from support.runs.earlier_partitions import EarlierPartition

from pipeline.commit.layout import Layout
from pipeline.commit.lease import release_lost
from pipeline.commit.manifest import log_numbers, read_manifest
from pipeline.commit.published.garbage import collect_garbage
from pipeline.commit.published.rollback import rollback
from pipeline.commit.published.verify import verify_output
from pipeline.core.errors import InfraError, PartitionBusy, PublishConflict
from pipeline.storage.store import Store

SOURCE = Layout(YESTERDAY)
OTHER = {"transform": {**models.TRANSFORM, "size_px": 16}}
LOOKS = r"open predictions/date=2026-11-24/"
"""Rows of yesterday's version are about to be read."""


@pytest.fixture(scope="module")
def kind() -> str:
    return "inputs"


@pytest.fixture(scope="module")
def before(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of yesterday, of which a version was replaced; the input has changed since."""
    folder = tmp_path_factory.mktemp("before")
    with inputs.without("c"):
        inputs.night(Store(str(folder)), YESTERDAY).run()
    inputs.night(Store(str(folder)), YESTERDAY).run()
    inputs.change()
    return folder


@pytest.fixture
def out(before: Path, tmp_path: Path) -> Store:
    shutil.copytree(before, tmp_path / "out")
    return Store(str(tmp_path / "out"))


def replace_source(inputs: Inputs, out: Store, *, keep_versions: int = 0, times: int = 1) -> None:
    """Publish other predictions in place of yesterday's."""
    for size_px in range(16, 16 + times):
        transform = {**models.TRANSFORM, "size_px": size_px}
        sink = {"keep_versions": keep_versions}
        inputs.night(out, YESTERDAY, transform=transform, sink=sink).run()


def assert_as_whole(night: EarlierPartition, whole: EarlierPartition) -> None:
    assert night.content() == whole.content()
    assert night.current().fingerprint == whole.current().fingerprint
    assert night.current().row_id_hash == whole.current().row_id_hash
    for partition in (YESTERDAY, TODAY):
        assert verify_output(night.out.uri, partition, {})["status"] == "ok"


@pytest.mark.parametrize(
    "how",
    ["retired", "trimmed", "trimmed before", "replaced twice", "taken back", "collected"],
)
def test_of_a_source_that_is_replaced_while_it_is_read_rows_are_taken_over_or_computed(
    how: str, inputs: Inputs, out: Store, whole: EarlierPartition
):
    acts: dict[str, Callable[[], object]] = {
        "retired": lambda: replace_source(inputs, out, keep_versions=1),
        "trimmed": lambda: replace_source(inputs, out),
        "replaced twice": lambda: replace_source(inputs, out, times=2),
        "taken back": lambda: rollback(out, SOURCE, "by-hand", keep_versions=0, to_number=1),
        "collected": lambda: [collect_garbage(out, Layout(p), grace_s=3600.0)
                              for p in (YESTERDAY, TODAY)],
    }  # fmt: skip
    before = r"create _control/date=2026-11-25/plan/" if how.endswith("before") else LOOKS
    event = Event(before, acts[how.removesuffix(" before")])
    night = inputs.night(WatchedStore(out.uri, watch=event.watch))
    night.run()
    assert event.has_happened
    assert_as_whole(night, whole)
    assert bool(night.current().carried) == (how in ("retired", "collected"))


@pytest.mark.parametrize("other", [False, True], ids=["same rows", "other predictions"])
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(r"put _control/date=2026-11-25/staging/", marks=pytest.mark.slow),
        LOOKS,
        pytest.param(r"put .*/keys/", marks=pytest.mark.slow),
        r"copy _control/.*/compacted-",
        r"create .*/log/",
    ],
    ids=["staging", "reading", "keys", "placing", "log"],
)
def test_of_two_runs_that_carry_rows_one_wins_and_the_other_leaves_nothing(
    moment: str, other: bool, inputs: Inputs, out: Store, whole: EarlierPartition
):
    """One is suspended there, its lease is lost, another one publishes, and it goes on."""
    second = inputs.night(out, **(OTHER if other else {}))

    def overtake() -> None:
        assert first.record is not None
        release_lost(out, Layout(TODAY), first.record.run_id, InfraError("suspended"))
        second.run()

    event = Event(moment, overtake)
    first = inputs.night(WatchedStore(out.uri, watch=event.watch))
    lost = pytest.raises((PartitionBusy, PublishConflict)) if other else suppress(PartitionBusy)
    with lost:
        first.run()
    assert event.has_happened
    assert log_numbers(out, Layout(TODAY)) == [1]
    assert verify_output(out.uri, TODAY, {})["status"] == "ok"
    content = second.content()
    assert other or content == whole.content()
    # The one that lost is run again.
    again = inputs.night(out)
    again.run()
    assert log_numbers(out, Layout(TODAY)) == ([1, 2] if other else [1])
    assert_as_whole(again, whole)
    for partition in (YESTERDAY, TODAY):
        collect_garbage(out, Layout(partition), grace_s=-3600.0)
    assert out.list_files(f"{Layout(TODAY).control}/staging") == []
    numbers = [1, 2] if other else [1]
    kept = {read_manifest(out, Layout(TODAY), number).keys["folder"] for number in numbers}
    assert {f.path.rpartition("/")[0] for f in out.list_files(Layout(TODAY).all_keys)} == kept
