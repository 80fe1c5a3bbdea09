"""Promise: a partition is replaced as a whole or not at all, whatever happens meanwhile."""

import datetime as dt
import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from support.faults.watched_store import Event, WatchedStore
from support.runs.published import (
    DAY,
    Rows,
    age_files,
    prepare_version,
    publish_rows,
    read_part_table,
    sink_of,
    snapshot,
)
from support.runs.published_rows import read_predictions

from pipeline.commit.garbage import collect_garbage
from pipeline.commit.layout import Layout
from pipeline.commit.manifest import (
    Manifest,
    NotAManifest,
    current_manifest,
    list_partitions,
    log_numbers,
    read_manifest,
)
from pipeline.commit.publish import commit, history_numbers, repair, rollback, sync_published_folder
from pipeline.commit.tables import table_of
from pipeline.core.environment import FAILPOINT
from pipeline.core.errors import InfraError, JobError, PublishConflict
from pipeline.core.output_folders import PROBES
from pipeline.process import failpoints
from pipeline.published.verify import verify_output
from pipeline.storage.create_once import CreateOutcome
from pipeline.storage.store import Store, StoredFile

LAYOUT = Layout(DAY)
FOLDERS = (LAYOUT.predictions, LAYOUT.quarantine)


def files_of(store: Store) -> set[str]:
    """Everything in the published folders but `_SUCCESS`."""
    return set(snapshot(store, *FOLDERS)) - {LAYOUT.success}


def named_by(manifest: Manifest) -> set[str]:
    return {part.path for part in manifest.all_parts}


def digests_of(manifest: Manifest) -> dict[str, str]:
    return {part.path: part.sha256 for part in manifest.all_parts}


def assert_whole(store: Store, manifest: Manifest) -> None:
    """The manifest is current, its folder holds nothing else, and every row is there."""
    assert current_manifest(store, LAYOUT) == manifest
    assert files_of(store) == named_by(manifest)
    verify_output(store.uri, DAY, dict(store.storage_options))


def crash_at(monkeypatch: pytest.MonkeyPatch, name: str, nth: int = 1) -> None:
    monkeypatch.setattr(failpoints, "_reached", Counter())
    monkeypatch.setenv(FAILPOINT, f"{name}:raise:{nth}")


def suspend_before_the_log(store: Store, monkeypatch: pytest.MonkeyPatch) -> tuple[Manifest, str]:
    """Place version 2 without its commit; return the arguments of `commit` to go on."""
    manifest, folder = prepare_version(store, LAYOUT, Rows(2), 2, "suspended")
    with monkeypatch.context() as patch:
        crash_at(patch, "before_log")
        with pytest.raises(RuntimeError, match="before_log"):
            commit(store, LAYOUT, manifest, folder)
    return manifest, folder


def edition_of(store: Store) -> set[int]:
    table = read_predictions(store.uri, DAY, storage_options=dict(store.storage_options))
    return set(table.column("edition").to_pylist())


def test_a_replaced_version_moves_to_the_history_byte_by_byte(usual_store: Store):
    first = publish_rows(usual_store, rows=Rows(1))
    assert_whole(usual_store, first)
    before = snapshot(usual_store, *FOLDERS)
    second = publish_rows(usual_store, rows=Rows(2, num_slices=6))
    assert_whole(usual_store, second)
    assert (first.number, second.number) == (1, 2)
    assert not named_by(first) & named_by(second)
    history = snapshot(usual_store, LAYOUT.history(1))
    kept = {f"{LAYOUT.history(1)}/{path.replace(f'/{DAY}/', '/')}" for path in named_by(first)}
    assert set(history) == kept
    del before[LAYOUT.success]
    assert sorted(history.values()) == sorted(before.values())


def test_marker_and_list_of_an_earlier_layout_are_corrected(usual_store: Store):
    """In an earlier layout the marker held the list."""
    first = publish_rows(usual_store, rows=Rows(1))
    usual_store.delete([LAYOUT.current])
    usual_store.put(LAYOUT.success, first.to_json())
    assert repair(usual_store, LAYOUT, 2) == first
    assert_whole(usual_store, first)


def damage_entry(store: Store, number: int) -> None:
    path = LAYOUT.log_entry(number)
    store.put(path, store.read_bytes(path).replace(b'"num_rows": ', b'"num_rows": 1', 1))


def test_a_damaged_log_entry_is_restored_from_its_copy(usual_store: Store):
    first = publish_rows(usual_store, rows=Rows(1))
    before = snapshot(usual_store, "")
    damage_entry(usual_store, 1)
    assert repair(usual_store, LAYOUT, 2) == first
    assert snapshot(usual_store, "") == before


