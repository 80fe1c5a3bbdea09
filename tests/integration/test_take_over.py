"""What a run takes over of earlier ones: all that is staged, but for slices that a model failed.

And but for slices of files that changed since, and for parts that are damaged.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.inputs.photos import build_images
from support.runs.carried_runs import NUM_ROWS, make_partition, run_whole
from support.runs.cli import pipeline, write_job
from support.runs.earlier_partitions import LAYOUT, EarlierPartition, predict_rows

from pipeline.commit.parts.part_reader import DamagedPart
from pipeline.commit.parts.part_writer import file_metadata
from pipeline.commit.plan_store import adopt_plan
from pipeline.commit.staging import StagedSlice, StagingWriter, list_staged
from pipeline.core.causes import SystematicFailure
from pipeline.core.environment import FAILPOINT
from pipeline.core.failures import Failure, Reason
from pipeline.execution.isolation.row_isolation import fail
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import missing_units
from pipeline.runs.builders import make_reader
from pipeline.runs.context import RunContext
from pipeline.runs.ending.finish import fail_fast_on_certain_refusal, require_some_row
from pipeline.runs.preparing.prepare import prepare
from pipeline.runs.resume import take_over
from pipeline.runs.work import divide
from pipeline.sources.reader import read_slices
from pipeline.storage.store import Store

SLICE_ROWS = 4


def planned(partition: EarlierPartition) -> tuple[RunContext, Plan]:
    run = partition.new_run()
    plan, _ = prepare(run)
    return run, adopt_plan(partition.out, LAYOUT, plan)


def stage(
    partition: EarlierPartition,
    failed: set[int],
    message: str = "RuntimeError: boom",
    reason: Reason = Reason.MODEL_ERROR,
    run_id: str = "r",
) -> list[StagedSlice]:
    """Stage all slices; in some of them, by number, the model fails over every row."""
    run, plan = planned(partition)
    folder = LAYOUT.staging(plan.fingerprint)
    writer = StagingWriter(partition.out, folder, run_id, "zstd", file_metadata(plan, run_id))
    reader = make_reader(run.job, plan)
    staged, number = [], 0
    for unit, starts in missing_units(plan, {}).items():
        for key, counters, rows in read_slices(reader, unit, frozenset(starts)):
            if number in failed:
                texts = [f"{message} {row}" for row in range(key.num_rows)]
                failures = [Failure(reason, "predict", text) for text in texts]
                rows = fail(rows, dict(enumerate(failures)))
            made = predict_rows(rows, plan, partition.broken)
            staged.append(writer.write(key, counters, made))
            number += 1
    return staged


def test_slices_over_which_the_model_failed_go_again_whichever_attempt_wins(tmp_path: Path):
    partition = make_partition(tmp_path, "images")
    stage(partition, failed={1, 3})
    stage(partition, failed={1})  # another attempt at each
    run, plan = planned(partition)
    staged = take_over(run, plan)
    num_slices = NUM_ROWS // SLICE_ROWS
    assert len(staged) == num_slices - 1, "of slice 3 one attempt is good"
    assert run.record.num_done == NUM_ROWS - SLICE_ROWS
    assert run.record.num_quarantined == 0
    left = {key for unit in missing_units(plan, staged).items() for key in unit[1]}
    assert len(left) == 1
    assert staged == list_staged(partition.out, LAYOUT.staging(plan.fingerprint))


@pytest.mark.parametrize("is_noted", [True, False], ids=["noted", "of an older version"])
@pytest.mark.parametrize("form", ["images", "parquet"])
def test_slices_of_files_that_changed_unseen_go_again(form: str, is_noted: bool, tmp_path: Path):
    partition = make_partition(tmp_path, form)
    run, plan = planned(partition)
    if is_noted:
        take_over(run, plan)
    stage(partition, failed=set(), run_id=run.record.run_id)
    path = sorted((tmp_path / "in").iterdir())[0]
    before = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    again, same = planned(partition)
    assert same.fingerprint == plan.fingerprint
    staged = take_over(again, same)
    left = missing_units(same, staged)
    changed = {u.index for u in same.units if path.name in {e.path for e in u.extents}}
    assert {unit.index for unit in left} == (changed if is_noted else set())
    assert again.record.num_done == NUM_ROWS - sum(unit.num_rows or 0 for unit in left)
    # What is computed now is of the file as it is now.
    stage(partition, failed=set(), run_id=again.record.run_id)
    third, plan = planned(partition)
    assert missing_units(plan, take_over(third, plan)) == {}


@pytest.mark.parametrize("columns", [[], ["label"]], ids=["one folder", "by value"])
def test_a_staged_part_that_is_damaged_in_any_byte_is_computed_again(
    columns: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    partition = make_partition(tmp_path, "images", sink={"partition_columns": columns})
    run = partition.new_run()
    plan, model = prepare(run)
    partition.stage(run, divide(run, plan, model, None, lambda _: None))
    staged = list_staged(partition.out, LAYOUT.staging(plan.fingerprint))
    path, whole = next(iter(staged.values())).path, run_whole(partition, tmp_path)
    for fault in (0, 5, 10, 15):
        night = partition.at(Store(str(tmp_path / f"out-{fault}")))
        shutil.copytree(tmp_path / "out", night.out.uri)
        data = bytearray(night.out.read_bytes(path))
        if fault:
            data[len(data) * fault // 16] ^= 1 << fault % 8
        night.out.put(path, bytes(data) if fault else bytes(data[: len(data) // 2]))
        caplog.clear()
        try:
            night.run()
        except DamagedPart:  # found behind its footer, and deleted: a run of the command goes on
            night.run()
        assert night.content() == whole.content()
        [warning] = caplog.messages
        assert f"{night.out.url(path)}: is damaged" in warning


@pytest.mark.no_ray
def test_a_run_computes_what_is_damaged_in_what_it_takes_over(tmp_path: Path):
    build_images(tmp_path / "in", 12, seed=1, num_bad=0)
    source = {"uri": str(tmp_path / "in"), "format": "images"}
    out, run = str(tmp_path / "out"), {"slice_rows": 4}
    job = write_job(tmp_path / "job.yaml", source, out, run=run)
    arguments = ("run", job, "--date", "2026-11-24", "--json")
    assert pipeline(*arguments, env={FAILPOINT: "judged"}).code
    part = next((tmp_path / "out/_control").rglob("staging/*/000000-*.parquet"))
    data = bytearray(part.read_bytes())
    data[30] ^= 1  # in a page, which no run reads before it publishes
    part.write_bytes(data)
    done = pipeline(*arguments)
    assert done.code == 0, done.stderr
    assert done.stderr.count(f"{part}: is damaged") == 1
    rows = done.json["rows"]
    assert (rows["predicted"], rows["computed"], rows["resumed"]) == (12, 4, 8)


@pytest.mark.parametrize("reason", [Reason.NON_FINITE, Reason.NATIVE_CRASH, Reason.OUT_OF_MEMORY])
def test_slices_that_failed_for_what_their_rows_are_stay(reason: Reason, tmp_path: Path):
    partition = make_partition(tmp_path, "images")
    stage(partition, failed={0, 2}, reason=reason)
    run, plan = planned(partition)
    assert len(take_over(run, plan)) == NUM_ROWS // SLICE_ROWS
    retry, plan = planned(partition)
    retry.record.retried(entries=2 * SLICE_ROWS)
    assert len(take_over(retry, plan)) == NUM_ROWS // SLICE_ROWS - 2, "a retry tries them again"
    assert run.record.num_quarantined == 2 * SLICE_ROWS


def count(partition: EarlierPartition, staged: list[StagedSlice]) -> tuple[RunContext, Plan]:
    run, plan = planned(partition)
    for staged_slice in staged:
        run.record.computed(staged_slice)
    return run, plan


def test_rows_that_all_failed_alike_are_a_job_error_whatever_the_gates_allow(tmp_path: Path):
    partition = make_partition(tmp_path, "images", gates={"max_error_pct": 100.0})
    partition.broken = {"000.jpg", "007.jpg"}
    staged = stage(partition, failed=set(range(NUM_ROWS // SLICE_ROWS)))
    run, _ = count(partition, staged)
    with pytest.raises(
        SystematicFailure, match=r'all 40 rows .*: model_error "RuntimeError: boom 0"'
    ):
        require_some_row(run)
    run, _ = count(partition, stage(partition, failed=set(range(1, NUM_ROWS // SLICE_ROWS))))
    require_some_row(run)
    (top, *_) = run.record.top_failures()
    assert (top.num_rows, top.message) == (NUM_ROWS - SLICE_ROWS, "RuntimeError: boom 0")


def test_a_gate_that_is_certain_to_refuse_gives_way_to_the_one_cause(tmp_path: Path):
    partition = make_partition(tmp_path, "images", gates={"max_error_pct": 1.0, "min_rows": 1})
    run, plan = count(partition, stage(partition, failed={0})[:1])
    with pytest.raises(SystematicFailure, match="all 4 rows"):
        fail_fast_on_certain_refusal(run, plan)
    run.record.retried(entries=4)  # retried rows have failed before
    with pytest.raises(Exception, match=r"certain after 4 of 40 rows") as refused:
        fail_fast_on_certain_refusal(run, plan)
    assert not isinstance(refused.value, SystematicFailure)
    assert "4 model_error, e.g. 000.jpg: RuntimeError: boom 0" in str(refused.value)
