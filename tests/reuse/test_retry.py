"""A retry gives the partition of a run without failures, row for row, whatever failed before."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from models import TRANSFORM
from support.inputs.tars import Entry, pack
from support.models.model_cases import colours_state
from support.runs.earlier_partitions import LAYOUT, EarlierPartition, damage, write_same_time
from support.runs.night_inputs import KINDS, image
from support.runs.retry_runs import (
    SOURCES,
    all_ids,
    make_partition,
    make_partition_again,
    whole_partition,
    write_ids,
    write_images,
    write_lines,
    write_links,
    write_parquet,
    write_tars,
)
from support.runs.selection import quick_cases

from pipeline.commit.lease import hold_lease
from pipeline.commit.manifest import log_numbers
from pipeline.commit.publish import commit
from pipeline.commit.published.rollback import rollback
from pipeline.commit.published.verify import verify_output
from pipeline.core.errors import GateRefused, JobError, PartitionBusy, PublishConflict
from pipeline.core.semantics import SEMANTICS
from pipeline.storage.store import Store

Write = Callable[[Path], dict[str, Any]]


def verify(partition: EarlierPartition) -> None:
    found = verify_output(partition.out.uri, None, dict(partition.out.storage_options))
    assert found["status"] == "ok", found


def figures(partition: EarlierPartition) -> dict[str, Any]:
    found: dict[str, Any] = partition.report()["retry"]
    return found


def named(value: Any) -> str:
    return getattr(value, "__name__", "by value" if value else "flat")


@pytest.mark.parametrize(
    ("write", "by"),
    quick_cases(
        product(SOURCES, [(), ("label",)]),
        lambda write, by: write is (write_parquet if by else write_links),
    ),
    ids=named,
)
def test_rows_come_in_at_their_places_until_none_is_left(
    write: Write, by: tuple[str, ...], tmp_path: Path
):
    partition = make_partition(tmp_path, write, sink={"partition_columns": by})
    ids = all_ids(partition, tmp_path)
    choose = random.Random(write.__name__)
    bad = {ids[0], ids[1], ids[2], ids[19], ids[20], ids[-1], *choose.sample(ids, 12)}
    partition.broken = set(bad)
    first = partition.run()
    assert set(partition.failed()) == bad
    reference = whole_partition(partition, tmp_path)
    expected = reference.content()[0]
    retried = sorted(bad)
    choose.shuffle(retried)
    for cut in (5, 6, len(bad)):
        partition.broken = set(retried[cut:])
        asked = set(partition.failed())
        assert partition.retry() == "published"
        assert partition.computed == [value for value in ids if value in asked]
        good, failed = partition.content()
        assert [row["row_id"] for row in failed] == [v for v in ids if v in partition.broken]
        assert good == [row for row in expected if row["row_id"] not in partition.broken]
        verify(partition)
        assert partition.run().number == partition.current().number, "nothing to do"
        assert partition.computed == []
    assert partition.current().fingerprint == first.fingerprint
    assert partition.current().distribution == reference.current().distribution
    assert partition.current().row_id_hash == reference.current().row_id_hash
    assert partition.retry() == "nothing_to_do"
    assert log_numbers(partition.out, LAYOUT) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "write",
    quick_cases(
        ((write,) for write in (write_parquet, write_tars, write_lines)),
        lambda write: write is write_tars,
    ),
    ids=named,
)
def test_of_a_shard_that_can_be_read_now_all_rows_come_in(write: Write, tmp_path: Path):
    partition = make_partition(tmp_path, write)
    expected = whole_partition(partition, tmp_path).content()[0]
    ids = [row["row_id"] for row in expected]
    path = sorted(Path(partition.inputs).iterdir())[1]
    data = path.read_bytes()
    write_same_time(path, data[:10] + b"\xff" * (len(data) - 10))
    partition.broken = {ids[25]}
    partition.run()
    assert set(partition.failed()) == {path.name, ids[25]}
    write_same_time(path, data)
    partition.broken = {ids[13], ids[25]}
    assert partition.retry("unreadable_shard") == "published"
    assert partition.computed == ids[10:20]
    assert partition.failed() == {ids[13]: "decode_error", ids[25]: "decode_error"}
    assert partition.current().num_unreadable_shards == 0
    verify(partition)
    assert partition.run().number == 2, "nothing to do"
    partition.broken.clear()
    assert partition.retry() == "published"
    assert partition.computed == [ids[13], ids[25]]
    assert partition.content() == (expected, [])
    verify(partition)


def test_other_reasons_than_those_asked_for_stay_as_they_are(tmp_path: Path):
    partition = make_partition(tmp_path, write_links)
    gone = [Path(partition.inputs) / "photos" / f"{row}.jpg" for row in (4, 14)]
    for path in gone:
        path.unlink()
    partition.broken = {"s2.parquet#4"}
    partition.run()
    before = partition.content()
    assert partition.retry("timeout") == "nothing_to_do"
    assert figures(partition)["not_asked"] == 3
    assert partition.retry("missing") == "nothing_to_do"
    assert partition.computed == ["s0.parquet#4", "s1.parquet#4"]
    assert partition.retry("missing") == "nothing_to_do"
    assert len(partition.computed) == 2, "failures of an earlier try are no excuse"
    assert (partition.content(), log_numbers(partition.out, LAYOUT)) == (before, [1])

    for row, path in zip((4, 14), gone, strict=True):
        path.write_bytes(image(row))
    partition.broken = {"s1.parquet#4"}
    assert partition.retry("missing") == "published"
    assert partition.failed() == {"s1.parquet#4": "decode_error", "s2.parquet#4": "decode_error"}
    kept = [row for row in before[1] if row["row_id"] == "s2.parquet#4"]
    assert [row for row in partition.content()[1] if row["row_id"] == "s2.parquet#4"] == kept
    rows = partition.report()["rows"]
    assert (rows["total"], rows["quarantined"], rows["computed"], rows["carried"]) == (40, 2, 2, 38)
    assert (figures(partition)["recovered"], figures(partition)["failed_again"]) == (1, 1)
    verify(partition)


@pytest.mark.parametrize("write", [write_tars, write_lines], ids=named)
def test_of_a_shard_that_only_reading_counts_other_failures_stay_in_their_places(
    write: Write, tmp_path: Path
):
    partition = make_partition(tmp_path, write)
    path = sorted(Path(partition.inputs).iterdir())[1]
    if write is write_tars:
        lost = Entry("k13.cls", b"13")
        path.write_bytes(
            pack(lost if row == 13 else Entry(f"k{row}.jpg", image(row)) for row in range(10, 20))
        )
    else:
        lines = gzip.decompress(path.read_bytes()).splitlines()
        lines[3] = b"{}"
        path.write_bytes(gzip.compress(b"\n".join(lines)))
    partition.broken = {image(11).decode(), image(16).decode()}
    partition.run()
    asked, kept, again = partition.content()[1]
    partition.broken = {image(16).decode()}
    assert partition.retry(asked["reason"]) == "published"
    assert partition.computed == [asked["row_id"], again["row_id"]]
    good, failed = partition.content()
    assert (failed[0], [row["row_id"] for row in failed[1:]]) == (kept, [again["row_id"]])
    whole = whole_partition(partition, tmp_path)
    assert good == [row for row in whole.content()[0] if row["row_id"] != again["row_id"]]
    verify(partition)


def test_rows_that_all_fail_for_another_reason_are_a_new_version(tmp_path: Path):
    partition = make_partition(tmp_path, write_links)
    gone = Path(partition.inputs) / "photos" / "4.jpg"
    gone.unlink()
    partition.run()
    gone.write_bytes(image(4))
    partition.broken = {"s0.parquet#4"}
    assert partition.retry() == "published"
    assert partition.failed() == {"s0.parquet#4": "decode_error"}
    assert partition.current().number == 2


def test_files_that_changed_meanwhile_are_those_of_now(tmp_path: Path):
    partition = make_partition(tmp_path, write_images)
    folder = Path(partition.inputs)
    partition.broken = {"003.jpg", "004.jpg", "005.jpg"}
    partition.run()
    partition.broken.clear()
    (folder / "004.jpg").write_bytes(b"other bytes")
    (folder / "005.jpg").unlink()
    (folder / "900.jpg").write_bytes(image(900))
    assert partition.retry() == "published"
    assert partition.content() == whole_partition(partition, tmp_path).content()
    verify(partition)
    assert partition.run().number == 2, "nothing to do"


def test_of_rows_with_one_id_the_first_is_predicted_and_duplicates_are_never_retried(
    tmp_path: Path,
):
    partition = make_partition(tmp_path, write_ids)
    path = Path(partition.inputs) / "s2.parquet"
    path.with_name("s9.parquet").write_bytes(path.read_bytes())
    partition.broken = {"id-3"}
    partition.run()
    duplicates = {f"id-{row}": "duplicate_id" for row in range(20, 30)}
    assert partition.failed() == {"id-3": "decode_error", **duplicates}
    partition.broken.clear()
    assert partition.retry() == "published"
    assert partition.computed == ["id-3"]
    assert partition.failed() == duplicates
    verify(partition)
    assert partition.retry() == "nothing_to_do"
    assert figures(partition)["duplicate_ids"] == 10


def test_gates_judge_the_whole_partition(tmp_path: Path):
    partition = make_partition(tmp_path, write_images, gates={"max_error_pct": 10.0, "min_rows": 1})
    partition.broken = {f"{row:03d}.jpg" for row in range(4)}
    partition.run()
    partition.broken = {"000.jpg", "001.jpg"}
    assert partition.retry() == "published"
    strict = make_partition_again(partition, gates={"max_error_pct": 1.0, "min_rows": 1})
    strict.broken = {"000.jpg"}
    with pytest.raises(GateRefused, match="1 of 40 rows quarantined"):
        strict.retry()
    assert partition.current().number == 2
    strict.broken = set()
    assert strict.retry() == "published", "what failed then is tried again"


def test_what_cannot_be_retried_is_refused(tmp_path: Path):
    partition = make_partition(tmp_path, write_parquet)
    partition.broken = {"s0.parquet#1"}
    partition.run()
    with pytest.raises(JobError, match=r"--reason bad: no such reason; allowed are unreadable_sh"):
        partition.retry("bad")
    with pytest.raises(JobError, match=r"--reason duplicate_id: only the first row of an id is"):
        partition.retry("duplicate_id")
    with hold_lease(partition.out, LAYOUT, "other", 60.0), pytest.raises(PartitionBusy):
        partition.retry()
    assert partition.current().number == 1


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({"model": {"labels": ["a", "b", "c", "d", "e"]}}, "the labels changed"),
        ({"transform": {**TRANSFORM, "size_px": 16}}, "transform.size_px 32 -> 16 changed"),
        ({"source": KINDS["ids"].source}, "the source section or the columns of the job changed"),
        ({"run": {"limit_rows": 30}}, "run.limit_rows is set"),
    ],
    ids=["labels", "transform", "source", "limit"],
)
def test_of_another_job_all_rows_are_computed_and_the_log_says_so(
    sections: dict[str, Any], why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    partition = make_partition(tmp_path, write_parquet)
    partition.broken = {"s0.parquet#1"}
    partition.run()
    source = {"uri": partition.inputs, **sections.get("source", partition.source)}
    other = make_partition_again(partition, **{**sections, "source": source})
    assert other.retry() == "published"
    assert len(other.computed) == (30 if "run" in sections else 40)
    (said,) = [text for text in caplog.messages if text.startswith("all rows are computed again: ")]
    assert said.endswith(why)
    assert other.content() == whole_partition(other, tmp_path).content()


def test_of_a_limit_of_rows_over_tars_all_rows_are_computed(tmp_path: Path):
    """One unit has all tars then, of which no version knows the rows."""
    partition = make_partition(tmp_path, write_tars)
    partition.weights = str(tmp_path / "weights.pt")
    torch.save(colours_state(), partition.weights)
    partition.broken = {"t0.tar/k3"}
    partition.run()
    limited = make_partition_again(partition, run={"limit_rows": 25})
    limited.weights = partition.weights
    assert limited.retry() == "published"
    assert (len(limited.computed), limited.current().num_rows) == (25, 25)


@pytest.mark.parametrize("by", quick_cases([((),), (("label",),)], bool), ids=named)
def test_a_version_without_any_prediction_can_be_retried(by: tuple[str, ...], tmp_path: Path):
    partition = make_partition(tmp_path, write_tars, sink={"partition_columns": by})
    partition.broken = set(all_ids(partition, tmp_path))
    partition.sections["gates"] = {"max_error_pct": 100.0}
    assert partition.run().num_predicted == 0
    partition.broken = {"t0.tar/k0"}
    assert partition.retry() == "published"
    verify(partition)
    partition.broken.clear()
    assert partition.retry() == "published"
    assert partition.content() == whole_partition(partition, tmp_path).content()
    verify(partition)


def test_of_code_that_was_mended_the_other_rows_stay_and_the_next_run_computes_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    partition = make_partition(tmp_path, write_images)
    partition.weights = str(tmp_path / "weights.pt")
    torch.save(colours_state(), partition.weights)
    partition.broken = {"003.jpg"}
    first = partition.run()
    monkeypatch.setitem(SEMANTICS, "decode", SEMANTICS["decode"] + 1)  # type: ignore[arg-type]
    partition.broken.clear()
    assert partition.retry() == "published"
    assert partition.computed == ["003.jpg"]
    assert partition.current().fingerprint == first.fingerprint
    verify(partition)
    partition.run()
    assert len(partition.computed) == 40, "no version is of two codes for longer"


def test_of_two_that_publish_at_once_the_second_does_not_pass_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What was published meanwhile is of the same fingerprint, and yet other rows."""
    partition = make_partition(tmp_path, write_images)
    partition.broken = {"003.jpg", "004.jpg"}
    partition.run()
    partition.broken = {"004.jpg"}
    partition.retry()

    def commit_late(*arguments: Any) -> Any:
        rollback(partition.out, LAYOUT, "meanwhile", keep_versions=2)
        return commit(*arguments)

    partition.broken.clear()
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.runs.ending.finish.commit", commit_late)
        with pytest.raises(PublishConflict, match="run meanwhile published version 3"):
            partition.retry()
    assert list(partition.failed()) == ["003.jpg", "004.jpg"]
    assert partition.retry() == "published", "what was rolled back can be retried as well"
    assert partition.failed() == {}
    verify(partition)


def test_a_delta_table_follows(tmp_path: Path):
    deltalake = pytest.importorskip("deltalake")
    sink = {"table": "delta", "partition_columns": ("camera",)}
    partition = make_partition(tmp_path, write_parquet, sink=sink)
    partition.broken = {"s0.parquet#1", "s2.parquet#8"}
    partition.run()
    partition.broken.clear()
    assert partition.retry() == "published"
    table = deltalake.DeltaTable(f"{partition.out.uri}/predictions").to_pyarrow_table()
    assert sorted(table["row_id"].to_pylist()) == sorted(all_ids(partition, tmp_path))
    verify(partition)


def test_places_of_failed_rows_are_columns_of_the_quarantine(tmp_path: Path):
    partition = make_partition(tmp_path, write_parquet)
    damage(Path(partition.inputs) / "s3.parquet")
    partition.broken = {"s1.parquet#4"}
    partition.run()
    root = Store(partition.inputs)
    found = {(row["shard"], row["row"]) for row in partition.content()[1]}
    assert found == {(root.url("s1.parquet"), 4), (root.url("s3.parquet"), None)}