def test_without_a_copy_of_a_damaged_log_entry_all_files_stay(usual_store: Store):
    for edition in (1, 2):
        publish_rows(usual_store, rows=Rows(edition))
    for number in (1, 2):
        damage_entry(usual_store, number)
    usual_store.delete([LAYOUT.current])
    before = snapshot(usual_store, "")
    base = repair(usual_store, LAYOUT, 2)
    assert base is not None
    assert (base.number, base.is_known, snapshot(usual_store, "")) == (2, False, before)
    collect_garbage(usual_store, LAYOUT, grace_s=1e9)
    with pytest.raises(NotAManifest, match=f"{LAYOUT.log_entry(2)}: not a manifest"):
        current_manifest(usual_store, LAYOUT)
    assert_whole(usual_store, publish_rows(usual_store, rows=Rows(3)))


def test_publishing_the_same_rows_again_changes_nothing(usual_store: Store):
    publish_rows(usual_store, rows=Rows(1))
    second = publish_rows(usual_store, rows=Rows(2))
    before = snapshot(usual_store, "")
    assert publish_rows(usual_store, rows=Rows(2)) == second
    sync_published_folder(usual_store, LAYOUT, second, 2)
    assert snapshot(usual_store, "") == before


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_the_history_keeps_as_many_versions_as_the_job_asks_for(usual_store: Store, keep: int):
    for edition in range(1, 5):
        last = publish_rows(usual_store, rows=Rows(edition), keep_versions=keep)
    assert history_numbers(usual_store, LAYOUT) == [1, 2, 3][3 - keep :]
    assert log_numbers(usual_store, LAYOUT) == [1, 2, 3, 4]
    assert_whole(usual_store, last)


def test_the_first_of_two_different_versions_in_the_log_wins_unchanged(usual_store: Store):
    publish_rows(usual_store, rows=Rows(1))
    ours, our_folder = prepare_version(usual_store, LAYOUT, Rows(2), 2, "ours")
    theirs, their_folder = prepare_version(usual_store, LAYOUT, Rows(3), 2, "theirs")
    winner = commit(usual_store, LAYOUT, theirs, their_folder)
    sync_published_folder(usual_store, LAYOUT, winner, 2)
    with pytest.raises(PublishConflict, match="run theirs published version 2 meanwhile"):
        commit(usual_store, LAYOUT, ours, our_folder)
    assert current_manifest(usual_store, LAYOUT) == winner
    present = snapshot(usual_store, *FOLDERS)
    assert present == {**digests_of(winner), LAYOUT.success: present[LAYOUT.success]}
    assert edition_of(usual_store) == {3}
    assert repair(usual_store, LAYOUT, 2) == winner
    assert_whole(usual_store, winner)


def test_syncing_the_folder_leaves_parts_that_a_suspended_run_may_commit(
    usual_store: Store, monkeypatch: pytest.MonkeyPatch
):
    first = publish_rows(usual_store, rows=Rows(1))
    manifest, folder = suspend_before_the_log(usual_store, monkeypatch)
    placed = files_of(usual_store) - named_by(first)
    assert len(placed) == len(manifest.all_parts)
    sync_published_folder(usual_store, LAYOUT, first, 2)
    assert files_of(usual_store) == named_by(first) | placed
    # A run that goes on now finds the parts that its entry names.
    resumed = commit(usual_store, LAYOUT, manifest, folder)
    assert named_by(resumed) == placed
    sync_published_folder(usual_store, LAYOUT, resumed, 2)
    assert_whole(usual_store, resumed)


@pytest.mark.parametrize("table", [None, "delta"])
def test_parts_of_a_run_with_other_settings_are_deleted_even_if_there_is_nothing_to_do(
    usual_store: Store, monkeypatch: pytest.MonkeyPatch, table: str | None
):
    names = table_of(sink_of(table), usual_store)
    first = publish_rows(usual_store, rows=Rows(1), table=table)
    suspended, folder = suspend_before_the_log(usual_store, monkeypatch)
    repaired = repair(usual_store, LAYOUT, 2, table=names, is_last=True)
    assert repaired is not None
    assert (repaired.number, repaired.parts) == (2, first.parts)
    assert repaired.token not in ("", first.token)
    assert_whole(usual_store, repaired)
    # The run was only suspended: its number is taken, and it takes its parts away again.
    with pytest.raises(PublishConflict):
        commit(usual_store, LAYOUT, suspended, folder)
    assert_whole(usual_store, repaired)
    before = snapshot(usual_store, "")
    assert repair(usual_store, LAYOUT, 2, table=names, is_last=True) == repaired
    assert snapshot(usual_store, "") == before
    assert publish_rows(usual_store, rows=Rows(2), table=table).number == 3
    assert history_numbers(usual_store, LAYOUT) == [2]


