"""Promise: rows that may not be carried are computed: after changes, from old or damaged versions.

`test_nights.py` tests that each night equals a full recompute, and computes no known rows.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.models.model_cases import colours_state
from support.runs.carried_runs import (
    NUM_ROWS,
    SHARD_ROWS,
    TODAY,
    assert_as_all_computed,
    change,
    make_partition,
)
from support.runs.earlier_partitions import EarlierPartition, read_with
from support.runs.night_inputs import FORMATS, image
from support.runs.published import Rows, make_plan
from support.runs.selection import quick_cases

from pipeline.commit.garbage import collect_garbage
from pipeline.commit.shard_table import read_shard_table
from pipeline.core.arrays import Numbers
from pipeline.core.errors import GateRefused
from pipeline.core.private_files import cache_folder
from pipeline.core.rows_set_aside import NOT_READ
from pipeline.core.schema import ROW_ID
from pipeline.core.semantics import environment_versions
from pipeline.reuse.checked_sample import choose_checked
from pipeline.reuse.filling import _read_rows
from pipeline.reuse.finding import Reuse
from pipeline.runs.builders import make_reader
from pipeline.runs.preparing.prepare import prepare
from pipeline.storage.store import Store

Act = Callable[[EarlierPartition], object]


@pytest.fixture(autouse=True)
def half_of_the_rows_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise almost all of so few rows would be checked."""
    monkeypatch.setattr("pipeline.reuse.finding.check_probability", lambda *_, **__: 0.5)


def nightly(
    tmp_path: Path, input_format: str = "images", *, num_rows: int = NUM_ROWS, **run: Any
) -> EarlierPartition:
    """A partition whose model has weights, so that rows can be carried."""
    sections = {"sink": {"target_part_mib": 1.0}, "run": run}
    return make_partition(tmp_path, input_format, num_rows=num_rows, has_weights=True, **sections)


def carried_rows(partition: EarlierPartition) -> int:
    return int(partition.current().carried.get("rows", 0))


def touch(partition: EarlierPartition) -> None:
    for path in Path(partition.inputs).iterdir():
        os.utime(path)


def set_to(name: str, value: Any) -> Act:
    return lambda partition: setattr(partition, name, value)


def to_section(name: str, **fields: Any) -> Act:
    def act(partition: EarlierPartition) -> None:
        section = {**partition.sections.get(name, {}), **fields}
        partition.sections = {**partition.sections, name: section}

    return act


def take_other_weights(partition: EarlierPartition) -> None:
    torch.save({name: tensor + 1 for name, tensor in colours_state().items()}, partition.weights)


def keys_of(partition: EarlierPartition) -> Path:
    return Path(partition.out.uri, partition.current().keys["folder"], "shards.parquet")


def damage(path: Path) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def leave_six(partition: EarlierPartition) -> None:
    for path in sorted(Path(partition.inputs).iterdir())[7:]:  # one of seven failed
        path.unlink()


