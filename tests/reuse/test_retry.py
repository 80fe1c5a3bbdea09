"""A retry gives the partition of a run without failures, row for row, whatever failed before."""

from __future__ import annotations

import gzip
import random
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from models import TRANSFORM
from support.inputs.tars import Entry, pack
from support.runs.carried_runs import make_partition, run_whole
from support.runs.earlier_partitions import LAYOUT, EarlierPartition, write_same_time
from support.runs.night_inputs import KINDS, image
from support.runs.selection import quick_cases

from pipeline.commit.lease import hold_lease
from pipeline.commit.manifest import log_numbers
from pipeline.commit.publish import commit
from pipeline.commit.published.rollback import rollback
from pipeline.commit.published.verify import verify_output
from pipeline.core.errors import GateRefused, JobError, PartitionBusy, PublishConflict
from pipeline.core.semantics import SEMANTICS
from pipeline.storage.store import Store


def whole(partition: EarlierPartition, folder: Path) -> EarlierPartition:
    """What a run without failures publishes."""
    return run_whole(partition, folder, broken=set())


def again(partition: EarlierPartition, **sections: Any) -> EarlierPartition:
    """The same with other sections, and a decoder that takes all."""
    return replace(partition, broken=set(), sections=sections, said=[], computed=[])


def verify(partition: EarlierPartition) -> None:
    found = verify_output(partition.out.uri, None, dict(partition.out.storage_options))
    assert found["status"] == "ok", found


def figures(partition: EarlierPartition) -> dict[str, Any]:
    found: dict[str, Any] = partition.report()["retry"]
    return found


@pytest.mark.parametrize(
    ("kind", "by"),
    quick_cases(
        product(("images", "parquet", "ids", "uris", "tars"), [(), ("label",)]),
        lambda kind, by: kind == ("parquet" if by else "uris"),
    ),
)
def test_rows_come_in_at_their_places_until_none_is_left(
    kind: str, by: tuple[str, ...], tmp_path: Path
):
    partition = make_partition(tmp_path, kind, sink={"partition_columns": by})
    reference = whole(partition, tmp_path)
    expected, ids = reference.content()[0], [*reference.computed]
    choose = random.Random(kind)
    bad = {ids[0], ids[1], ids[2], ids[19], ids[20], ids[-1], *choose.sample(ids, 12)}
    partition.broken = set(bad)
    first = partition.run()
    assert set(partition.failed()) == bad
    retried = sorted(bad)
    choose.shuffle(retried)
    for cut in (5, len(bad)):
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
    assert log_numbers(partition.out, LAYOUT) == [1, 2, 3]


@pytest.mark.parametrize(
    "kind",
    quick_cases(((k,) for k in ("parquet", "tars", "jsonl")), lambda kind: kind == "tars"),
)
def test_of_a_shard_that_can_be_read_now_all_rows_come_in(kind: str, tmp_path: Path):
    partition = make_partition(tmp_path, kind)
    expected = whole(partition, tmp_path).content()[0]
    ids = [row["row_id"] for row in expected]
    path = sorted(Path(partition.inputs).iterdir())[1]
    data = path.read_bytes()
    write_same_time(path, data[:10] + b"\xff" * (len(data) - 10))
    partition.broken = {ids[25]}
    partition.run()
    uri = Store(partition.inputs).url(path.name)
    failed = {row["row_id"]: (row["shard"], row["row"]) for row in partition.content()[1]}
    place = None if kind == "parquet" else 0  # only reading counts the rows of the others
    assert failed == {path.name: (uri, place), ids[25]: (uri.replace("s1", "s2"), 5)}
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
    partition = make_partition(tmp_path, "uris")
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
    partition.broken |= {"s0.parquet#4", "s1.parquet#4"}
    assert partition.retry("missing") == "published", "all fail, and for another reason"
    assert {*partition.failed().values()} == {"decode_error"}
    rollback(partition.out, LAYOUT, "by-hand", keep_versions=2)
    partition.broken = {"s1.parquet#4"}
    assert partition.retry("missing") == "published"
    assert partition.failed() == {"s1.parquet#4": "decode_error", "s2.parquet#4": "decode_error"}
    kept = [row for row in before[1] if row["row_id"] == "s2.parquet#4"]
    assert [row for row in partition.content()[1] if row["row_id"] == "s2.parquet#4"] == kept
    rows = partition.report()["rows"]
    assert (rows["total"], rows["quarantined"], rows["computed"], rows["carried"]) == (40, 2, 2, 38)
    assert (figures(partition)["recovered"], figures(partition)["failed_again"]) == (1, 1)
    verify(partition)


