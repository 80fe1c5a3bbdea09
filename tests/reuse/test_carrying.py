"""Carried rows, by the rules that they keep to: each night is what a run of all rows gives."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.models.model_cases import colours_state
from support.runs.carried_runs import stop_at
from support.runs.earlier_partitions import EarlierPartition
from support.runs.night_inputs import image
from support.runs.retry_runs import (
    NUM_ROWS,
    make_partition,
    write_csv,
    write_ids,
    write_images,
    write_lines,
    write_links,
    write_parquet,
    write_tars,
)
from support.runs.selection import quick_cases

from pipeline.commit.manifest import log_numbers, read_manifest
from pipeline.commit.parts.compaction import Compacted
from pipeline.commit.published.garbage import collect_garbage
from pipeline.commit.published.rollback import rollback
from pipeline.commit.published.verify import verify_output
from pipeline.commit.shard_table import read_shard_table, write_shard_table
from pipeline.storage.store import Store

SOURCES: list[Callable[[Path], dict[str, Any]]] = [
    *(write_images, write_parquet, write_tars, write_lines, write_csv)
]
"""Formats whose rows are known by listing, by measuring and by reading."""


@pytest.fixture(autouse=True)
def half_of_the_found_rows_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so few rows that are found by content almost all would be."""
    monkeypatch.setattr("pipeline.reuse.finding.check_probability", lambda *_, **__: 0.5)


def nightly(
    tmp_path: Path, write: Callable[[Path], dict[str, Any]] = write_images, **sections: Any
) -> EarlierPartition:
    """A partition whose model has weights, so that rows can be carried."""
    sections["sink"] = {"target_part_mib": 1.0, **sections.get("sink", {})}
    partition = make_partition(tmp_path, write, **sections)
    partition.weights = str(tmp_path / "weights.pt")
    torch.save(colours_state(), partition.weights)
    return partition


def assert_as_all_computed(partition: EarlierPartition, tmp_path: Path) -> None:
    """The predictions, the quarantine and the proofs are those of a run of all rows."""
    store = Store(str(tmp_path / f"whole-{len(list(tmp_path.glob('whole-*')))}"))
    whole = EarlierPartition(
        partition.inputs,
        store,
        partition.source,
        partition.broken,
        partition.sections,
        partition.weights,
        reuse=False,
        partition=partition.partition,
    )
    whole.run()
    assert partition.content() == whole.content()
    ours, theirs = partition.current(), whole.current()
    assert (ours.fingerprint, ours.row_id_hash) == (theirs.fingerprint, theirs.row_id_hash)
    assert (ours.num_rows, ours.num_predicted) == (theirs.num_rows, theirs.num_predicted)
    if "duplicate_id" not in partition.failed().values():  # whose numbers stay among the others
        assert ours.distribution == theirs.distribution
    found = verify_output(partition.out.uri, partition.partition, {})
    assert found["status"] == "ok", found


def carried_rows(partition: EarlierPartition) -> int:
    return int(partition.current().carried.get("rows", 0))


def checked_rows(partition: EarlierPartition) -> int:
    """At least 16, where so many are carried."""
    found = int(partition.current().carried["checked_rows"])
    assert found >= 16
    return found


def change(partition: EarlierPartition, rows: list[int], to: int = 1000) -> None:
    """Write other photos into files of the source."""
    for row in rows:
        (Path(partition.inputs) / f"{row:03d}.jpg").write_bytes(image(to + row))


@pytest.mark.parametrize("write", SOURCES)
def test_the_same_input_is_carried_whole_and_read_for_the_check_alone(
    write: Callable[[Path], dict[str, Any]], tmp_path: Path
):
    partition = nightly(tmp_path, write)
    partition.run()
    partition.partition = "date=2026-11-25"
    partition.run()
    assert carried_rows(partition) == NUM_ROWS - checked_rows(partition)
    assert len(partition.computed) == checked_rows(partition)
    assert_as_all_computed(partition, tmp_path)