NOTHING: dict[str, tuple[str, Act, str]] = {
    "labels": (
        "images", to_section("model", labels=[*reversed(models.LABELS)]), "the labels changed"
    ),
    "transform": (
        "parquet", to_section("transform", **{**models.TRANSFORM, "size_px": 16}),
        "transform.size_px 32 -> 16 changed",
    ),
    "source": (
        "parquet", set_to("source", FORMATS["ids"].source),
        "the source section or the columns of the job changed",
    ),
    "pass-through": (
        "parquet", lambda p: p.source.update(pass_through=[]),
        "the source section or the columns of the job changed",
    ),
    "limit": ("parquet", to_section("run", limit_rows=30), "run.limit_rows is set"),
    # One unit has all tars, of which no version knows the rows.
    "tars limit": ("tars", to_section("run", limit_rows=30), "run.limit_rows is set"),
    "top_k": ("images", to_section("model", top_k=2), "changed"),
    "weights": ("images", take_other_weights, "changed"),
    "weights of code": ("images", set_to("weights", ""), "the tensors of the model come from code"),
    "reuse off": ("images", to_section("run", reuse="off"), "run.reuse is off"),
    "--no-reuse": ("images", set_to("reuse", False), "--no-reuse was given"),
    "no hashes": ("images", to_section("run", reuse="content"), "has no hashes"),
    "damaged keys": ("images", lambda p: damage(keys_of(p)), "the table of its shards is damaged"),
    "lost keys": ("images", lambda p: keys_of(p).unlink(), "the table of its shards is missing"),
    "uris": ("uris", touch, "a shard does not show what its URIs lead to"),
    "few": ("images", leave_six, "only 6 rows could be carried, and so few are all predicted"),
}  # fmt: skip
"""Format, what happens after the first run, and why nothing is carried then."""
SILENT, RETRIED = (
    ("reuse off", "--no-reuse"),
    ("labels", "transform", "source", "limit", "tars limit"),
)
CASES = quick_cases(
    [*((case, False) for case in NOTHING), *((case, True) for case in RETRIED)],
    lambda case, is_retry: not is_retry or case in ("labels", "tars limit"),
)