def test_a_suspended_run_that_commits_during_the_cleanup_wins(
    usual_store: Store, monkeypatch: pytest.MonkeyPatch
):
    publish_rows(usual_store, rows=Rows(1))
    suspended, folder = suspend_before_the_log(usual_store, monkeypatch)
    create_once = Store.create_once

    def create_late(store: Store, path: str, data: bytes, token: str) -> CreateOutcome:
        monkeypatch.setattr(Store, "create_once", create_once)
        commit(store, LAYOUT, suspended, folder)
        return create_once(store, path, data, token)

    monkeypatch.setattr(Store, "create_once", create_late)
    repaired = repair(usual_store, LAYOUT, 2, is_last=True)
    assert repaired is not None
    assert (repaired.number, repaired.run_id) == (2, "suspended")
    assert_whole(usual_store, repaired)


def test_a_run_corrects_the_list_that_it_wrote_too_late(
    usual_store: Store, monkeypatch: pytest.MonkeyPatch
):
    first = publish_rows(usual_store, rows=Rows(1))
    usual_store.delete([LAYOUT.current])
    put = Store.put

    def put_late(store: Store, path: str, data: bytes) -> None:
        if path == LAYOUT.current:
            monkeypatch.setattr(Store, "put", put)
            publish_rows(usual_store, rows=Rows(2))
        put(store, path, data)

    monkeypatch.setattr(Store, "put", put_late)
    sync_published_folder(usual_store, LAYOUT, first, 2)
    current = current_manifest(usual_store, LAYOUT)
    assert current is not None
    assert current.number == 2
    assert_whole(usual_store, current)


@pytest.mark.parametrize("field", ["parts", "quarantine_parts"])
def test_the_next_run_reports_a_lost_part(usual_store: Store, field: str):
    manifest = publish_rows(usual_store)
    lost = getattr(manifest, field)[-1].path
    usual_store.delete([lost])
    with pytest.raises(InfraError, match=f"{lost}: named by the current manifest but missing"):
        repair(usual_store, LAYOUT, 2)


def test_the_loser_of_two_equal_versions_adopts_the_winner(usual_store: Store):
    ours, our_folder = prepare_version(usual_store, LAYOUT, Rows(1), 1, "ours")
    theirs, their_folder = prepare_version(usual_store, LAYOUT, Rows(1), 1, "theirs")
    winner = commit(usual_store, LAYOUT, theirs, their_folder)
    adopted = commit(usual_store, LAYOUT, ours, our_folder)
    assert adopted == winner
    assert files_of(usual_store) == named_by(winner)
    sync_published_folder(usual_store, LAYOUT, adopted, 2)
    assert_whole(usual_store, winner)


def test_a_version_of_another_plan_is_a_conflict(usual_store: Store):
    ours, our_folder = prepare_version(usual_store, LAYOUT, Rows(1), 1, "ours")
    theirs, their_folder = prepare_version(usual_store, LAYOUT, Rows(1), 1, "theirs")
    winner = commit(usual_store, LAYOUT, replace(theirs, plan="f" * 64), their_folder)
    with pytest.raises(PublishConflict, match=rf"^partition {DAY}: run theirs published version 1"):
        commit(usual_store, LAYOUT, replace(ours, keys={}), our_folder)
    assert files_of(usual_store) == named_by(winner)


def test_a_rollback_publishes_the_old_bytes_and_another_one_goes_forward(usual_store: Store):
    first, second = (publish_rows(usual_store, rows=Rows(edition)) for edition in (1, 2))
    back = rollback(usual_store, LAYOUT, "back", keep_versions=2)
    assert (back.number, back.kind, back.restored_from) == (3, "rollback", 1)
    assert dt.datetime.fromisoformat(back.created_at) > dt.datetime.fromisoformat(second.created_at)
    assert back.keys == first.keys
    assert (back.run_id, len({back.token, first.token, second.token})) == ("back", 3)
    assert back.fingerprint == first.fingerprint
    assert_whole(usual_store, back)
    assert [part.sha256 for part in back.all_parts] == [part.sha256 for part in first.all_parts]
    assert edition_of(usual_store) == {1}
    forward = rollback(usual_store, LAYOUT, "forward", keep_versions=2)
    assert (forward.number, forward.restored_from) == (4, 2)
    assert_whole(usual_store, forward)
    assert [part.sha256 for part in forward.all_parts] == [part.sha256 for part in second.all_parts]
    assert edition_of(usual_store) == {2}