def test_files_that_are_new_or_changed_are_computed_and_those_that_are_gone_are_gone(
    tmp_path: Path,
):
    partition = nightly(tmp_path)
    partition.run()
    change(partition, [3, 17])
    folder = Path(partition.inputs)
    (folder / "900.jpg").write_bytes(image(900))
    (folder / "010.jpg").unlink()
    partition.run()
    assert {"003.jpg", "017.jpg", "900.jpg"} <= set(partition.computed)
    assert len(partition.computed) == 3 + checked_rows(partition)
    assert carried_rows(partition) == NUM_ROWS - 1 - 2 - checked_rows(partition)
    assert "010.jpg" not in {row["row_id"] for row in partition.content()[0]}
    gates = {gate["name"]: gate for gate in partition.current().gates}
    assert f"{len(partition.computed)} computed predictions" in gates["constant"]["message"]
    assert gates["carried"]["message"].startswith(f"{checked_rows(partition)} of ")
    assert_as_all_computed(partition, tmp_path)


def test_rows_in_quarantine_are_computed_again(tmp_path: Path):
    partition = nightly(tmp_path)
    partition.broken = {"004.jpg", "031.jpg"}
    partition.run()
    partition.broken = {"031.jpg"}
    (Path(partition.inputs) / "900.jpg").write_bytes(image(900))
    partition.run()
    assert {"004.jpg", "031.jpg", "900.jpg"} <= set(partition.computed)
    assert partition.failed() == {"031.jpg": "decode_error"}
    assert_as_all_computed(partition, tmp_path)


@pytest.mark.parametrize("write", [write_parquet, write_tars])
def test_of_shards_only_those_that_changed_are_read(
    write: Callable[[Path], dict[str, Any]], tmp_path: Path
):
    partition = nightly(tmp_path, write)
    partition.broken = {"t1.tar/k2", "s1.parquet#2"}
    partition.run()
    partition.broken = set()
    path = sorted(Path(partition.inputs).iterdir())[2]
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    partition.run()
    of_shard = [row for row in partition.computed if row.startswith(path.name)]
    assert len(of_shard) == 10
    assert_as_all_computed(partition, tmp_path)


@pytest.mark.parametrize("is_alone", [False, True], ids=["beside a new one", "alone"])
def test_a_file_that_was_replaced_with_its_size_and_time_kept_is_computed(
    is_alone: bool, tmp_path: Path
):
    partition = nightly(tmp_path)
    partition.run()
    path = Path(partition.inputs) / "005.jpg"
    before = path.stat()
    other = path.with_name("other.tmp")
    other.write_bytes(image(7))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    if not is_alone:
        (Path(partition.inputs) / "900.jpg").write_bytes(image(900))
    partition.run()
    assert "005.jpg" in partition.computed
    assert carried_rows(partition) > 0
    version = partition.current().number
    assert partition.run().number == version, "nothing to do"
    assert_as_all_computed(partition, tmp_path)


def test_another_pass_through_column_is_that_of_the_new_input(tmp_path: Path):
    partition = nightly(tmp_path, write_parquet)
    partition.run()
    partition.source = {**partition.source, "pass_through": []}
    partition.run()
    assert carried_rows(partition) == 0
    assert_as_all_computed(partition, tmp_path)


@pytest.mark.parametrize(
    "sections",
    [
        {"transform": {**models.TRANSFORM, "size_px": 16}},
        {"model": {"top_k": 2}},
        {"model": {"labels": [*reversed(models.LABELS)]}},
    ],
    ids=["transform", "top_k", "labels"],
)
def test_another_predictor_carries_nothing_and_says_what_changed(
    sections: dict[str, Any], tmp_path: Path
):
    partition = nightly(tmp_path)
    partition.run()
    partition.sections = sections
    partition.run()
    assert carried_rows(partition) == 0
    assert len(partition.computed) == NUM_ROWS
    assert_as_all_computed(partition, tmp_path)


def test_other_weights_carry_nothing_and_equal_ones_at_another_path_all(tmp_path: Path):
    partition = nightly(tmp_path)
    partition.run()
    moved = tmp_path / "elsewhere.pt"
    moved.write_bytes(Path(partition.weights).read_bytes())
    partition.weights, partition.partition = str(moved), "date=2026-11-25"
    partition.run()
    assert carried_rows(partition) == NUM_ROWS - checked_rows(partition)
    state = colours_state()
    state["head.bias"] += 1
    torch.save(state, partition.weights)
    partition.partition = "date=2026-11-26"
    partition.run()
    assert carried_rows(partition) == 0
    assert_as_all_computed(partition, tmp_path)