@pytest.mark.parametrize(("case", "is_retry"), CASES)
def test_all_rows_are_computed_if_none_may_be_carried_and_the_reason_is_reported(
    case: str, is_retry: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    input_format, act, why = NOTHING[case]
    partition = nightly(tmp_path, input_format)
    partition.broken = {image(1).decode()}
    partition.run()
    act(partition)
    if is_retry:
        partition.broken = set()
        assert partition.retry() == "published"
        assert any(re.match(f"all rows are computed again: .*{why}$", m) for m in caplog.messages)
    else:
        change(partition, *["039.jpg"] * (input_format == "images"))  # there is something to do
        partition.run()
    assert carried_rows(partition) == 0
    assert len(partition.computed) == partition.current().num_rows
    carried = partition.report()["carried"]
    assert why in carried["why_not"]
    assert bool(carried["looked_at"]) == (case not in SILENT), "what was asked for is no news"
    assert_as_all_computed(partition, tmp_path)


@pytest.mark.parametrize("reuse", ["inputs", pytest.param("content", marks=pytest.mark.slow)])
def test_altered_predictions_are_refused_by_name_and_computed_without_reuse(
    reuse: str, tmp_path: Path
):
    partition = nightly(tmp_path, reuse=reuse)
    manifest, parts = partition.run(), []
    for part in manifest.parts:  # stays valid, and as large as the manifest says
        path = Path(partition.out.uri, part.path)
        table = pq.ParquetFile(path).read()
        labels = ["green" if value == "blue" else "blue" for value in table["label"].to_pylist()]
        place, field = table.schema.get_field_index("label"), table.schema.field("label")
        pq.write_table(table.set_column(place, field, pa.array(labels).cast(field.type)), path)
        parts.append(replace(part, size_bytes=path.stat().st_size))
    altered = replace(manifest, parts=tuple(parts)).to_json()
    partition.out.put(partition.layout.log_entry(1), altered)
    if reuse == "content":
        touch(partition)
    change(partition, "039.jpg")
    for _ in range(2):  # staged slices do not count as checked
        with pytest.raises(GateRefused, match=r"carried.*\d\d\d\.jpg.*--no-reuse"):
            partition.run()
    assert partition.current().number == 1
    partition.reuse = False
    partition.run()
    assert len(partition.computed) == NUM_ROWS
    assert_as_all_computed(partition, tmp_path)
    partition.reuse, partition.partition = True, TODAY
    partition.run()
    assert carried_rows(partition) > 0
    assert_as_all_computed(partition, tmp_path)


def test_another_environment_is_named_and_raises_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    partition, asked = nightly(tmp_path), list[bool]()
    partition.run()
    now = environment_versions()
    assert now.items() <= partition.current().versions.items()

    def choose(*arguments: Any, is_thorough: bool) -> Numbers:
        asked.append(is_thorough)
        return choose_checked(*arguments, is_thorough=is_thorough)

    monkeypatch.setattr("pipeline.reuse.finding.choose_checked", choose)
    other = {**now, "pillow": "99.1"}
    monkeypatch.setattr("pipeline.reuse.finding.environment_versions", lambda: other)
    partition.partition = TODAY
    partition.run()
    changed = partition.current().carried["changed_libraries"]
    assert (changed, asked) == ([f"pillow {now['pillow']} -> 99.1"], [True])


def write_anew(path: Path) -> None:
    """Write equal rows as other bytes."""
    pq.write_table(pq.ParquetFile(path).read(), path, compression="none")


@pytest.mark.parametrize(
    ("reuse", "act"),
    [("inputs", Path.unlink), ("inputs", write_anew), ("content", damage)],
    ids=["lost", "of other bytes", "damaged"],
)
def test_if_no_part_can_be_read_all_rows_are_computed_in_pieces_and_counted(
    reuse: str, act: Callable[[Path], None], tmp_path: Path
):
    partition = nightly(tmp_path, num_rows=120, reuse=reuse)
    partition.broken = {"003.jpg"}
    for part in partition.run().parts:
        act(Path(partition.out.uri, part.path))
    if reuse == "content":
        touch(partition)
    change(partition, "039.jpg")
    partition.partition = TODAY
    partition.run()
    partition.status = "published"
    rows, carried = (partition.report()[name] for name in ("rows", "carried"))
    assert (rows["computed"], rows["total"], rows["quarantined"]) == (120, 120, 1)
    assert not rows.get("carried")
    assert not carried["rows"]
    assert max(partition.slice_rows) <= 2 * 4 + 32
    assert partition.record is not None
    not_read = sum(
        n for text, n in partition.record.figures.advice.items() if text.startswith(NOT_READ)
    )
    if reuse == "inputs":
        assert NOT_READ in carried["why_not"]
        assert not_read == 118, "but for the failed and the changed one"
    else:
        assert carried["lookup_failed_rows"] == 120
    assert_as_all_computed(partition, tmp_path)


def test_a_row_found_by_its_content_has_the_hash_looked_for(tmp_path: Path):
    # Of 40 rows, fewer than 16 would be drawn once in thirteen times, and none be carried.
    partition = nightly(tmp_path, num_rows=120, reuse="content")
    partition.run()
    touch(partition)
    nights = [partition.at(Store(str(tmp_path / f"night-{n}"))) for n in range(2)]
    for night in nights:
        shutil.copytree(partition.out.uri, night.out.uri)
    nights[0].run()
    assert carried_rows(nights[0])
    (index,) = cache_folder().glob("hashes-*/ordinals.npy")
    np.save(index, np.load(index)[::-1])  # and the cache was found whole before
    nights[1].run()
    assert carried_rows(nights[1]) == 0
    assert nights[1].record is not None
    [advice] = nights[1].record.figures.advice
    assert advice.startswith(f"{NOT_READ}: {partition.layout.name} version 1: the index of its has")
    assert_as_all_computed(nights[1], tmp_path)
    files = (Path("/proc/self/fd") / number for number in os.listdir("/proc/self/fd"))
    open_files = [str(path.resolve()) for path in files]
    assert not [name for name in open_files if "hashes-" in name], "nothing is held"


@pytest.mark.parametrize(("num_known", "is_carried"), [(30, False), (100, True)])
def test_at_least_16_rows_found_by_their_content_are_checked_or_none_is_carried(
    num_known: int, is_carried: bool, tmp_path: Path
):
    num_rows = 300
    partition = nightly(tmp_path, "parquet", num_rows=num_rows, reuse="content")
    partition.run()
    for number in range(num_known // SHARD_ROWS, num_rows // SHARD_ROWS):
        rows = [*range(1000 + number * SHARD_ROWS, 1000 + (number + 1) * SHARD_ROWS)]
        FORMATS["parquet"].write(Path(partition.inputs) / f"s{number}.parquet", rows)
    touch(partition)
    partition.run()
    assert partition.record is not None
    assert bool(carried_rows(partition)) is is_carried
    assert carried_rows(partition) + partition.record.num_checked == num_known
    assert partition.record.num_checked >= 16
    assert_as_all_computed(partition, tmp_path)


def test_predictions_of_an_unchanged_shard_keep_their_age(tmp_path: Path):
    """They are carried from an older version, although a newer one knows a shard of that name."""
    partition = make_partition(tmp_path, num_rows=20, folders="abc", has_weights=True)
    one, other = (Path(partition.inputs) / name for name in "ab")
    partition.run()
    then, partition.today = partition.today, partition.today + 2
    for _ in range(2):  # there and back, with the times of the files
        one.rename(tmp_path / "away")
        other.rename(one)
        (tmp_path / "away").rename(other)
        collect_garbage(partition.out, partition.layout, grace_s=-3600.0)
        partition.run()
    assert len(partition.current().carried["sources"]) == 2
    table = read_shard_table(partition.out, partition.layout, partition.current())
    assert {shard.computed_day for shard in table.shards} == {then}
    assert_as_all_computed(partition, tmp_path)


def test_rows_found_by_content_without_a_day_are_computed(tmp_path: Path):
    """A tar that breaks off is not a known shard, so the day of its rows is unknown."""
    partition = nightly(tmp_path, "tars", num_rows=80, reuse="content")
    path = Path(partition.inputs) / "s1.tar"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 + 700])
    partition.run()
    touch(partition)
    partition.run()
    read = [row for row in partition.content()[0] if row["row_id"].startswith("s1.tar")]
    assert read
    assert {row["row_id"] for row in read} <= set(partition.computed)
    assert int(partition.current().carried["content_rows"]) > 0