@pytest.mark.parametrize("kind", ["tars", pytest.param("jsonl", marks=pytest.mark.slow), "parquet"])
def test_failures_that_stay_are_at_their_places_in_units_of_one_shard_and_of_several(
    kind: str, tmp_path: Path
):
    run = {"slice_rows": 100} if kind == "parquet" else {}
    partition = make_partition(tmp_path, kind, run=run)
    path = sorted(Path(partition.inputs).iterdir())[1]
    if kind == "tars":
        lost = Entry("k13.cls", b"13")
        path.write_bytes(
            pack(lost if row == 13 else Entry(f"k{row}.jpg", image(row)) for row in range(10, 20))
        )
    elif kind == "jsonl":
        lines = gzip.decompress(path.read_bytes()).splitlines()
        lines[3] = b"{}"
        path.write_bytes(gzip.compress(b"\n".join(lines)))
    else:
        table = pq.read_table(path)
        images = [None if row == 3 else v for row, v in enumerate(table["image"].to_pylist())]
        pq.write_table(table.set_column(0, "image", pa.array(images, pa.binary())), path)
    partition.broken = {image(11).decode(), image(16).decode()}
    partition.run()
    asked, kept, again = partition.content()[1]
    partition.broken = {image(16).decode()}
    assert partition.retry(asked["reason"]) == "published"
    assert partition.computed == [asked["row_id"], again["row_id"]]
    good, failed = partition.content()
    assert (failed[0], [row["row_id"] for row in failed[1:]]) == (kept, [again["row_id"]])
    expected = whole(partition, tmp_path).content()[0]
    assert good == [row for row in expected if row["row_id"] != again["row_id"]]
    verify(partition)


def test_of_rows_with_one_id_the_first_is_predicted_and_duplicates_are_never_retried(
    tmp_path: Path,
):
    partition = make_partition(tmp_path, "ids")
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
    partition = make_partition(tmp_path, "images", gates={"max_error_pct": 10.0, "min_rows": 1})
    partition.broken = {f"{row:03d}.jpg" for row in range(4)}
    partition.run()
    partition.broken = {"000.jpg", "001.jpg"}
    assert partition.retry() == "published"
    strict = again(partition, gates={"max_error_pct": 1.0, "min_rows": 1})
    strict.broken = {"000.jpg"}
    with pytest.raises(GateRefused, match="1 of 40 rows quarantined"):
        strict.retry()
    assert partition.current().number == 2
    strict.broken = set()
    assert strict.retry() == "published", "what failed then is tried again"


def test_what_cannot_be_retried_is_refused(tmp_path: Path):
    partition = make_partition(tmp_path, "parquet")
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
    ("kind", "sections", "why"),
    [
        ("parquet", {"model": {"labels": [*"abcde"]}}, "the labels changed"),
        (
            "parquet",
            {"transform": {**TRANSFORM, "size_px": 16}},
            "transform.size_px 32 -> 16 changed",
        ),
        (
            "parquet",
            {"source": KINDS["ids"].source},
            "the source section or the columns of the job changed",
        ),
        # One unit has all tars, of which no version knows the rows.
        *(
            (kind, {"run": {"limit_rows": 30}}, "run.limit_rows is set")
            for kind in ("parquet", "tars")
        ),
    ],
)
def test_of_another_job_all_rows_are_computed_and_the_log_says_so(
    kind: str,
    sections: dict[str, Any],
    why: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    partition = make_partition(tmp_path, kind, has_weights=True)
    partition.broken = {image(1).decode()}
    partition.run()
    source = {"uri": partition.inputs, **sections.get("source", partition.source)}
    other = again(partition, **{**sections, "source": source})
    assert other.retry() == "published"
    assert len(other.computed) == (30 if "run" in sections else 40)
    (said,) = [text for text in caplog.messages if text.startswith("all rows are computed again: ")]
    assert said.endswith(why)
    assert other.content() == whole(other, tmp_path).content()


@pytest.mark.parametrize("by", quick_cases([((),), (("label",),)], bool))
def test_a_version_without_any_prediction_can_be_retried(by: tuple[str, ...], tmp_path: Path):
    partition = make_partition(
        tmp_path, "tars", sink={"partition_columns": by}, gates={"max_error_pct": 100.0}
    )
    expected = whole(partition, tmp_path)
    partition.broken = {*expected.computed}
    assert partition.run().num_predicted == 0
    partition.broken.clear()
    assert partition.retry() == "published"
    assert partition.content() == expected.content()
    verify(partition)


def test_of_code_that_was_mended_the_other_rows_stay_and_the_next_run_computes_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    partition = make_partition(tmp_path, "images", has_weights=True)
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
    partition = make_partition(tmp_path, "images")
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
