"""What is retried, and what it gives: in the end the partition of a run without failures."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from models import TRANSFORM
from support.runs.earlier_partitions import (
    LAYOUT,
    EarlierPartition,
    content_of,
    damage,
    write_same_time,
)
from support.runs.retry_runs import (
    NUM_ROWS,
    SOURCES,
    all_ids,
    image,
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
from pipeline.commit.parts.compaction import Compacted
from pipeline.commit.publish import commit
from pipeline.commit.published.rollback import history_numbers, rollback
from pipeline.commit.published.verify import verify_output
from pipeline.core.errors import GateRefused, InfraError, JobError, PartitionBusy, PublishConflict
from pipeline.core.semantics import SEMANTICS
from pipeline.job.source import Source
from pipeline.models.resolving.resolve import resolve_model
from pipeline.preprocessing.images.image_input import ImageInput
from pipeline.runs.retry.plan import replan
from pipeline.runs.retry.quarantine import read_base, read_reasons, select_entries
from pipeline.runs.retry.readmission import MergedRetry
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader
from pipeline.sources.source_format import format_of
from pipeline.storage.store import Store


def verify(partition: EarlierPartition) -> None:
    found = verify_output(partition.out.uri, None, dict(partition.out.storage_options))
    skipped = {check["name"] for check in found["checks"] if check["status"] == "skipped"}
    assert skipped <= {"planned_ids", "keys"}


@pytest.mark.parametrize(
    ("write", "by"),
    quick_cases(
        product(SOURCES, [(), ("label",)]),
        lambda write, by: write is (write_parquet if by else write_links),
    ),
    ids=lambda value: getattr(value, "__name__", "by label" if value else "flat"),
)
def test_rows_come_in_at_their_places_until_none_is_left(
    write: Callable[[Path], dict[str, Any]], by: tuple[str, ...], tmp_path: Path
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
    ("write", "by"),
    quick_cases(
        product([write_parquet, write_ids], [(), ("camera",)]),
        lambda write, by: bool(by) == (write is write_ids),
    ),
    ids=lambda value: getattr(value, "__name__", "by camera" if value else "flat"),
)
def test_of_a_shard_that_can_be_read_now_all_rows_come_in(
    write: Callable[[Path], dict[str, Any]], by: tuple[str, ...], tmp_path: Path
):
    partition = make_partition(tmp_path, write, sink={"partition_columns": by})
    ids = all_ids(partition, tmp_path)
    expected = whole_partition(partition, tmp_path).content()[0]
    folder = Path(partition.inputs)
    bytes_of = {name: damage(folder / name) for name in ("s1.parquet", "s3.parquet")}
    partition.broken = {ids[13], ids[19], ids[25]}
    first = partition.run()
    assert first.num_unreadable_shards == 2
    assert list(partition.failed()) == ["s1.parquet", ids[25], "s3.parquet"]

    write_same_time(folder / "s1.parquet", bytes_of["s1.parquet"])
    assert partition.retry("unreadable_shard") == "published"
    assert len(partition.computed) == 11, "the other one was tried, too"
    assert list(partition.failed()) == [ids[13], ids[19], ids[25], "s3.parquet"]
    assert partition.current().num_unreadable_shards == 1
    assert partition.current().num_rows == 31
    verify(partition)
    # A run lists both as they were, so there is nothing to do, and nothing is thrown away.
    assert partition.run().number == 2

    partition.broken.clear()
    write_same_time(folder / "s3.parquet", bytes_of["s3.parquet"])
    assert partition.retry() == "published"
    assert partition.content() == (expected, [])
    assert partition.current().num_unreadable_shards == 0
    verify(partition)


def test_the_rest_of_a_tar_comes_in_as_far_as_it_can_be_read(tmp_path: Path):
    partition = make_partition(tmp_path, write_tars)
    expected = whole_partition(partition, tmp_path).content()[0]
    path = Path(partition.inputs) / "t1.tar"
    data = path.read_bytes()
    at = [data.index(name) // 512 * 512 for name in (b"k13.cls", b"k17.jpg")]

    def readable_until(position: int) -> None:
        write_same_time(path, data[:position] + b"\xff" * (len(data) - position))

    readable_until(at[0])
    partition.broken = {"t1.tar/k11", "t1.tar/k15"}
    partition.run()
    bad = ["t1.tar/k11", "t1.tar/k13", "t1.tar"]
    assert list(partition.failed()) == bad
    assert partition.current().num_unreadable_shards == 1

    readable_until(at[1])
    assert partition.retry() == "published"
    assert list(partition.failed()) == ["t1.tar/k11", "t1.tar/k15", "t1.tar"]
    verify(partition)

    # It broke off earlier this time: what was not reached stays.
    readable_until(at[0])
    partition.broken.clear()
    assert partition.retry() == "published"
    assert list(partition.failed()) == ["t1.tar/k15", "t1.tar"]
    verify(partition)

    write_same_time(path, data)
    assert partition.retry() == "published"
    assert partition.content() == (expected, [])
    verify(partition)


@pytest.mark.parametrize("num_bad", [1, 2])
def test_rows_of_a_rest_that_failed_again_are_retried_by_their_own_numbers(
    tmp_path: Path, num_bad: int
):
    partition = make_partition(tmp_path, write_lines)
    expected = whole_partition(partition, tmp_path).content()[0]
    path = Path(partition.inputs) / "j1.jsonl.gz"
    data = path.read_bytes()
    write_same_time(path, data[:10] + b"\xff" * (len(data) - 10))
    partition.run()
    assert list(partition.failed()) == ["j1.jsonl.gz"]
    write_same_time(path, data)
    bad = ["j1.jsonl.gz#3", "j1.jsonl.gz#5"][:num_bad]
    partition.broken = set(bad)
    assert partition.retry() == "published"
    assert list(partition.failed()) == bad
    partition.broken.clear()
    assert partition.retry() == "published"
    assert partition.computed == bad
    assert partition.content() == (expected, [])
    verify(partition)


def test_a_limit_of_rows_lets_nothing_in_that_it_left_out(tmp_path: Path):
    partition = make_partition(tmp_path, write_tars, run={"limit_rows": 15})
    partition.broken = {"t0.tar/k3", "t1.tar/k12"}
    partition.run()
    partition.broken.clear()
    assert partition.retry() == "published"
    assert partition.computed == ["t0.tar/k3", "t1.tar/k12"]
    assert partition.content() == whole_partition(partition, tmp_path).content()
    verify(partition)


def test_a_mended_image_comes_in_as_it_is_now(tmp_path: Path):
    partition = make_partition(tmp_path, write_images)
    folder = Path(partition.inputs)
    partition.broken = {"003.jpg", "004.jpg", "005.jpg"}
    partition.run()
    partition.broken.clear()
    (folder / "004.jpg").write_bytes(b"other bytes")
    (folder / "005.jpg").unlink()
    assert partition.retry() == "published"
    assert list(partition.failed()) == ["005.jpg"]
    assert figures(partition)["inputs_changed"] == 1
    assert partition.content()[0] == whole_partition(partition, tmp_path).content()[0]
    verify(partition)
    assert partition.retry() == "nothing_to_do"
    assert figures(partition) == {**figures(partition), "entries": 0, "inputs_changed": 1}
    assert partition.current().number == 2


def test_an_image_that_changes_again_before_it_is_read_ends_the_retry(tmp_path: Path):
    """The rows that are staged are of the file that was planned, or of none."""
    partition = make_partition(tmp_path, write_images)
    path = Path(partition.inputs) / "004.jpg"
    partition.broken = {"004.jpg"}
    first = partition.run()
    path.write_bytes(b"mended")
    job, inputs = partition.job, Store(partition.inputs)
    base = read_base(partition.out, LAYOUT, first)
    model = resolve_model(job, ("models",))
    work = replan(base, select_entries(base, read_reasons(())), job, model, inputs)
    reader = Reader(inputs, job.source, work.plan.pass_through, work.plan.fields)
    before = path.stat()
    path.write_bytes(b"MENDED")  # of the same size, and at the same time by its mtime
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InfraError, match="changed"):
        list(read_slices(reader, work.plan.units[0], frozenset([0])))
    path.write_bytes(b"mended again")
    with pytest.raises(InfraError, match="changed"):
        list(read_slices(reader, work.plan.units[0], frozenset([0])))


@pytest.mark.parametrize(("write", "name"), [(write_parquet, "s1.parquet"), (write_tars, "t1.tar")])
def test_a_shard_comes_in_that_was_written_anew_if_nothing_was_predicted_of_it(
    write: Callable[[Path], dict[str, Any]], name: str, tmp_path: Path
):
    partition = make_partition(tmp_path, write)
    expected = whole_partition(partition, tmp_path).content()[0]
    path = Path(partition.inputs) / name
    data = path.read_bytes()
    path.write_bytes(b"\xff" * 1024)
    partition.run()
    assert list(partition.failed()) == [name]
    path.write_bytes(data)
    assert partition.retry() == "published"
    assert partition.content() == (expected, [])
    verify(partition)


@pytest.mark.parametrize(("write", "name"), [(write_parquet, "s1.parquet"), (write_tars, "t1.tar")])
def test_rows_of_a_changed_shard_stay_and_are_counted_if_others_of_it_are_predicted(
    write: Callable[[Path], dict[str, Any]], name: str, tmp_path: Path
):
    partition = make_partition(tmp_path, write)
    bad = all_ids(partition, tmp_path)[13:15]
    partition.broken = set(bad)
    partition.run()
    partition.broken.clear()
    path = Path(partition.inputs) / name
    path.write_bytes(path.read_bytes() + bytes(512))
    assert partition.retry() == "nothing_to_do"
    assert figures(partition) == {**figures(partition), "entries": 0, "inputs_changed": 2}
    assert list(partition.failed()) == bad


def test_of_rows_with_one_id_the_published_one_keeps_it(tmp_path: Path):
    same = ["x" if row in (3, 5, 12, 33) else f"id-{row}" for row in range(NUM_ROWS)]
    partition = make_partition(tmp_path, lambda folder: write_named(folder, same))
    damage(Path(partition.inputs) / "s3.parquet")
    partition.broken = {"x", "id-7"}
    partition.run()
    # The first one failed, so that the others are no duplicates of a prediction; nor do they go.
    assert sorted(partition.failed()) == ["id-7", "s3.parquet", "x"]
    reasons = [row["reason"] for row in partition.content()[1]]
    assert Counter(reasons) == {"decode_error": 4, "unreadable_shard": 1}
    partition.broken.clear()
    assert partition.retry("decode_error") == "published"
    good, bad = partition.content()
    assert [row["row_id"] for row in good].count("x") == 1
    assert [(row["row_id"], row["reason"]) for row in bad] == [
        ("x", "duplicate_id"), ("x", "duplicate_id"), ("s3.parquet", "unreadable_shard"),
    ]  # fmt: skip
    assert good[3]["row_id"] == "x"
    verify(partition)

    # An id that is published already stays with its row; duplicates are never retried.
    write_named(tmp_path / "again", same)
    write_same_time(
        Path(partition.inputs) / "s3.parquet", (tmp_path / "again" / "s3.parquet").read_bytes()
    )
    assert partition.retry() == "published"
    assert len(partition.computed) == 10
    assert [row["reason"] for row in partition.content()[1]] == ["duplicate_id"] * 3
    assert figures(partition)["duplicate_ids"] == 2
    verify(partition)
    assert partition.retry() == "nothing_to_do"
    assert figures(partition)["duplicate_ids"] == 3


def write_named(folder: Path, ids: list[str]) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return {**write_parquet(folder, id=ids), "id_column": "id"}


def figures(partition: EarlierPartition) -> dict[str, Any]:
    assert partition.record is not None
    found: dict[str, Any] = partition.report()["retry"]
    return found


def test_rows_that_fail_again_say_why_now_and_no_change_publishes_nothing(tmp_path: Path):
    partition = make_partition(tmp_path, write_links)
    gone = [Path(partition.inputs) / "photos" / f"{row}.jpg" for row in (4, 14, 24)]
    for path in gone:
        path.unlink()
    partition.run()
    assert set(partition.failed().values()) == {"missing"}
    before = partition.content()
    assert partition.retry() == "nothing_to_do"
    assert len(partition.computed) == 3
    assert partition.retry() == "nothing_to_do"
    assert len(partition.computed) == 3, "failures of an earlier try are no excuse"
    assert (partition.content(), log_numbers(partition.out, LAYOUT)) == (before, [1])

    gone[0].write_bytes(image(4))
    partition.broken = {"s1.parquet#4"}
    gone[1].write_bytes(image(14))
    assert partition.retry("missing") == "published"
    assert partition.failed() == {"s1.parquet#4": "decode_error", "s2.parquet#4": "missing"}
    report = partition.report()
    assert report["rows"] == {
        **report["rows"],
        **{"total": 40, "predicted": 38, "quarantined": 2, "computed": 3, "resumed": 37},
    }
    assert report["reasons"] == {"decode_error": 1, "missing": 1}
    assert (figures(partition)["recovered"], figures(partition)["failed_again"]) == (1, 2)
    verify(partition)
    gone[2].write_bytes(image(24))
    assert partition.retry("decode_error") == "nothing_to_do"
    assert figures(partition)["not_asked"] == 1
    partition.broken.clear()
    assert partition.retry() == "published"
    assert partition.failed() == {}


def test_rows_that_all_fail_for_another_reason_are_a_new_version(tmp_path: Path):
    partition = make_partition(tmp_path, write_links)
    gone = Path(partition.inputs) / "photos" / "4.jpg"
    gone.unlink()
    partition.run()
    assert partition.failed() == {"s0.parquet#4": "missing"}
    gone.write_bytes(image(4))
    partition.broken = {"s0.parquet#4"}
    assert partition.retry() == "published"
    assert partition.failed() == {"s0.parquet#4": "decode_error"}
    assert partition.current().number == 2
    verify(partition)


@pytest.mark.parametrize("lost", ["predictions", "quarantine"])
def test_a_merge_that_loses_rows_publishes_nothing(
    lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    partition = make_partition(tmp_path, write_images)
    partition.broken = {"004.jpg", "014.jpg"}
    partition.run()
    before = partition.content()
    compact = MergedRetry.compact

    def lose_a_part(*arguments: Any) -> Compacted:
        done = compact(*arguments)
        return replace(done, **{lost: getattr(done, lost)[:-1]})

    monkeypatch.setattr(MergedRetry, "compact", lose_a_part)
    partition.broken = {"014.jpg"}
    with pytest.raises(InfraError, match=r"merged \d+ predictions and \d+ quarantined rows, exp"):
        partition.retry()
    assert (partition.content(), log_numbers(partition.out, LAYOUT)) == (before, [1])


def test_gates_judge_the_merged_partition(tmp_path: Path):
    partition = make_partition(tmp_path, write_images, gates={"max_error_pct": 10.0, "min_rows": 1})
    partition.broken = {f"{row:03d}.jpg" for row in range(4)}
    partition.run()
    # The share is of all rows: of the four that go, half fail again.
    partition.broken = {"000.jpg", "001.jpg"}
    assert partition.retry() == "published"
    assert partition.current().num_quarantined == 2
    strict = make_partition_again(partition, gates={"max_error_pct": 1.0, "min_rows": 1})
    strict.broken = {"000.jpg"}
    with pytest.raises(GateRefused, match="1 of 40 rows quarantined"):
        strict.retry()
    assert partition.current().number == 2
    strict.broken = set()
    assert strict.retry() == "published", "what failed then is tried again"


def test_what_cannot_be_retried_is_refused(tmp_path: Path):
    partition = make_partition(tmp_path, write_parquet)
    with pytest.raises(JobError, match="nothing is published"):
        partition.retry()
    partition.broken = {"s0.parquet#1"}
    partition.run()
    with pytest.raises(JobError, match=r"--reason bad: no such reason; allowed are unreadable_sh"):
        partition.retry("bad")
    with pytest.raises(JobError, match=r"--reason duplicate_id: only the first row of an id is"):
        partition.retry("duplicate_id")
    for sections in (
        {"model": {"factory": "models:colours", "labels": ["a", "b", "c", "d", "e"]}},
        {"transform": {**TRANSFORM, "size_px": 16}},
        {"run": {"limit_rows": 30}},
        {"sink": {"partition_columns": ("camera",)}},
    ):
        other = make_partition_again(partition, **sections)
        with pytest.raises(JobError, match=r"other settings than the job's; `pipeline run` makes"):
            other.retry()
    fewer = EarlierPartition(partition.inputs, partition.out, {"format": "parquet"})
    with pytest.raises(JobError, match="other settings"):
        fewer.retry()
    with hold_lease(partition.out, LAYOUT, "other", 60.0), pytest.raises(PartitionBusy):
        partition.retry()
    partition.out.delete([LAYOUT.plan(partition.current().fingerprint)])
    with pytest.raises(InfraError, match="is missing, so the rows are unknown"):
        partition.retry()
    assert partition.current().number == 1


@pytest.mark.parametrize("by", [(), ("label",)], ids=["flat", "by label"])
def test_a_night_without_any_prediction_can_be_retried(by: tuple[str, ...], tmp_path: Path):
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


@pytest.mark.parametrize("below", ["s1.parquet", "s[12].parquet", ""])
def test_a_file_and_a_pattern_are_sources_like_a_folder(below: str, tmp_path: Path):
    partition = make_partition(tmp_path, write_parquet)
    partition.inputs = f"{partition.inputs}/{below}"
    partition.broken = {"s1.parquet#4"}
    partition.run()
    assert partition.current().num_quarantined == 1
    partition.broken.clear()
    assert partition.retry() == "published"
    assert partition.failed() == {}
    verify(partition)


def test_fixed_code_is_no_other_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    partition = make_partition(tmp_path, write_images)
    partition.broken = {"003.jpg"}
    partition.run()
    monkeypatch.setitem(SEMANTICS, "decode", SEMANTICS["decode"] + 1)  # type: ignore[arg-type]
    partition.broken.clear()
    assert partition.retry() == "published"
    assert partition.computed == ["003.jpg"]
    verify(partition)


def test_what_is_staged_is_taken_over_only_if_its_own_code_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Code of the source format and of the input counts, that of other formats does not."""
    partition = make_partition(tmp_path, write_images)
    partition.broken = {"003.jpg"}
    partition.run()
    run, base = partition.new_run(), read_base(partition.out, LAYOUT, partition.current())
    job, inputs = run.job, Store(partition.inputs)
    chosen = select_entries(base, read_reasons([]))

    def fingerprint() -> str:
        model = resolve_model(job, ("models",))
        return replan(base, chosen, job, model, inputs).plan.fingerprint

    found = [fingerprint(), fingerprint()]
    monkeypatch.setattr(format_of(Source(uri="x", format="webdataset")).__class__, "semantics", 99)
    monkeypatch.setitem(SEMANTICS, "webdataset", 99)  # type: ignore[arg-type]
    found.append(fingerprint())
    assert len(set(found)) == 1
    monkeypatch.setattr(format_of(job.source).__class__, "semantics", 99)
    found.append(fingerprint())
    monkeypatch.setattr(ImageInput, "semantics", {"decode": 1, "transform": 99})
    found.append(fingerprint())
    assert len(set(found)) == 3


def test_a_partition_that_changes_meanwhile_stays_as_it_became(tmp_path: Path):
    partition = make_partition(tmp_path, write_images, sink={"keep_versions": 2})
    partition.broken = {"003.jpg", "004.jpg"}
    partition.run()
    partition.broken = {"004.jpg"}
    partition.retry()

    def roll_back(*arguments: Any, **more: Any) -> Any:
        rollback(partition.out, LAYOUT, "meanwhile", keep_versions=2)
        return real(*arguments, **more)

    real, partition.predict = partition.predict, roll_back  # type: ignore[method-assign]
    partition.broken.clear()
    with pytest.raises(PublishConflict, match="version 2 was replaced meanwhile"):
        partition.retry()
    partition.predict = real  # type: ignore[method-assign]
    assert list(partition.failed()) == ["003.jpg", "004.jpg"]
    # What was rolled back can be retried as well, and rolled back to again.
    assert partition.retry() == "published"
    assert partition.failed() == {}
    assert history_numbers(partition.out, LAYOUT) == [2, 3]
    rolled = rollback(partition.out, LAYOUT, "back", keep_versions=2, to_number=2)
    assert [row["row_id"] for row in content_of(partition.out, rolled)[1]] == ["004.jpg"]
    verify(partition)


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
