"""Carried rows, by the rules that they keep to: each night is what a run of all rows gives."""

from __future__ import annotations

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
from support.runs.carried_runs import age_versions, assert_as_all_computed, stop_at
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

from pipeline.commit.published.garbage import collect_garbage
from pipeline.commit.published.rollback import rollback
from pipeline.commit.shard_table import read_shard_table
from pipeline.core.errors import GateRefused

Write = Callable[[Path], dict[str, Any]]
SOURCES: list[Write] = [write_images, write_parquet, write_tars, write_lines, write_csv]
"""Formats whose rows are known by listing, by measuring and by reading."""
BROKEN = image(31).decode()
"""What the decoder cannot take."""
NEXT_DAY = "date=2026-11-25"


@pytest.fixture(autouse=True)
def half_of_the_found_rows_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so few rows that are found by content almost all would be."""
    monkeypatch.setattr("pipeline.reuse.finding.check_probability", lambda *_, **__: 0.5)


def nightly(tmp_path: Path, write: Write = write_images, **sections: Any) -> EarlierPartition:
    """A partition whose model has weights, so that rows can be carried."""
    sections["sink"] = {"target_part_mib": 1.0, **sections.get("sink", {})}
    partition = make_partition(tmp_path, write, **sections)
    partition.weights = str(tmp_path / "weights.pt")
    torch.save(colours_state(), partition.weights)
    return partition


def by_content(tmp_path: Path, write: Write = write_images) -> EarlierPartition:
    return nightly(tmp_path, write, run={"reuse": "content"})


def carried_rows(partition: EarlierPartition) -> int:
    return int(partition.current().carried.get("rows", 0))


def checked_rows(partition: EarlierPartition) -> int:
    """At least 16, where so many are carried."""
    found = int(partition.current().carried["checked_rows"])
    assert found >= 16
    return found


def files(partition: EarlierPartition) -> list[Path]:
    return sorted(Path(partition.inputs).iterdir())


def change(partition: EarlierPartition, rows: list[int], to: int = 1000) -> None:
    """Write other photos into files of the source."""
    for row in rows:
        (Path(partition.inputs) / f"{row:03d}.jpg").write_bytes(image(to + row))


def add_change_and_remove(partition: EarlierPartition) -> None:
    change(partition, [3, 17])
    (Path(partition.inputs) / "900.jpg").write_bytes(image(900))
    (Path(partition.inputs) / "010.jpg").unlink()


def replace_and_add(partition: EarlierPartition) -> None:
    replace_and_keep_the_time(partition)
    (Path(partition.inputs) / "900.jpg").write_bytes(image(900))


def replace_and_keep_the_time(partition: EarlierPartition) -> None:
    path = Path(partition.inputs) / "005.jpg"
    before, other = path.stat(), path.with_name("other.tmp")
    other.write_bytes(image(7))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def twice(write: Write) -> Write:
    """As many shards again: of fewer rows that are known all would be checked."""

    def write_twice(folder: Path) -> dict[str, Any]:
        source = write(folder)
        for path in [*folder.iterdir()]:
            path.with_name(f"x{path.name}").write_bytes(path.read_bytes())
        return source

    return write_twice


def touch_a_shard(partition: EarlierPartition) -> None:
    status = files(partition)[2].stat()
    os.utime(files(partition)[2], ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def mend(partition: EarlierPartition) -> None:
    partition.broken.clear()
    change(partition, [2])


def be_refused(partition: EarlierPartition) -> None:
    change(partition, [1])
    with pytest.raises(GateRefused, match="max_error_pct"):
        replace(partition, sections={"gates": {"max_error_pct": 0.0, "min_rows": 1}}).run()
    change(partition, [2])


def take_back(*rows: int) -> Callable[[EarlierPartition], None]:
    """Publish a version that has other photos, and take it back."""

    def act(partition: EarlierPartition) -> None:
        change(partition, [*rows])
        partition.run()
        rollback(partition.out, partition.layout, "by-hand", keep_versions=3, to_number=1)
        change(partition, [NUM_ROWS - 1])

    return act


def move_the_weights(partition: EarlierPartition) -> None:
    moved = Path(partition.weights).with_name("elsewhere.pt")
    moved.write_bytes(Path(partition.weights).read_bytes())
    partition.weights, partition.partition = str(moved), NEXT_DAY


def age_by(days: int) -> Callable[[EarlierPartition], None]:
    def act(partition: EarlierPartition) -> None:
        age_versions(partition.out, days)
        change(partition, [2])

    return act


def set_to(name: str, value: Any) -> Callable[[EarlierPartition], None]:
    def act(partition: EarlierPartition) -> None:
        setattr(partition, name, value)

    return act


SOME: list[tuple[Write, Callable[[EarlierPartition], None], set[str]]] = [
    *((write, set_to("partition", NEXT_DAY), set()) for write in SOURCES),
    (write_images, add_change_and_remove, {"003.jpg", "017.jpg", "900.jpg"}),
    (write_images, replace_and_add, {"005.jpg", "900.jpg"}),
    (write_images, touch_a_shard, {"002.jpg"}),
    (twice(write_parquet), touch_a_shard, {f"s2.parquet#{row}" for row in range(10)}),
    (twice(write_tars), touch_a_shard, {f"t2.tar/k{row}" for row in range(10)}),
    (write_images, mend, {"002.jpg", "031.jpg"}),
    (write_images, be_refused, {"001.jpg", "002.jpg"}),
    (write_images, take_back(1), {"001.jpg", "039.jpg"}),
    (write_images, move_the_weights, set()),
    (write_images, age_by(1), {"002.jpg"}),
]
"""Format, what happens between two nights, and which rows it makes unknown."""


@pytest.mark.parametrize(("write", "act", "unknown"), SOME)
def test_only_rows_that_are_unknown_failed_or_checked_are_computed(
    write: Write, act: Callable[[EarlierPartition], None], unknown: set[str], tmp_path: Path
):
    partition = nightly(tmp_path, write, run={"reuse_max_age_days": 1.5})
    partition.broken = {BROKEN}
    partition.run()
    to_compute = {*partition.failed(), *unknown}
    act(partition)
    partition.run()
    assert to_compute <= set(partition.computed)
    num_checked = checked_rows(partition)
    assert len(partition.computed) == len(to_compute) + num_checked
    assert carried_rows(partition) == partition.current().num_rows - len(partition.computed) > 0
    gates = {gate["name"]: gate["message"] for gate in partition.current().gates}
    assert gates["carried"].startswith(f"{num_checked} of ")
    num_predicted = len({*partition.computed} - {*partition.failed()})
    assert f"{num_predicted} computed predictions" in gates["constant"]
    version = partition.current().number
    assert partition.run().number == version, "nothing to do"
    assert_as_all_computed(partition, tmp_path)


def test_a_file_that_was_replaced_with_its_size_and_time_kept_is_computed(tmp_path: Path):
    partition = nightly(tmp_path)
    partition.run()
    replace_and_keep_the_time(partition)
    partition.run()
    assert "005.jpg" in partition.computed
    assert carried_rows(partition) > 0
    assert_as_all_computed(partition, tmp_path)


def take_other_weights(partition: EarlierPartition) -> None:
    state = colours_state()
    state["head.bias"] += 1
    torch.save(state, partition.weights)


def damage_keys(partition: EarlierPartition) -> None:
    """Flip one bit of the table of the version's shards."""
    path = keys_of(partition)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def keys_of(partition: EarlierPartition) -> Path:
    return Path(partition.out.uri, partition.current().keys["folder"], "shards.parquet")


