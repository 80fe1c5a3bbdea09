"""Promise: a retry gives the partition of a run without failures, row for row."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from support.faults.watched_store import Event, WatchedStore
from support.runs.carried_runs import assert_as, change, make_partition, run_whole
from support.runs.cli import photos_job
from support.runs.earlier_partitions import LAYOUT, break_off
from support.runs.night_inputs import image

from pipeline.commit.lease import hold_lease
from pipeline.commit.manifest import log_numbers
from pipeline.commit.publish import rollback
from pipeline.core.errors import InfraError, JobError, PartitionBusy, PublishConflict
from pipeline.core.semantics import SEMANTICS
from pipeline.operations.retry import retry
from pipeline.operations.run import run
from pipeline.process import shared_notes
from pipeline.process.shared_notes import SharedNotes
from pipeline.runs.ending import lost_run
from pipeline.sources.units import Extent


def test_a_retry_that_recovers_nothing_publishes_nothing_and_counts_reasons(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "pipeline")
    partition = make_partition(tmp_path, "uris")
    gone = [Path(partition.inputs) / "photos" / f"{row}.jpg" for row in (4, 14)]
    for path in gone:
        path.unlink()
    partition.broken = {"s2.parquet#4"}
    partition.run()
    before = partition.content()
    assert partition.retry("timeout") == "nothing_to_do"
    assert "nothing to retry: quarantined stay 3 with other reasons than --reason" in caplog.text
    assert partition.report()["retry"]["not_asked"] == 3
    assert partition.retry("missing") == "nothing_to_do"
    assert partition.computed == ["s0.parquet#4", "s1.parquet#4"]
    assert partition.retry("missing") == "nothing_to_do"
    assert len(partition.computed) == 2, "failures of an earlier try are no excuse"
    assert (partition.content(), log_numbers(partition.out, LAYOUT)) == (before, [1])

    for row, path in zip((4, 14), gone, strict=True):
        path.write_bytes(image(row))
    partition.broken |= {"s0.parquet#4", "s1.parquet#4"}
    assert partition.retry("missing") == "published", "all fail, and for another reason"
    partition.broken = {"s1.parquet#4", "s2.parquet#4"}
    assert partition.retry() == "published"
    rows, retry = (partition.report()[name] for name in ("rows", "retry"))
    assert (rows["total"], rows["quarantined"], rows["computed"], rows["carried"]) == (40, 2, 3, 37)
    assert (retry["recovered"], retry["failed_again"]) == (1, 2)


@pytest.mark.usefixtures("without_ray_here")
def test_the_operation_retries_only_rows_with_the_given_reasons(tmp_path: Path):
    job = photos_job(tmp_path, 4, num_bad=1, gates={"max_error_pct": 100.0})
    date, allowed = "2026-11-24", ["models"]
    assert run(job, date=date, allow_import=allowed).rows.quarantined == 1
    for reasons, not_asked in ((["timeout"], 1), ([], 0)):
        report = retry(job, reasons=reasons, date=date, allow_import=allowed)
        assert report.retry is not None
        assert (report.status, report.retry.not_asked) == ("nothing_to_do", not_asked)


def test_rows_that_stay_for_their_ids_do_not_count_as_failed_again(tmp_path: Path):
    partition = make_partition(tmp_path, "ids", contents=36)
    partition.broken = {"id-5", "id-6"}
    partition.run()
    partition.broken = {"id-6"}
    assert partition.retry() == "published"
    figures = partition.report()["retry"]
    counts = [figures[name] for name in ("recovered", "failed_again", "duplicate_ids")]
    assert counts == [1, 1, 4]


def test_a_retry_without_a_base_is_refused(tmp_path: Path):
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


def test_a_retry_keeps_recovered_rows_even_if_as_many_rows_fail_as_before(tmp_path: Path):
    partition = make_partition(tmp_path, "tars")
    broken = Path(partition.inputs) / "s1.tar"
    whole = broken.read_bytes()
    for num_read in (2, 8):
        break_off(broken, whole, num_read)
        (partition.run if num_read == 2 else partition.retry)()
    assert partition.status == "published"
    assert_as(partition, run_whole(partition, tmp_path))
    assert partition.current().num_predicted == 38
    assert partition.retry() == "nothing_to_do"


def test_no_prediction_of_a_tar_that_breaks_off_earlier_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Blocks go bad without a write, so that the ctime stays as well.
    monkeypatch.setattr(Extent, "exact_version", property(lambda extent: extent.version))
    partition = make_partition(tmp_path, "tars", has_weights=True)
    tar = Path(partition.inputs) / "s1.tar"
    whole = tar.read_bytes()
    partition.broken = {"image 0031"}
    break_off(tar, whole, 8)
    partition.run()
    before = partition.content()
    for num_read in (2, 0, 6):
        break_off(tar, whole, num_read)
        assert partition.retry() == "nothing_to_do"
        assert partition.content() == before
    partition.broken = set()
    break_off(tar, whole, 2)
    assert partition.retry() == "published"
    assert partition.current().num_predicted == 38
    assert list(partition.failed().values()) == ["unreadable_shard"]
    break_off(tar, whole, 10)
    assert partition.retry() == "published"
    assert_as(partition, run_whole(partition, tmp_path))


@pytest.mark.parametrize("num_read", [2, 0])
def test_a_retry_predicts_a_broken_tar_again_that_was_rewritten_with_its_size_and_time(
    num_read: int, tmp_path: Path
):
    partition = make_partition(tmp_path, "tars", has_weights=True)
    tar = Path(partition.inputs) / "s1.tar"
    whole = tar.read_bytes()
    break_off(tar, whole, 8)
    partition.run()
    break_off(tar, whole, num_read)
    assert partition.retry() == "published"
    assert_as(partition, run_whole(partition, tmp_path))


def test_a_retry_in_which_another_row_fails_than_before_is_published(tmp_path: Path):
    partition = make_partition(tmp_path, "images")
    partition.broken = {"003.jpg"}
    keys = partition.run().keys["folder"]
    partition.out.delete([file.path for file in partition.out.list_files(keys)])
    partition.broken = {"005.jpg"}
    assert partition.retry() == "published"
    assert len(partition.computed) == 40, "without its keys nothing is carried over"
    assert_as(partition, run_whole(partition, tmp_path))
    assert partition.retry() == "nothing_to_do"


def test_a_retry_after_an_upgrade_publishes_rows_of_new_files_even_if_one_fails_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    partition = make_partition(tmp_path, "images", has_weights=True)
    partition.broken = {"003.jpg"}
    partition.run()
    monkeypatch.setitem(SEMANTICS, "decode", SEMANTICS["decode"] + 1)  # type: ignore[arg-type]
    change(partition, "900.jpg", "901.jpg")
    assert partition.retry() == "published"
    assert partition.content() == run_whole(partition, tmp_path).content()
    assert partition.retry() == "nothing_to_do"
    assert partition.computed == ["003.jpg"]
    change(partition, "901.jpg", first=2000)
    assert partition.retry() == "published"
    assert partition.content() == run_whole(partition, tmp_path).content()


def test_a_duplicate_whose_first_row_is_gone_is_predicted(tmp_path: Path):
    partition = make_partition(tmp_path, "ids", contents=30, has_weights=True)
    partition.broken = {"id-25"}
    partition.run()
    assert partition.retry() == "nothing_to_do"
    assert partition.computed == ["id-25"]
    (Path(partition.inputs) / "s0.parquet").unlink()
    assert partition.retry() == "published"
    assert_as(partition, run_whole(partition, tmp_path))
    assert list(partition.failed()) == ["id-25"]


def test_rows_that_stay_failed_are_counted_once(tmp_path: Path):
    """They count as quarantined, not as carried, and gates subtract them once."""
    partition = make_partition(tmp_path, "uris")
    gone = [Path(partition.inputs) / "photos" / f"{row}.jpg" for row in range(4)]
    for path in gone:
        path.unlink()
    partition.broken = {f"s2.parquet#{row}" for row in range(3)}
    partition.run()
    for row, path in enumerate(gone):
        path.write_bytes(image(row))
    assert partition.retry("missing") == "published"
    rows, current = partition.report()["rows"], partition.current()
    assert (rows["computed"], rows["carried"], rows["quarantined"]) == (4, 33, 3)
    assert (current.num_predicted, current.carried["rows"]) == (37, 33)
    (constant,) = [gate for gate in current.gates if gate["name"] == "constant"]
    assert constant["message"] == "4 computed predictions; not judged below 100"


def test_the_parent_of_a_killed_retry_counts_its_staged_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    partition = make_partition(tmp_path, "parquet")
    partition.broken = {f"s{shard}.parquet#{row}" for shard in range(4) for row in (0, 9)}
    partition.run()
    partition.broken, puts = set(), count()

    def die(verb: str, path: str) -> None:
        if verb == "put" and path.endswith(".parquet") and next(puts) == 1:
            raise InfraError("killed")

    dying = partition.at(WatchedStore(partition.out.uri, watch=die))
    monkeypatch.setattr(shared_notes, "_notes", notes := SharedNotes())
    with pytest.raises(InfraError, match="killed"):
        dying.retry()
    error = lost_run.end(notes.read()["run"], "its process was killed")
    assert "killed: 14 of 40 rows are done, 26 rows in 2 slices to go" in str(error)


def test_a_version_without_any_prediction_can_be_retried(tmp_path: Path):
    sections = {"sink": {"partition_columns": ("label",)}, "gates": {"max_error_pct": 100.0}}
    partition = make_partition(tmp_path, "tars", **sections)
    whole = run_whole(partition, tmp_path)
    partition.broken = {*whole.computed}
    assert partition.run().num_predicted == 0
    partition.broken.clear()
    assert partition.retry() == "published"
    assert_as(partition, whole)


def test_after_a_fix_of_the_code_a_retry_keeps_other_rows_and_the_next_run_computes_all(
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
    partition.run()
    assert len(partition.computed) == 40, "no version is of two codes for longer"


def test_a_version_published_meanwhile_is_not_taken_for_the_base(tmp_path: Path):
    """The version published meanwhile has the same fingerprint and other rows."""
    partition = make_partition(tmp_path, "images")
    partition.broken = {"003.jpg", "004.jpg"}
    partition.run()
    partition.broken = {"004.jpg"}
    partition.retry()
    event = Event(
        r"create .*/log/", lambda: rollback(partition.out, LAYOUT, "meanwhile", keep_versions=2)
    )
    late = partition.at(WatchedStore(partition.out.uri, watch=event.watch))
    late.broken = set()
    with pytest.raises(PublishConflict, match="run meanwhile published version 3"):
        late.retry()
    assert list(partition.failed()) == ["003.jpg", "004.jpg"]
    assert late.retry() == "published", "what was rolled back can be retried as well"
    assert partition.failed() == {}
