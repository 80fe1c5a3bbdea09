"""Promise: with `source.where`, a night computes only rows that no night before has chosen."""

from __future__ import annotations

import base64
import csv
import json
import random
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.models.model_cases import colours_state
from support.runs.carried_runs import assert_as_all_computed
from support.runs.earlier_partitions import EarlierPartition
from support.runs.night_inputs import image

from pipeline.core.errors import GateRefused
from pipeline.published.verify import verify_output
from pipeline.storage.store import Store

SHARD_ROWS = 40
GATES = {"max_error_pct": 100.0, "constant": {"mode": "off"}}


FORMATS = ("parquet", "jsonl", "csv")
BASE64 = {"image_encoding": "base64", "casts": {"number": "int32"}}
FIELDS = {"parquet": {}, "jsonl": BASE64, "csv": BASE64}


def write(folder: Path, name: str, first: int) -> None:
    """Write a shard whose rows are numbered from `first`, in row groups of seven."""
    numbers = range(first, first + SHARD_ROWS)
    rows = {
        "image": pa.array([image(number) for number in numbers], pa.binary()),
        "number": pa.array(numbers, pa.int32()),
        "lang": pa.array(["de" if number % 3 else None for number in numbers]),
    }
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        pq.write_table(pa.table(rows), path, row_group_size=7)
        return
    lines = [
        {**row, "image": base64.b64encode(row["image"]).decode()}
        for row in pa.table(rows).to_pylist()
    ]
    with path.open("w", newline="") as file:
        if name.endswith(".csv"):
            writer = csv.DictWriter(file, [*rows])
            writer.writeheader()
            writer.writerows(lines)
        else:
            file.writelines(json.dumps(line) + "\n" for line in lines)


def misjudge(folder: Path, name: str) -> None:
    """Make the language of a row of JSON lines a number, which is no text."""
    if name.endswith(".jsonl"):
        path = folder / name
        path.write_text(path.read_text().replace('"de"', "5", 1))


def partition_of(
    tmp_path: Path, where: str | None, reuse: str = "inputs", form: str = "parquet"
) -> EarlierPartition:
    names = ["number", "day"]
    source = {"format": form, "where": where, "pass_through": names, **FIELDS[form]}
    partition = EarlierPartition(
        str(tmp_path / "in"),
        Store(str(tmp_path / "out")),
        source,
        sections={"run": {"reuse": reuse}, "gates": GATES},
    )
    partition.weights = str(tmp_path / "weights.pt")
    torch.save(colours_state(), partition.weights)
    return partition


def three_days(tmp_path: Path, form: str = "parquet") -> None:
    for day in range(3):
        write(tmp_path / "in", f"day=2026-11-2{day}/a.{form}", day * SHARD_ROWS)


def numbers_of(partition: EarlierPartition) -> set[int]:
    return {row["number"] for row in partition.content()[0]}


@pytest.mark.parametrize("form", FORMATS)
def test_a_night_with_another_condition_computes_only_rows_that_are_new(form: str, tmp_path: Path):
    three_days(tmp_path, form)
    partition = partition_of(tmp_path, "day <= date '2026-11-21' and number < 80", form=form)
    partition.run()
    assert numbers_of(partition) == {*range(80)}
    partition.source["where"] = "number between 5 and 90"
    partition.run()
    rows = partition.report()["rows"]
    assert rows["total"] == 86
    assert (rows["left_out"], rows["unopened_shards"]) == (3 * SHARD_ROWS - 86, 0)
    assert rows["carried"] >= 40, "rows 5 to 79 are known; some are computed as a check"
    assert {f"day=2026-11-22/a.{form}#{row}" for row in range(11)} <= {*partition.computed}
    assert numbers_of(partition) == {*range(5, 91)}
    assert_as_all_computed(partition, tmp_path)
    partition.source["where"] = None
    partition.run()
    assert partition.current().num_rows == 3 * SHARD_ROWS
    assert partition.report()["rows"]["left_out"] is None
    assert_as_all_computed(partition, tmp_path)