def test_nothing_is_carried_from_a_version_of_limited_rows(tmp_path: Path):
    partition = nightly(tmp_path, "parquet", limit_rows=NUM_ROWS - 5)
    assert partition.run().keys == {}
    partition.sections["run"] = {}
    partition.run()
    assert (carried_rows(partition), len(partition.computed)) == (0, NUM_ROWS)


def test_rows_with_uris_are_known_by_the_bytes_behind_them(tmp_path: Path):
    partition = nightly(tmp_path, "uris", num_rows=80, reuse="content")
    partition.run()
    photos = Path(partition.inputs) / "photos"
    for row in range(10):  # more than are checked anyway
        (photos / f"{row}.jpg").write_bytes(image(901 + row))
    partition.partition = TODAY
    partition.run()
    assert {f"s0.parquet#{row}" for row in range(10)} <= set(partition.computed)
    assert carried_rows(partition) > 0
    assert_as_all_computed(partition, tmp_path)


@pytest.mark.parametrize("input_format", ["tars", "jsonl"])
def test_rows_behind_the_break_of_a_known_shard_fail_under_ids_of_their_places(
    input_format: str, tmp_path: Path
):
    partition = make_partition(tmp_path, input_format, num_rows=120, shard_rows=120, contents=7)
    run = partition.new_run()
    [path] = Path(partition.inputs).iterdir()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    plan, _ = prepare(run)
    reader, counters = make_reader(run.job, plan), {}
    before = [1] if input_format == "tars" else []  # of so few lines none can be read
    for behind in ([119], [118, 119]):
        rows = np.array([*before, *behind])
        table = _read_rows(reader, plan.units[0], rows, read_with(reader), counters)
        errors = [None] * len(before) + ["unreadable_shard"] * len(behind)
        assert table.column("error").to_pylist() == errors
        ids = table.column(ROW_ID).to_pylist()[len(before) :]
        assert ids == [f"{path.name}#{row}" for row in behind]


def test_rows_carried_by_a_straggler_are_computed_where_nothing_is_carried():
    assert Reuse(make_plan(Rows())).oldest_day == 0