def test_a_model_without_weights_carries_nothing(tmp_path: Path):
    partition = make_partition(tmp_path, write_images)
    partition.run()
    change(partition, [1])
    partition.run()
    assert carried_rows(partition) == 0
    assert len(partition.computed) == NUM_ROWS


@pytest.mark.parametrize("how", ["off", "option", "limit"])
def test_nothing_is_carried_if_the_job_or_the_command_says_so(how: str, tmp_path: Path):
    partition = nightly(tmp_path)
    partition.run()
    change(partition, [1])
    if how == "off":
        partition.sections = {"run": {"reuse": "off"}}
    elif how == "limit":
        partition.sections = {"run": {"limit_rows": NUM_ROWS}}
    partition.reuse = how != "option"
    partition.run()
    assert carried_rows(partition) == 0
    assert len(partition.computed) == NUM_ROWS


@pytest.mark.parametrize("num_changed", [1, 38])
def test_rows_of_a_version_that_was_taken_back_are_not_carried(num_changed: int, tmp_path: Path):
    """Of many some would be carried, were they looked up there; a few are checked in any case."""
    partition = nightly(tmp_path)
    partition.run()
    change(partition, changed := [*range(1, num_changed + 1)])
    partition.run()
    rollback(partition.out, partition.layout, "by-hand", keep_versions=3, to_number=1)
    change(partition, [num_changed + 1])
    partition.run()
    sources = partition.current().carried.get("sources", [])
    assert {source["version"] for source in sources} <= {3}
    assert {f"{row:03d}.jpg" for row in (*changed, num_changed + 1)} <= set(partition.computed)
    assert_as_all_computed(partition, tmp_path)


@pytest.mark.parametrize("days", [2, -1], ids=["too old", "of a day to come"])
def test_predictions_of_another_time_are_computed_again(days: int, tmp_path: Path):
    partition = nightly(tmp_path, run={"reuse_max_age_days": 1.5})
    partition.run()
    change(partition, [1])
    partition.run()
    assert carried_rows(partition) > 0
    age(partition, dt.timedelta(days=days))
    change(partition, [2])
    partition.run()
    assert carried_rows(partition) == 0


def damage_keys(partition: EarlierPartition, name: str) -> None:
    """Flip one bit of a file of the current version's keys."""
    path = Path(partition.out.uri) / partition.current().keys["folder"] / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["shards.parquet"])
def test_a_flipped_bit_in_the_keys_carries_nothing(name: str, tmp_path: Path):
    partition = nightly(tmp_path)
    partition.run()
    damage_keys(partition, name)
    change(partition, [1])
    partition.run()
    assert carried_rows(partition) == 0
    assert_as_all_computed(partition, tmp_path)


def test_a_row_with_the_id_of_a_carried_one_is_the_duplicate_that_a_full_run_has(tmp_path: Path):
    partition = nightly(tmp_path, write_ids)
    partition.run()
    folder = Path(partition.inputs)
    columns = {"camera": [None, None]}
    # One before all other shards, whose id row 25 has, and one behind them.
    for name, ids in (("a.parquet", ["id-25", "new-1"]), ("z.parquet", ["id-3", "new-2"])):
        table = pa.table({"image": [image(500), image(501)], "id": ids, **columns})
        table = table.set_column(2, "camera", pa.nulls(2, pa.string()))
        pq.write_table(pa.table({n: table[n] for n in ("image", "camera", "id")}), folder / name)
    partition.run()
    assert carried_rows(partition) > 0
    assert partition.failed() == {"id-25": "duplicate_id", "id-3": "duplicate_id"}
    assert_as_all_computed(partition, tmp_path)
    change_of = folder / "s0.parquet"
    os.utime(change_of)
    partition.run()
    assert_as_all_computed(partition, tmp_path)