@pytest.mark.parametrize("form", FORMATS)
def test_a_change_in_another_partition_of_the_source_is_nothing_to_do(form: str, tmp_path: Path):
    three_days(tmp_path, form)
    partition = partition_of(tmp_path, "day = '2026-11-21'", form=form)
    partition.run()
    number = partition.current().number
    for name in (f"day=2026-11-22/b.{form}", f"day=2026-11-20/a.{form}"):
        write(tmp_path / "in", name, 900)
    partition.source["where"] = "(\"day\" IN ('2026-11-21'))"  # the same, in other words
    partition.run()
    assert partition.current().number == number
    assert partition.computed == []


def test_a_value_that_cannot_be_judged_is_quarantined_although_its_row_is_known(tmp_path: Path):
    three_days(tmp_path, "jsonl")
    misjudge(tmp_path / "in", "day=2026-11-20/a.jsonl")
    partition = partition_of(tmp_path, "number < 100", form="jsonl")
    partition.run()
    assert partition.failed() == {}
    for where in ("lang = 'de'", "lang = 'de' and number > 7"):
        partition.source["where"] = where
        partition.run()
        assert partition.failed() == {"day=2026-11-20/a.jsonl#1": "bad_schema"}
        assert partition.report()["rows"]["carried"] > 0
        assert_as_all_computed(partition, tmp_path)


SEEDS = [3, 6, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 1, 2, 4, 5, 7))]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("seed", SEEDS)
def test_nights_with_any_condition_equal_whole_runs(seed: int, form: str, tmp_path: Path):
    chance = random.Random(seed)
    three_days(tmp_path, form)
    misjudge(tmp_path / "in", f"day=2026-11-21/a.{form}")
    partition = partition_of(tmp_path, None, chance.choice(["inputs", "content"]), form)
    for night in range(5):
        low, high = sorted(chance.sample(range(3 * SHARD_ROWS + 40 * night), 2))
        partition.source["where"] = chance.choice(
            [
                None,
                f"number between {low} and {high + 5}",
                f"lang is null or number in ({low}, {high}, 7)",
                f"not (number >= {low} and lang = 'de') or day = '2026-11-20'",
            ]
        )
        new = f"day=2026-11-2{night}/{night}.{form}"
        write(tmp_path / "in", new, 120 + 40 * night)
        partition.broken = {f"{new}#{row}" for row in (1, 9, 12)}
        partition.run()
        assert_as_all_computed(partition, tmp_path)
        partition.broken = set()
        partition.retry()
        assert_as_all_computed(partition, tmp_path)
        failed = {f"day=2026-11-21/a.{form}#0"} if form == "jsonl" else set()
        assert {*partition.failed()} <= failed
    verify_output(partition.out.uri, partition.partition, {})


def test_a_condition_that_leaves_out_everything_is_refused_with_its_text(tmp_path: Path):
    three_days(tmp_path)
    partition = partition_of(tmp_path, "day = '2026-11-20' and number > 999")
    with pytest.raises(
        GateRefused, match=r"source\.where = .*number > 999.*: no row matches; .*allow_empty"
    ) as caught:
        partition.run()
    assert "40 rows and 2 unopened shards left out" in str(caught.value)
    partition.sections["gates"] = {"allow_empty": True, **GATES}
    partition.run()
    manifest = partition.current()
    assert (manifest.num_rows, manifest.left_out) == (0, {"rows": 40, "shards": 2})
    assert manifest.source["where"] == '"day" = \'2026-11-20\' and "number" > 999'


@pytest.mark.parametrize("form", FORMATS)
def test_a_run_that_was_killed_goes_on_and_its_version_passes_verify(form: str, tmp_path: Path):
    three_days(tmp_path, form)
    where = "lang is null or number between 50 and 70"
    partition = partition_of(tmp_path, where, "off", form)
    partition.run_killed("slice_put:4")
    partition = replace(partition, lease_ttl_s=0.5)
    partition.run()
    assert partition.report()["rows"]["resumed"] > 0
    assert numbers_of(partition) == {n for n in range(120) if n % 3 == 0 or 50 <= n <= 70}
    assert_as_all_computed(partition, tmp_path)
    verify_output(partition.out.uri, partition.partition, {})