def to_section(name: str, **fields: Any) -> Callable[[EarlierPartition], None]:
    def act(partition: EarlierPartition) -> None:
        partition.sections[name] = {**partition.sections.get(name, {}), **fields}

    return act


NOTHING: dict[str, tuple[Write, Callable[[EarlierPartition], object]]] = {
    "transform": (write_images, to_section("transform", **{**models.TRANSFORM, "size_px": 16})),
    "top_k": (write_images, to_section("model", top_k=2)),
    "labels": (write_images, to_section("model", labels=[*reversed(models.LABELS)])),
    "weights": (write_images, take_other_weights),
    "pass-through": (write_parquet, lambda p: p.source.update(pass_through=[])),
    "reuse off": (write_images, to_section("run", reuse="off")),
    "--no-reuse": (write_images, set_to("reuse", False)),
    "limit": (write_images, to_section("run", limit_rows=NUM_ROWS)),
    "no hashes": (write_images, to_section("run", reuse="content")),
    "too old": (write_images, age_by(2)),
    "of a day to come": (write_images, age_by(-1)),
    "damaged keys": (write_images, damage_keys),
    "lost keys": (write_images, lambda p: keys_of(p).unlink()),
    "taken back": (write_images, take_back(*range(1, NUM_ROWS - 1))),
}