def age(partition: EarlierPartition, by: dt.timedelta) -> None:
    """Let all versions have been computed earlier, by their keys."""
    store, layout = partition.out, partition.layout
    for number in log_numbers(store, layout):
        manifest = read_manifest(store, layout, number)
        table = read_shard_table(store, layout, manifest)
        shards = [replace(s, computed_day=s.computed_day - by.days) for s in table.shards]
        folder, parts = layout.keys(f"{number:06d}-0123456789ab"), Compacted(manifest.parts, ())
        keys = write_shard_table(store, folder, table.about, shards, parts)
        store.put(layout.log_entry(number), replace(manifest, keys=keys).to_json())


def test_a_prediction_grows_older_while_it_is_carried_on(tmp_path: Path):
    partition = nightly(tmp_path)
    partition.run()
    age(partition, dt.timedelta(days=2))
    (then,) = set(days_of(partition).values())
    for night in (1, 2):
        change(partition, [night])
        partition.run()
    days = days_of(partition)
    changed = {days.pop(f"{partition.inputs}/00{night}.jpg") for night in (1, 2)}
    assert (changed, set(days.values())) == ({then + 2}, {then})


def test_what_a_stopped_run_has_taken_over_grows_too_old_as_well(tmp_path: Path):
    partition = nightly(tmp_path, run={"reuse_max_age_days": 1.5})
    partition.run()
    age(partition, dt.timedelta(days=1))
    change(partition, [*range(20)])
    partition.run()
    change(partition, [0], to=2000)
    stop_at("tiled", partition.run)
    age(partition, dt.timedelta(days=1))
    partition.run()
    assert {f"{row:03d}.jpg" for row in range(20, NUM_ROWS)} <= set(partition.computed)
    assert_as_all_computed(partition, tmp_path)


def test_a_shard_that_is_as_it_was_long_ago_is_as_old_as_then(tmp_path: Path):
    """An older version than the newest that knows its name is the one that it is carried from."""
    partition = nightly(tmp_path)
    folder = Path(partition.inputs)
    old, new = folder / "a", tmp_path / "b"
    for where in (old, new):
        where.mkdir()
        for row in range(20):
            (where / f"{row}.jpg").write_bytes(image(row + 500 * (where == new)))
    partition.run()
    age(partition, dt.timedelta(days=2))
    then = min(days_of(partition).values())
    for _ in range(2):  # there and back, with the times of the files
        old.rename(tmp_path / "away")
        new.rename(old)
        (tmp_path / "away").rename(new)
        collect_garbage(partition.out, partition.layout, grace_s=-3600.0)
        partition.run()
    assert len(partition.current().carried["sources"]) == 2
    assert days_of(partition)[f"{old}/3.jpg"] == then
    assert_as_all_computed(partition, tmp_path)


def days_of(partition: EarlierPartition) -> dict[str, int]:
    """When the predictions of each shard were computed."""
    table = read_shard_table(partition.out, partition.layout, partition.current())
    return {shard.uri: shard.computed_day for shard in table.shards}


def test_versions_without_keys_are_computed(tmp_path: Path):
    partition = nightly(tmp_path)
    partition.run()
    Path(partition.out.uri, partition.current().keys["folder"], "shards.parquet").unlink()
    change(partition, [1])
    partition.run()
    assert carried_rows(partition) == 0
    change(partition, [2])
    partition.run()
    assert carried_rows(partition) == NUM_ROWS - 1 - checked_rows(partition)


def by_content(
    tmp_path: Path, write: Callable[[Path], dict[str, Any]] = write_images
) -> EarlierPartition:
    return nightly(tmp_path, write, run={"reuse": "content"})


@pytest.mark.parametrize(
    "write", quick_cases(((write,) for write in SOURCES), lambda write: write is SOURCES[0])
)
def test_touched_files_of_the_same_content_are_read_and_not_computed(
    write: Callable[[Path], dict[str, Any]], tmp_path: Path
):
    partition = by_content(tmp_path, write)
    partition.run()
    for path in Path(partition.inputs).iterdir():
        os.utime(path)
    partition.run()
    assert partition.said
    # Of so few rows each is checked with a probability of nine tenths.
    assert partition.computed
    found = partition.current().carried.get("content_rows", 0)
    assert found == NUM_ROWS - len(partition.computed)
    assert_as_all_computed(partition, tmp_path)
    partition.partition = "date=2026-11-25"
    partition.run()  # from a version whose rows were found themselves
    assert_as_all_computed(partition, tmp_path)


