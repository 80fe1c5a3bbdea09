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
from support.runs.carried_runs import (
    NUM_ROWS,
    age_versions,
    assert_as_all_computed,
    make_partition,
    stop_at,
)
from support.runs.earlier_partitions import EarlierPartition
from support.runs.night_inputs import image
from support.runs.selection import quick_cases

from pipeline.commit.published.garbage import collect_garbage
from pipeline.commit.published.rollback import rollback
from pipeline.commit.shard_table import read_shard_table
from pipeline.core.errors import GateRefused

Act = Callable[[EarlierPartition], object]
BROKEN = image(31).decode()
"""What the decoder cannot take."""
NEXT_DAY = "date=2026-11-25"


@pytest.fixture(autouse=True)
def half_of_the_found_rows_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so few rows that are found by content almost all would be."""
    monkeypatch.setattr("pipeline.reuse.finding.check_probability", lambda *_, **__: 0.5)


def nightly(
    tmp_path: Path, kind: str = "images", *, num_rows: int = NUM_ROWS, **run: Any
) -> EarlierPartition:
    """A partition whose model has weights, so that rows can be carried."""
    sections = {"sink": {"target_part_mib": 1.0}, "run": run}
    return make_partition(tmp_path, kind, num_rows=num_rows, has_weights=True, **sections)


def carried_rows(partition: EarlierPartition) -> int:
    return int(partition.current().carried.get("rows", 0))


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


def replace_and_keep_the_time(partition: EarlierPartition) -> None:
    path = Path(partition.inputs) / "005.jpg"
    before, other = path.stat(), path.with_name("other.tmp")
    other.write_bytes(image(7))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def touch(*places: int) -> Act:
    def act(partition: EarlierPartition) -> None:
        for path in [files(partition)[place] for place in places] or files(partition):
            os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))

    return act


def mend(partition: EarlierPartition) -> None:
    partition.broken.clear()
    change(partition, [2])


def be_refused(partition: EarlierPartition) -> None:
    change(partition, [1])
    with pytest.raises(GateRefused, match="max_error_pct"):
        replace(partition, sections={"gates": {"max_error_pct": 0.0, "min_rows": 1}}).run()
    change(partition, [2])


def take_back(*rows: int) -> Act:
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


def age_by(days: int) -> Act:
    def act(partition: EarlierPartition) -> None:
        age_versions(partition.out, days)
        change(partition, [2])

    return act


def set_to(name: str, value: Any) -> Act:
    return lambda partition: setattr(partition, name, value)


def to_section(name: str, **fields: Any) -> Act:
    def act(partition: EarlierPartition) -> None:
        partition.sections[name] = {**partition.sections.get(name, {}), **fields}

    return act


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


KINDS = ("images", "tars", "parquet", "jsonl", "csv")
"""Formats whose rows are known by listing, by measuring and by reading."""
SOME: list[tuple[str, str, str, Act, set[str]]] = [
    *(("inputs", kind, "another day", set_to("partition", NEXT_DAY), set()) for kind in KINDS),
    *(("content", kind, "touched", touch(), set()) for kind in KINDS),
    ("inputs", "images", "changed", add_change_and_remove, {"003.jpg", "017.jpg", "900.jpg"}),
    ("inputs", "images", "kept time", replace_and_keep_the_time, {"005.jpg"}),
    ("inputs", "images", "touched", touch(2), {"002.jpg"}),
    ("inputs", "parquet", "touched", touch(1), {f"s1.parquet#{row}" for row in range(10)}),
    ("inputs", "tars", "touched", touch(1), {f"s1.tar/k{row}" for row in range(10)}),
    ("inputs", "images", "mended", mend, {"002.jpg", "031.jpg"}),
    ("inputs", "images", "refused", be_refused, {"001.jpg", "002.jpg"}),
    ("inputs", "images", "taken back", take_back(1), {"001.jpg", "039.jpg"}),
    ("inputs", "images", "moved weights", move_the_weights, set()),
    ("inputs", "images", "a day older", age_by(1), {"002.jpg"}),
]
"""What `run.reuse` says, format, what happens between two nights, which rows it makes unknown."""


def is_quick(reuse: str, kind: str, what: str, *_: object) -> bool:
    many = {("inputs", "another day"): ("images", "tars"), ("content", "touched"): ("parquet",)}
    return kind in many.get((reuse, what), KINDS)


@pytest.mark.parametrize(("reuse", "kind", "what", "act", "unknown"), quick_cases(SOME, is_quick))
def test_only_rows_that_are_unknown_failed_or_checked_are_computed(
    reuse: str, kind: str, what: str, act: Act, unknown: set[str], tmp_path: Path
):
    # Of thirty rows that are known all would be checked.
    num_rows = 80 if what == "touched" else NUM_ROWS
    partition = nightly(tmp_path, kind, num_rows=num_rows, reuse=reuse, reuse_max_age_days=1.0)
    partition.broken = {BROKEN}
    partition.run()
    to_compute = {*partition.failed(), *unknown}
    act(partition)
    partition.run()
    assert to_compute <= set(partition.computed)
    num_checked = int(partition.current().carried["checked_rows"])
    assert num_checked >= (16 if reuse == "inputs" else 1)
    assert len(partition.computed) == len(to_compute) + num_checked
    assert carried_rows(partition) == partition.current().num_rows - len(partition.computed) > 0
    gates = {gate["name"]: gate["message"] for gate in partition.current().gates}
    assert gates["carried"].startswith(f"{num_checked} of ")
    num_predicted = len({*partition.computed} - {*partition.failed()})
    assert f"{num_predicted} computed predictions" in gates["constant"]
    version = partition.current().number
    assert partition.run().number == version, "nothing to do"
    assert_as_all_computed(partition, tmp_path)


NOTHING: dict[str, tuple[str, Act]] = {
    "transform": ("images", to_section("transform", **{**models.TRANSFORM, "size_px": 16})),
    "top_k": ("images", to_section("model", top_k=2)),
    "labels": ("images", to_section("model", labels=[*reversed(models.LABELS)])),
    "weights": ("images", take_other_weights),
    "weights of code": ("images", set_to("weights", "")),
    "pass-through": ("parquet", lambda p: p.source.update(pass_through=[])),
    "reuse off": ("images", to_section("run", reuse="off")),
    "--no-reuse": ("images", set_to("reuse", False)),
    "limit": ("images", to_section("run", limit_rows=NUM_ROWS)),
    "no hashes": ("images", to_section("run", reuse="content")),
    "too old": ("images", age_by(2)),
    "of a day to come": ("images", age_by(-1)),
    "damaged keys": ("images", damage_keys),
    "lost keys": ("images", lambda p: keys_of(p).unlink()),
    "taken back": ("images", take_back(*range(1, NUM_ROWS - 1))),
}


@pytest.mark.parametrize("case", NOTHING)
def test_all_rows_are_computed_where_none_may_be_carried(case: str, tmp_path: Path):
    kind, act = NOTHING[case]
    partition = nightly(tmp_path, kind, reuse_max_age_days=1.0)
    partition.run()
    act(partition)
    if kind == "images":
        change(partition, [NUM_ROWS - 1])  # so that there is something to do
    partition.run()
    assert carried_rows(partition) == 0
    assert sorted(partition.computed) == sorted(r["row_id"] for r in partition.content()[0])
    assert len(partition.computed) == NUM_ROWS


def test_a_row_with_the_id_of_a_carried_one_is_the_duplicate_that_a_full_run_has(tmp_path: Path):
    partition = nightly(tmp_path, "ids")
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
    (then,) = {*days_of(partition).values()}
    for night in (1, 2):
        change(partition, [night])
        partition.run()
    days = days_of(partition)
    changed = {days.pop(f"{partition.inputs}/00{night}.jpg") for night in (1, 2)}
    assert (changed, set(days.values())) == ({then + 2}, {then})


def test_what_a_stopped_run_has_taken_over_grows_too_old_as_well(tmp_path: Path):
    partition = nightly(tmp_path, reuse_max_age_days=1.0)
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
    old, new = Path(partition.inputs) / "a", tmp_path / "b"
    for where, first in ((old, 100), (new, 500)):
        where.mkdir()
        for row in range(20):
            (where / f"{row}.jpg").write_bytes(image(first + row))
    partition.run()
    age_versions(partition.out, 2)
    (then,) = {*days_of(partition).values()}
    for _ in range(2):  # there and back, with the times of the files
        old.rename(tmp_path / "away")
        new.rename(old)
        (tmp_path / "away").rename(new)
        collect_garbage(partition.out, partition.layout, grace_s=-3600.0)
        partition.run()
    assert len(partition.current().carried["sources"]) == 2
    assert days_of(partition)[f"{old}/3.jpg"] == then
    assert_as_all_computed(partition, tmp_path)


def test_rows_by_content_of_which_no_day_is_known_are_computed(tmp_path: Path):
    """Those of a tar that breaks off: it is no known shard, so nothing says how old they are."""
    partition = nightly(tmp_path, "tars", reuse="content")
    path = Path(partition.inputs) / "s1.tar"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 + 700])
    partition.run()
    touch()(partition)
    partition.run()
    read = [row for row in partition.content()[0] if row["row_id"].startswith("s1.tar")]
    assert read
    assert {row["row_id"] for row in read} <= set(partition.computed)
    assert int(partition.current().carried["content_rows"]) > 0


def test_nothing_is_carried_from_a_version_of_some_rows(tmp_path: Path):
    partition = nightly(tmp_path, "parquet", limit_rows=NUM_ROWS - 5)
    assert partition.run().keys == {}
    partition.sections["run"] = {}
    partition.run()
    assert (carried_rows(partition), len(partition.computed)) == (0, NUM_ROWS)


def test_damaged_hashes_cost_time_and_are_counted(tmp_path: Path):
    partition = nightly(tmp_path, reuse="content")
    partition.run()
    for part in partition.current().parts:
        path = Path(partition.out.uri) / part.path
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.write_bytes(data)
    touch()(partition)
    partition.run()
    assert len(partition.computed) == NUM_ROWS
    assert partition.report()["carried"]["lookup_failed_rows"] == NUM_ROWS


def test_of_rows_with_uris_the_bytes_that_they_lead_to_decide(tmp_path: Path):
    partition = nightly(tmp_path, "uris")
    partition.run()
    photos = Path(partition.inputs) / "photos"
    (photos / "3.jpg").write_bytes(image(900))
    os.utime(Path(partition.inputs) / "s1.parquet")
    partition.run()
    assert carried_rows(partition) == 0, "the shard does not show that photo 3 is another one"
    partition.sections["run"] = {"reuse": "content"}
    partition.partition = NEXT_DAY
    partition.run()  # keeps the hashes
    for row in range(10):  # more than are checked anyway
        (photos / f"{row}.jpg").write_bytes(image(901 + row))
    partition.partition = "date=2026-11-26"
    partition.run()
    assert {f"s0.parquet#{row}" for row in range(10)} <= set(partition.computed)
    assert carried_rows(partition) > 0
    assert_as_all_computed(partition, tmp_path)