@pytest.mark.parametrize("case", NOTHING)
def test_all_rows_are_computed_where_none_may_be_carried(case: str, tmp_path: Path):
    write, act = NOTHING[case]
    partition = nightly(tmp_path, write, run={"reuse_max_age_days": 1.5})
    partition.run()
    act(partition)
    if write is write_images:
        change(partition, [NUM_ROWS - 1])  # so that there is something to do
    partition.run()
    assert carried_rows(partition) == 0
    assert len(partition.computed) == NUM_ROWS
    assert_as_all_computed(partition, tmp_path)


def test_a_model_without_weights_carries_nothing(tmp_path: Path):
    partition = make_partition(tmp_path, write_images)
    partition.run()
    change(partition, [1])
    partition.run()
    assert carried_rows(partition) == 0
    assert len(partition.computed) == NUM_ROWS


def test_a_row_with_the_id_of_a_carried_one_is_the_duplicate_that_a_full_run_has(tmp_path: Path):
    partition = nightly(tmp_path, write_ids)
    partition.run()
    folder = Path(partition.inputs)
    # One before all other shards, whose id row 25 has, and one behind them.
    for name, ids in (("a.parquet", ["id-25", "new-1"]), ("z.parquet", ["id-3", "new-2"])):
        cameras = pa.nulls(2, pa.string())
        table = pa.table({"image": [image(500), image(501)], "camera": cameras, "id": ids})
        pq.write_table(table, folder / name)
    partition.run()
    assert carried_rows(partition) > 0
    assert partition.failed() == {"id-25": "duplicate_id", "id-3": "duplicate_id"}
    assert_as_all_computed(partition, tmp_path)
    os.utime(folder / "s0.parquet")
    partition.run()
    assert_as_all_computed(partition, tmp_path)


def days_of(partition: EarlierPartition) -> dict[str, int]:
    """When the predictions of each shard were computed."""
    table = read_shard_table(partition.out, partition.layout, partition.current())
    return {shard.uri: shard.computed_day for shard in table.shards}


def test_a_prediction_grows_older_while_it_is_carried_on(tmp_path: Path):
    partition = nightly(tmp_path)
    partition.run()
    age_versions(partition.out, 2)
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
    age_versions(partition.out, 1)
    change(partition, [*range(20)])
    partition.run()
    change(partition, [0], to=2000)
    stop_at("tiled", partition.run)
    age_versions(partition.out, 1)
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
    age_versions(partition.out, 2)
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


def touch_all(partition: EarlierPartition) -> None:
    for path in files(partition):
        os.utime(path)


@pytest.mark.parametrize(
    "write", quick_cases(((write,) for write in SOURCES), lambda write: write is SOURCES[0])
)
def test_touched_files_of_the_same_content_are_read_and_not_computed(write: Write, tmp_path: Path):
    partition = by_content(tmp_path, write)
    partition.run()
    touch_all(partition)
    partition.run()
    assert partition.said
    assert partition.computed
    found = partition.current().carried.get("content_rows", 0)
    assert found == NUM_ROWS - len(partition.computed)
    assert_as_all_computed(partition, tmp_path)
    partition.partition = NEXT_DAY
    partition.run()  # from a version whose rows were found themselves
    assert_as_all_computed(partition, tmp_path)


def test_rows_found_by_content_have_the_other_columns_of_the_new_input(tmp_path: Path):
    partition = by_content(tmp_path, write_parquet)
    partition.run()
    for path in files(partition):
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
    touch_all(partition)
    partition.run()
    read = [row for row in partition.content()[0] if row["row_id"].startswith("t1.tar")]
    assert read
    assert {row["row_id"] for row in read} <= set(partition.computed)
    assert int(partition.current().carried["content_rows"]) > 0
    assert_as_all_computed(partition, tmp_path)


def test_damaged_hashes_cost_time_and_are_counted(tmp_path: Path):
    partition = by_content(tmp_path)
    for path in files(partition):
        path.write_bytes(os.urandom(16))  # or this node has the hashes already
    partition.run()
    for part in partition.current().parts:
        path = Path(partition.out.uri) / part.path
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.write_bytes(data)
    touch_all(partition)
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
    partition.partition = NEXT_DAY
    partition.run()  # keeps the hashes
    (photos / "5.jpg").write_bytes(image(901))
    partition.partition = "date=2026-11-26"
    partition.run()
    assert "s0.parquet#5" in partition.computed
    assert_as_all_computed(partition, tmp_path)