def test_rows_found_by_content_have_the_other_columns_of_the_new_input(tmp_path: Path):
    partition = by_content(tmp_path, write_parquet)
    partition.run()
    folder = Path(partition.inputs)
    for path in folder.iterdir():
        table = pq.read_table(path)
        cameras = pa.array([f"new {row}" for row in range(table.num_rows)])
        pq.write_table(table.set_column(1, "camera", cameras), path.with_name(f"x{path.name}"))
        path.unlink()
    partition.run()
    good, _ = partition.content()
    assert {row["camera"] for row in good} == {f"new {row}" for row in range(10)}
    assert_as_all_computed(partition, tmp_path)


def test_by_content_moved_copied_and_new_rows_are_told_apart(tmp_path: Path):
    partition = by_content(tmp_path)
    partition.broken = {"004.jpg"}
    partition.run()
    folder = Path(partition.inputs)
    for row in range(20, 40):
        (folder / f"{row:03d}.jpg").rename(folder / f"moved-{row:03d}.jpg")
    (folder / "copy.jpg").write_bytes(image(7))
    (folder / "new.jpg").write_bytes(image(700))
    (folder / "000.jpg").write_bytes(image(701))
    partition.run()
    assert {"new.jpg", "000.jpg", "004.jpg"} <= set(partition.computed)
    assert partition.failed() == {"004.jpg": "decode_error"}
    assert_as_all_computed(partition, tmp_path)


def test_rows_by_content_of_which_no_day_is_known_are_computed(tmp_path: Path):
    """Those of a tar that breaks off: it is no known shard, so nothing says how old they are."""
    partition = by_content(tmp_path, write_tars)
    path = Path(partition.inputs) / "t1.tar"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 + 700])
    partition.run()
    for each in Path(partition.inputs).iterdir():
        os.utime(each)
    partition.run()
    read = [row for row in partition.content()[0] if row["row_id"].startswith("t1.tar")]
    assert read
    assert {row["row_id"] for row in read} <= set(partition.computed)
    assert int(partition.current().carried["content_rows"]) > 0
    assert_as_all_computed(partition, tmp_path)


def test_a_version_without_hashes_carries_nothing_if_content_is_asked_for(tmp_path: Path):
    partition = nightly(tmp_path)
    partition.run()
    partition.sections["run"] = {"reuse": "content"}
    change(partition, [0])
    partition.run()
    assert carried_rows(partition) == 0
    assert_as_all_computed(partition, tmp_path)


def test_damaged_hashes_cost_time_and_are_counted(tmp_path: Path):
    partition = by_content(tmp_path)
    for path in Path(partition.inputs).iterdir():
        path.write_bytes(os.urandom(16))  # or this node has the hashes already
    partition.run()
    for part in partition.current().parts:
        path = Path(partition.out.uri) / part.path
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.write_bytes(data)
    for path in Path(partition.inputs).iterdir():
        os.utime(path)
    partition.run()
    assert len(partition.computed) == NUM_ROWS
    assert partition.report()["carried"]["lookup_failed_rows"] == NUM_ROWS
    assert_as_all_computed(partition, tmp_path)


def test_of_rows_with_uris_the_bytes_that_they_lead_to_decide(tmp_path: Path):
    partition = nightly(tmp_path, write_links)
    partition.run()
    photos = Path(partition.inputs) / "photos"
    (photos / "3.jpg").write_bytes(image(900))
    os.utime(Path(partition.inputs) / "s1.parquet")
    partition.run()
    assert carried_rows(partition) == 0, "the shard does not show that photo 3 is another one"
    partition.sections["run"] = {"reuse": "content"}
    partition.partition = "date=2026-11-25"
    partition.run()  # keeps the hashes
    (photos / "5.jpg").write_bytes(image(901))
    partition.partition = "date=2026-11-26"
    partition.run()
    assert "s0.parquet#5" in partition.computed
    assert_as_all_computed(partition, tmp_path)