def test_only_versions_in_the_history_can_be_rolled_back_to(usual_store: Store):
    with pytest.raises(JobError, match="nothing is published"):
        rollback(usual_store, LAYOUT, "r", keep_versions=2)
    only = publish_rows(usual_store)
    with pytest.raises(JobError, match="there is no earlier version to go back to"):
        rollback(usual_store, LAYOUT, "r", keep_versions=2)
    publish_rows(usual_store, rows=Rows(2))
    with pytest.raises(JobError, match="version 7 is not in the history; it has 1"):
        rollback(usual_store, LAYOUT, "r", keep_versions=2, to_number=7)
    assert only.number == 1
    assert edition_of(usual_store) == {2}


def test_foreign_files_in_log_and_history_are_ignored(usual_store: Store):
    publish_rows(usual_store, rows=Rows(1))
    for path in ("log/abc.json", "log/notes.txt", "history/old/part.parquet"):
        usual_store.put(f"{LAYOUT.control}/{path}", b"{}")
    publish_rows(usual_store, rows=Rows(2), keep_versions=1)
    assert log_numbers(usual_store, LAYOUT) == [1, 2]
    assert history_numbers(usual_store, LAYOUT) == [1]
    assert rollback(usual_store, LAYOUT, "r", keep_versions=1).restored_from == 1


def test_a_rollback_reports_that_its_history_was_deleted_meanwhile(tmp_path: Path):
    usual = Store(str(tmp_path))
    publish_rows(usual, rows=Rows(1))
    second = publish_rows(usual, rows=Rows(2))
    late = Event(
        f"copy {LAYOUT.history(1)}",
        lambda: usual.delete([file.path for file in usual.list_files(LAYOUT.history(1))]),
    )
    with pytest.raises(InfraError, match="disappeared while it was used; run again"):
        rollback(WatchedStore(usual.uri, watch=late.watch), LAYOUT, "r", keep_versions=2)
    assert repair(usual, LAYOUT, 2) == second


def test_a_rollback_copies_each_part_once_and_leaves_nothing_behind(tmp_path: Path):
    calls: list[str] = []
    store = WatchedStore(str(tmp_path), watch=lambda *call: calls.append(" ".join(call)))
    first, second = (publish_rows(store, rows=Rows(edition)) for edition in (1, 2))
    before = snapshot(store, f"{LAYOUT.control}/staging", LAYOUT.all_keys)
    calls.clear()
    assert_whole(store, rollback(store, LAYOUT, "back", keep_versions=2))
    copied = [call for call in calls if call.startswith("copy ")]
    assert len(copied) == len(first.all_parts) + len(second.all_parts)
    assert snapshot(store, f"{LAYOUT.control}/staging", LAYOUT.all_keys) == before


@pytest.mark.parametrize(
    "point", ["after_log", "after_table", "before_current", "before_success", "kept", "retired"]
)
def test_a_rollback_takes_back_a_version_whose_run_died_after_its_log_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
):
    store, table = Store(str(tmp_path)), "delta" if point == "after_table" else None
    for edition in (1, 2):
        publish_rows(store, rows=Rows(edition), table=table)
    names = table_of(sink_of(table), store)
    manifest, folder = prepare_version(store, LAYOUT, Rows(3), 3, "died")
    with monkeypatch.context() as patch:
        crash_at(patch, point)
        with pytest.raises(RuntimeError, match=point):
            sync_published_folder(
                store, LAYOUT, commit(store, LAYOUT, manifest, folder), 2, table=names
            )
    back = rollback(store, LAYOUT, "back", keep_versions=2, table=names)
    assert (back.number, back.restored_from, edition_of(store)) == (4, 2, {2})
    assert_whole(store, back)
    assert history_numbers(store, LAYOUT) == [2, 3]


def test_a_version_that_lost_a_part_can_be_rolled_back(usual_store: Store):
    first, second = (publish_rows(usual_store, rows=Rows(edition)) for edition in (1, 2))
    usual_store.delete([second.parts[0].path])
    back = rollback(usual_store, LAYOUT, "back", keep_versions=2)
    assert [part.sha256 for part in back.all_parts] == [part.sha256 for part in first.all_parts]
    assert_whole(usual_store, back)


