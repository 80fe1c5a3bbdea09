"""The keys of a retry's version are those that a run with the same failures writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.models.model_cases import colours_state
from support.runs.earlier_partitions import EarlierPartition, damage, write_same_time
from support.runs.retry_runs import (
    image,
    make_partition,
    write_ids,
    write_images,
    write_lines,
    write_parquet,
    write_tars,
)

from pipeline.commit.keys.meta import NoKeys, read_keys
from pipeline.commit.keys.shards import read_shards
from pipeline.commit.published.verify import verify_output
from pipeline.core.semantics import SEMANTICS
from pipeline.core.slices import SliceKey
from pipeline.planning.carried import KnownShard
from pipeline.runs.retry.known_rows import kept_runs
from pipeline.runs.retry.matching import Match
from pipeline.storage.store import Store, StoredFile

Write = Callable[[Path], dict[str, Any]]


def with_weights(tmp_path: Path, write: Write, part_mib: float = 0.001) -> EarlierPartition:
    partition = make_partition(tmp_path, write, sink={"target_part_mib": part_mib})
    partition.weights = str(tmp_path / "weights.pt")
    torch.save(colours_state(), partition.weights)
    return partition


def shards_of(partition: EarlierPartition) -> list[KnownShard]:
    return read_shards(read_keys(partition.out, partition.layout, partition.current()))


def assert_as_run_anew(partition: EarlierPartition, tmp_path: Path) -> None:
    """The shards are those of a run of all rows; the version of one may be of an earlier time."""
    out = Store(str(tmp_path / f"anew-{len(list(tmp_path.glob('anew-*')))}"))
    anew = dataclasses.replace(partition, out=out, computed=[], said=[], reuse=False)
    anew.run()
    ours, theirs = shards_of(partition), shards_of(anew)
    assert [dataclasses.replace(shard, version="") for shard in ours] == [
        dataclasses.replace(shard, version="") for shard in theirs
    ]
    for one, other in zip(ours, theirs, strict=True):
        assert one.version.partition("/")[0] == other.version.partition("/")[0]
    found = verify_output(partition.out.uri, partition.partition, {})
    assert {check["name"]: check["status"] for check in found["checks"]}["keys"] == "pass"


@pytest.mark.parametrize(
    "write",
    [
        *(write_parquet, write_lines),
        *(pytest.param(w, marks=pytest.mark.slow) for w in (write_images, write_ids, write_tars)),
    ],
)
def test_shards_and_rows_that_failed_are_known_after_each_retry(write: Write, tmp_path: Path):
    partition = with_weights(tmp_path, write)
    partition.run()
    ids = [row["row_id"] for row in partition.content()[0]]
    partition = dataclasses.replace(partition, out=Store(str(tmp_path / "retried")))
    partition.broken = {ids[place] for place in (0, 7, 8, 9, 15, 39)}
    partition.run()
    for mended in ((0, 9), (8, 15), (7, 39)):
        partition.broken -= {ids[place] for place in mended}
        assert partition.retry() == "published"
        assert_as_run_anew(partition, tmp_path)
    assert all(shard.failed == () for shard in shards_of(partition))


def test_a_shard_that_can_be_read_now_is_known_from_then_on(tmp_path: Path):
    partition = with_weights(tmp_path, write_parquet)
    path = Path(partition.inputs) / "s1.parquet"
    data = damage(path)
    partition.broken = {"s1.parquet#3", "s2.parquet#3"}
    partition.run()
    assert [shard.uri.rpartition("/")[2] for shard in shards_of(partition)] == [
        f"s{number}.parquet" for number in (0, 2, 3)
    ]
    path.write_bytes(data)
    for broken in (["s1.parquet#3", "s2.parquet#3"], ["s1.parquet#3"], []):
        partition.broken = set(broken)
        assert partition.retry() == "published"
        assert_as_run_anew(partition, tmp_path)


@pytest.mark.parametrize(("write", "name"), [(write_tars, "t1.tar"), (write_lines, "j1.jsonl.gz")])
def test_a_shard_that_breaks_off_is_known_once_it_is_read_to_its_end(
    write: Write, name: str, tmp_path: Path
):
    partition = with_weights(tmp_path, write)
    path = Path(partition.inputs) / name
    data = path.read_bytes()
    cut = data.index(b"k13.cls") // 512 * 512 if write is write_tars else 20
    write_same_time(path, data[:cut] + b"\xff" * (len(data) - cut))
    partition.run()
    ends = [shard.uri.rpartition("/")[2] for shard in shards_of(partition)]
    assert len(ends) == 3
    assert name not in ends
    write_same_time(path, data)
    partition.broken = {"t1.tar/k15", f"{name}#5"}
    for _ in range(2):
        assert partition.retry() == "published"
        assert_as_run_anew(partition, tmp_path)
        partition.broken = set()


def test_a_mended_file_is_known_as_it_was_when_it_was_predicted(tmp_path: Path):
    partition = with_weights(tmp_path, write_images, part_mib=1.0)  # so that few are checked
    partition.broken = {"003.jpg", "004.jpg", "005.jpg"}
    partition.run()
    (Path(partition.inputs) / "004.jpg").write_bytes(image(1000))
    partition.broken = {"005.jpg"}
    partition.retry()
    assert_as_run_anew(partition, tmp_path)
    partition.broken.clear()
    partition.retry()
    assert_as_run_anew(partition, tmp_path)
    # So the next run takes it over, too, or checks it.
    partition.partition = "date=2026-11-25"
    partition.run()
    assert len(partition.computed) == partition.current().carried["checked_rows"]


def test_rows_of_two_predictors_are_in_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    partition = with_weights(tmp_path, write_images)
    partition.broken = {"003.jpg", "004.jpg"}
    partition.run()
    assert shards_of(partition)
    partition.broken = {"004.jpg"}
    monkeypatch.setitem(SEMANTICS, "decode", SEMANTICS["decode"] + 1)
    for _ in range(2):
        assert partition.retry() == "published"
        with pytest.raises(NoKeys):
            shards_of(partition)
        partition.broken.clear()


@given(st.lists(st.sampled_from(["good", "left", "mended", "again"])), st.integers(1, 5))
def test_what_is_kept_and_what_comes_in_are_all_predictions_in_order(fates, slice_rows):
    rows = np.arange(len(fates))
    is_old = np.array([fate == "good" for fate in fates], bool)
    is_retried = np.array([fate in ("mended", "again") for fate in fates], bool)
    entries = np.flatnonzero(~is_old)
    if not is_retried.any():
        return
    before = np.cumsum(is_old)[entries]
    chosen = np.flatnonzero(is_retried[entries])
    is_good = np.array([fate == "mended" for fate in fates])[is_retried]
    file = StoredFile("p", 1, "v", None)
    bounds = range(0, len(chosen), slice_rows)
    slices = [
        (SliceKey(unit, 0, min(slice_rows, len(chosen) - first), is_last=True), file)
        for unit, first in enumerate(bounds)
    ]
    match = Match(slices, {}, chosen, chosen, np.zeros(len(chosen), int), is_good)
    runs = kept_runs(match, before, int(is_old.sum())).tolist()
    old, new = rows[is_old].tolist(), rows[is_retried]
    found: list[int] = []
    for place in range(len(chosen) + 1):
        here = [place // slice_rows, place % slice_rows]
        if place == len(chosen):
            here = [len(slices), 0]
        for _, _, source, first, num_rows in [run for run in runs if run[:2] == here]:
            assert source == 0
            found += old[first : first + num_rows]
        if place < len(chosen) and is_good[place]:
            found.append(int(new[place]))
    assert found == [row for row, fate in enumerate(fates) if fate in ("good", "mended")]
