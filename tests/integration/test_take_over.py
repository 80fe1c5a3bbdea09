"""No run is lost: a run takes over all staged slices, but for those that a model failed.

Slices of other or changed files are not staged under the plan. Damaged parts are computed again.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.faults.watched_store import Event, WatchedStore
from support.inputs.photos import build_images
from support.runs.carried_runs import (
    NUM_ROWS,
    assert_as_all_computed,
    make_partition,
    run_whole,
)
from support.runs.cli import pipeline, write_job
from support.runs.earlier_partitions import (
    LAYOUT,
    EarlierPartition,
    predict_rows,
    write_same_time,
)
from support.runs.night_inputs import FORMATS

from pipeline.commit.layout import staged_name
from pipeline.commit.parts.part_file import DamagedPart
from pipeline.commit.parts.part_writer import file_metadata
from pipeline.commit.plan_store import adopt_plan
from pipeline.commit.staging import StagedSlice, StagingWriter, list_staged
from pipeline.core.environment import FAILPOINT
from pipeline.core.errors import GateRefused
from pipeline.core.failures import Failure, Reason, SystematicFailure
from pipeline.execution.isolation.crash_guard import fail
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import missing_units
from pipeline.runs.builders import make_reader
from pipeline.runs.context import RunContext
from pipeline.runs.ending.finish import fail_fast_on_certain_refusal, require_some_row
from pipeline.runs.preparing.prepare import prepare
from pipeline.runs.resume import take_over
from pipeline.runs.staleness import survey_job
from pipeline.runs.work import divide
from pipeline.sources.formats.parquet_footers import open_parquet
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
) -> list[StagedSlice]:
    """Stage all slices; in some of them, by number, the model fails over every row."""
    run, plan = planned(partition)
    folder = LAYOUT.staging(plan.work)
    writer = StagingWriter(partition.out, folder, "r", "zstd", file_metadata(plan, "r"))
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


@pytest.mark.parametrize("reason", [Reason.MODEL_ERROR, Reason.UNREADABLE_SHARD])
def test_slices_that_the_model_or_the_disk_failed_are_computed_again(
    reason: Reason, tmp_path: Path
):
    partition = make_partition(tmp_path, "images")
    stage(partition, failed={1, 3}, reason=reason)
    stage(partition, failed={1}, reason=reason)  # another attempt at each
    run, plan = planned(partition)
    staged = take_over(run, plan)
    num_slices = NUM_ROWS // SLICE_ROWS
    assert len(staged) == num_slices - 1, "of slice 3 one attempt is good"
    assert run.record.num_done == NUM_ROWS - SLICE_ROWS
    assert run.record.num_quarantined == 0
    left = {key for unit in missing_units(plan, staged).items() for key in unit[1]}
    assert len(left) == 1
    assert staged == list_staged(partition.out, LAYOUT.staging(plan.work))


@pytest.mark.parametrize("form", ["images", "parquet"])
def test_no_slice_of_a_silently_changed_file_is_taken_over(form: str, tmp_path: Path):
    partition = make_partition(tmp_path, form)
    _, plan = planned(partition)
    stage(partition, failed=set())
    path = sorted((tmp_path / "in").iterdir())[0]
    write_same_time(path, path.read_bytes())
    again, other = planned(partition)
    assert other.fingerprint == plan.fingerprint
    assert (take_over(again, other), again.record.num_done) == ({}, 0)
    # What is computed now is of the file as it is now.
    stage(partition, failed=set())
    third, other = planned(partition)
    assert missing_units(other, take_over(third, other)) == {}


def test_staged_slices_that_contradict_each_other_are_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    partition = make_partition(tmp_path, "tars")
    stage(partition, failed=set())
    run, plan = planned(partition)
    staged = list_staged(partition.out, LAYOUT.staging(plan.work))
    keys = sorted((key for key in staged if key.unit == 0), key=lambda key: key.start)
    cut_off = replace(keys[-1], start=keys[-1].start - 1, end=keys[-1].end - 1)
    folder, name = LAYOUT.staging(plan.work), staged_name(cut_off, "anotherattempt")
    partition.out.put(f"{folder}/{name}", partition.out.read_bytes(staged[keys[-1]].path))
    left = take_over(run, plan)
    assert left.keys() == {key for key in staged if key.unit}
    assert "contradict each other" in caplog.text
    assert partition.run().num_predicted == NUM_ROWS
    assert len(partition.computed) == sum(key.num_rows for key in keys)


@pytest.mark.parametrize("columns", [[], ["label"]], ids=["one folder", "by value"])
def test_a_staged_part_that_is_damaged_in_any_byte_is_computed_again(
    columns: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    partition = make_partition(tmp_path, "images", sink={"partition_columns": columns})
    run = partition.new_run()
    plan, model = prepare(run)
    work = divide(run, plan, model, None, lambda _: None)
    staged = partition.stage(run, work)
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
def test_a_run_computes_damaged_slices_that_it_would_take_over(tmp_path: Path):
    build_images(tmp_path / "in", 12, seed=1, num_bad=0)
    source = {"uri": str(tmp_path / "in"), "format": "images"}
    out, run = str(tmp_path / "out"), {"slice_rows": 4}
    resources = {"max_actors": 2, "num_cpus": 0.5}
    job = write_job(tmp_path / "job.yaml", source, out, run=run, resources=resources)
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
    slots = {stage["stage"]: stage["slots"] for stage in done.json["stages"]}
    assert (slots["predict"], slots["decode"]) == (1, 1), "one actor for one slice, not two"


@pytest.mark.parametrize("reason", [Reason.NON_FINITE, Reason.NATIVE_CRASH, Reason.OUT_OF_MEMORY])
def test_slices_whose_rows_failed_for_their_own_reasons_stay(reason: Reason, tmp_path: Path):
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


def test_rows_that_all_fail_alike_are_a_job_error_whatever_the_gates_allow(tmp_path: Path):
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


def test_one_cause_of_all_failures_is_named_before_a_gate_refuses(tmp_path: Path):
    partition = make_partition(tmp_path, "images", gates={"max_error_pct": 1.0, "min_rows": 1})
    run, plan = count(partition, stage(partition, failed={0})[:1])
    with pytest.raises(SystematicFailure, match="all 4 rows"):
        fail_fast_on_certain_refusal(run, plan)
    run.record.retried(entries=4)  # retried rows have failed before
    with pytest.raises(Exception, match=r"certain after 4 of 40 rows") as refused:
        fail_fast_on_certain_refusal(run, plan)
    assert not isinstance(refused.value, SystematicFailure)
    assert "4 model_error, e.g. 000.jpg: RuntimeError: boom 0" in str(refused.value)


class KilledError(Exception):
    """As if the process ended here."""


def interrupt(partition: EarlierPartition, before: str = "put .*/staging/") -> list[str]:
    """Run until an operation of the store; return the ids of the rows that were computed."""

    def end() -> None:
        raise KilledError

    event = Event(before, end)
    late = partition.at(WatchedStore(partition.out.uri, watch=event.watch))
    with pytest.raises(KilledError):
        late.run()
    return late.computed


@contextmanager
def bad_block(name: str) -> Iterator[None]:
    """Let the disk fail to read the footer of a shard for a while; no time of a file changes."""

    def opened(handle: Any) -> pq.ParquetFile:
        if str(getattr(handle, "name", "")).endswith(name):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open_parquet(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.sources.formats.parquet_footers.open_parquet", opened)
        patch.setattr("pipeline.sources.formats.parquet_footers.with_retries", lambda read: read())
        yield


@contextmanager
def garbage(path: Path) -> Iterator[None]:
    """Let a shard be no shard for a while; size and mtime stay."""
    data = path.read_bytes()
    write_same_time(path, b"\xff" * len(data))
    yield
    write_same_time(path, data)


Broken = Callable[[Path], AbstractContextManager[None]]
BROKEN: dict[str, Broken] = {"bad block": lambda path: bad_block(path.name), "garbage": garbage}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_shard_that_could_not_be_opened_when_planned_is_opened_again(
    broken: Broken, tmp_path: Path
):
    partition = make_partition(tmp_path, "parquet", has_weights=True)
    partition.run()
    FORMATS["parquet"].write(tmp_path / "in" / "s4.parquet", range(40, 50))
    with broken(tmp_path / "in" / "s1.parquet"):
        interrupt(partition)
    partition.run()
    assert_as_all_computed(partition, tmp_path)


@pytest.mark.parametrize("again", ["run", "retry"])
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_an_early_retry_does_not_hide_that_a_shard_can_be_opened_again(
    broken: Broken, again: str, tmp_path: Path
):
    partition = make_partition(tmp_path, "parquet", has_weights=True)
    partition.broken = {"s0.parquet#1"}
    with broken(tmp_path / "in" / "s1.parquet"):
        assert partition.run().num_rows == 31
        assert partition.retry() == "nothing_to_do"
        assert partition.retry("unreadable_shard") == "nothing_to_do"
    getattr(partition, again)()
    if again == "retry":
        assert len(partition.computed) == 11, "the rows of the other shards are taken over"
    assert_as_all_computed(partition, tmp_path)
    assert partition.run().number == 2


@pytest.mark.parametrize(
    ("form", "broken"),
    [("parquet", "bad block"), ("parquet", "garbage"), ("tars", "garbage")],
)
def test_a_gate_accepts_a_shard_once_it_is_repaired(form: str, broken: str, tmp_path: Path):
    gates = {"max_error_pct": 0.0, "min_rows": 1}
    partition = make_partition(tmp_path, form, gates=gates)
    path = sorted((tmp_path / "in").iterdir())[1]
    with BROKEN[broken](path), pytest.raises(GateRefused):
        partition.run()
    partition.run()
    assert_as_all_computed(partition, tmp_path)


def write_padded(path: Path, rows: pa.Table, size_bytes: int) -> None:
    """Write rows as a file of a size, which is that of its rows and more than 200 bytes."""
    length = 200  # numbers as large take two bytes
    for _ in range(2):
        with pq.ParquetWriter(path, rows.schema, store_schema=False) as writer:
            writer.write_table(rows)
            writer.add_key_value_metadata({"pad": "x" * length})
        length += size_bytes - path.stat().st_size
    assert path.stat().st_size == size_bytes


@pytest.mark.parametrize("is_published", [True, False], ids=["published", "interrupted"])
@pytest.mark.parametrize("is_longer", [True, False], ids=["more rows", "fewer rows"])
def test_a_rewritten_shard_of_the_same_size_and_time_is_planned_again(
    is_longer: bool, is_published: bool, tmp_path: Path
):
    partition = make_partition(tmp_path, "parquet", has_weights=True)
    path = tmp_path / "in" / "s1.parquet"
    rows = pq.read_table(path)
    versions = [rows, rows.slice(0, 7)] if is_longer else [rows.slice(0, 7), rows]
    size_bytes = path.stat().st_size + 1000
    write_padded(path, versions[1], size_bytes)
    if is_published:
        partition.run()
    else:
        interrupt(partition, "put .*/staging/.*/000001-")
    before = path.stat()
    write_padded(path, versions[0], size_bytes)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    partition.run()
    assert partition.current().num_rows == 30 + versions[0].num_rows
    assert_as_all_computed(partition, tmp_path)


def test_slices_that_a_late_run_stages_after_publishing_are_of_its_own_files(
    tmp_path: Path,
):
    partition = make_partition(tmp_path, "images")
    partition.run()
    stage(partition, failed=set())
    paths = sorted((tmp_path / "in").iterdir())
    contents = [path.read_bytes() for path in paths]
    for path, data in zip(paths, reversed(contents), strict=True):
        size = path.stat().st_size
        write_same_time(path, (data + bytes(size))[:size])
    partition.run()
    assert_as_all_computed(partition, tmp_path)


def test_a_run_resumes_staged_slices_of_a_run_that_carries_rows(tmp_path: Path):
    partition = make_partition(tmp_path, "images", has_weights=True)
    partition.run()
    for number in range(40, 52):
        FORMATS["images"].write(tmp_path / "in" / f"{number:03d}.jpg", [number])
    first = interrupt(partition, "put .*/staging/.*/000002-")
    partition.lease_ttl_s = 0.0
    would = survey_job(partition.job, partition.new_run().options).a_run_would
    assert would is not None
    assert would.startswith("resume, then replace version 1")
    partition.run()
    assert len(first) > len({*first} & {*partition.computed}), "some slice was staged"
    assert_as_all_computed(partition, tmp_path)