def test_keys_stay_as_long_as_a_kept_version_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also keys of a version that was published again under the next number."""
    store = Store(str(tmp_path))
    publish_rows(store, rows=Rows(1))
    suspend_before_the_log(store, monkeypatch)
    repaired = repair(store, LAYOUT, 1, is_last=True)
    assert repaired is not None
    for edition, keep in ((3, 1), (4, 1), (5, 0)):
        publish_rows(store, rows=Rows(edition), keep_versions=keep)
        collect_garbage(store, LAYOUT, grace_s=0)
        numbers = [*history_numbers(store, LAYOUT), log_numbers(store, LAYOUT)[-1]]
        assert len(numbers) == keep + 1
        named = {read_manifest(store, LAYOUT, number).keys["folder"] for number in numbers}
        folders = {file.path.rpartition("/")[0] for file in store.list_files(LAYOUT.all_keys)}
        assert folders == named


def test_a_publication_reads_as_many_manifests_as_versions_are_kept(tmp_path: Path):
    calls: list[str] = []
    store = WatchedStore(str(tmp_path), watch=lambda *call: calls.append(" ".join(call)))
    for edition in range(1, 9):
        calls.clear()
        publish_rows(store, rows=Rows(edition), keep_versions=2)
    reads = [call for call in calls if re.match(r"read .*/log/", call)]
    assert len(set(reads)) <= 4, "the new version, the one before, and those that are kept"


def test_partitions_are_independent(usual_store: Store):
    first = publish_rows(usual_store, rows=Rows(1))
    before = snapshot(usual_store, *FOLDERS, LAYOUT.control)
    publish_rows(usual_store, "date=2026-11-25", Rows(2))
    publish_rows(usual_store, "date=2026-11-25", Rows(3))
    publish_rows(usual_store, None, Rows(4))
    publish_rows(usual_store, None, Rows(5))
    assert snapshot(usual_store, *FOLDERS, LAYOUT.control) == before
    assert_whole(usual_store, first)
    names = [layout.name for layout in list_partitions(usual_store)]
    assert names == ["all", DAY, "date=2026-11-25"]


@dataclass(frozen=True)
class Listed(Store):
    """A store that records which folders are listed with their subfolders."""

    asked: list[str] = field(default_factory=list)

    def list_files(self, prefix: str = "") -> list[StoredFile]:
        self.asked.append(prefix)
        return super().list_files(prefix)


def test_partitions_are_found_without_listing_their_staging(usual_store: Store):
    publish_rows(usual_store, rows=Rows(1))
    usual_store.put("_control/date=2026-11-25/staging/f/000000-000000000-000000001-a.parquet", b"")
    store = Listed(usual_store.uri, usual_store.storage_options)
    assert [layout.name for layout in list_partitions(store)] == [DAY]
    assert sorted(store.asked) == [f"{LAYOUT.control}/log", "_control/date=2026-11-25/log"]


def test_old_temporary_files_of_killed_writers_are_deleted(tmp_path: Path):
    store = Store(str(tmp_path))
    manifest = publish_rows(store)
    old = [f"{LAYOUT.predictions}/.tmp-{'a' * 32}", f"{LAYOUT.control}/lease/.tmp-{'b' * 32}"]
    old.append(f"{PROBES}/clock-{'d' * 32}")
    young = f"{LAYOUT.quarantine}/.tmp-{'c' * 32}"
    for path in (*old, young):
        store.put(path, b"half of")
    age_files(tmp_path, old, age_s=7200)
    assert collect_garbage(store, LAYOUT, grace_s=3600).num_bytes == 3 * len(b"half of")
    assert [file.path for file in store.list_leftovers()] == [young]
    assert_whole(store, manifest)


def test_every_part_has_metadata_of_how_it_was_made(usual_store: Store):
    manifest = publish_rows(usual_store, run_id="me")
    for part in manifest.all_parts:
        metadata = read_part_table(usual_store, part).schema.metadata
        assert metadata[b"pipeline.run_id"] == b"me"
        assert metadata[b"pipeline.fingerprint"] == manifest.fingerprint.encode()
        assert metadata[b"pipeline.model"] == b"made-up"
        assert metadata[b"pipeline.weights_sha256"] == b"ab" * 32
        assert metadata[b"pipeline.precision"] == b"fp32"
        assert metadata[b"pipeline.runtime"] == b"eager"
        versions = json.loads(metadata[b"pipeline.versions"])
        assert {"python", "batch-inference-pipeline", "ray", "torch", "pyarrow"} <= set(versions)
        assert all(versions.values())
