"""Test that a run publishes what it planned, and nothing if a slice is lost before the end."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.runs.carried_runs import NUM_ROWS, make_partition
from support.runs.protocol import LAYOUT, compute, new_run, run_once
from support.runs.published import Rows, make_plan, run_here, slice_table, work_of

from pipeline.commit.lease import hold_lease
from pipeline.commit.manifest import current_manifest, log_numbers
from pipeline.commit.plan_store import adopt_plan
from pipeline.commit.staging import StagedSlice, list_staged
from pipeline.core.errors import GateRefused, InfraError
from pipeline.published.output import open_output
from pipeline.published.verify import verify_output
from pipeline.runs.ending.finish import finish
from pipeline.storage.store import Store


@pytest.mark.parametrize("lost", [0, 2, 3])
def test_a_slice_that_was_deleted_before_the_end_publishes_nothing(lost: int, tmp_path: Path):
    store, rows = Store(str(tmp_path)), Rows()
    plan, run = adopt_plan(store, LAYOUT, make_plan(rows)), new_run(store)
    folder = LAYOUT.staging(plan.work)
    with hold_lease(store, LAYOUT, run.record.run_id, 60.0) as lease:
        compute(run, plan, rows, slice_table, {})
        store.delete([store.list_files(folder)[lost].path])
        staged = list_staged(store, folder)
        with pytest.raises(InfraError, match="1 slices have no staged part"):
            finish(run, work_of(plan), plan, staged, lease, run_here)
    assert current_manifest(store, LAYOUT) is None
    assert store.list_files(LAYOUT.predictions) == []
    # Run again, it computes that slice alone.
    done = run_once(store, rows)
    assert (done.num_computed, log_numbers(store, LAYOUT)) == (rows.rows_per_slice, [1])


def test_parts_with_other_rows_than_were_counted_are_not_published(tmp_path: Path):
    store, rows = Store(str(tmp_path)), Rows()
    plan, run = adopt_plan(store, LAYOUT, make_plan(rows)), new_run(store)
    with hold_lease(store, LAYOUT, run.record.run_id, 60.0) as lease:
        compute(run, plan, rows, slice_table, {})
        run.record.computed(StagedSlice("r", 0, reasons={"empty": 1}))
        staged = list_staged(store, LAYOUT.staging(plan.work))
        with pytest.raises(InfraError, match=r"predictions and .* quarantined rows, expected"):
            finish(run, work_of(plan), plan, staged, lease, run_here)
    assert current_manifest(store, LAYOUT) is None


@pytest.mark.parametrize("input_format", ["parquet", "tars", "jsonl", "csv"])
def test_most_shards_unreadable_are_refused_although_they_are_few_rows(
    input_format: str, tmp_path: Path
):
    job = make_partition(tmp_path, input_format, num_rows=800, shard_rows=100, gates={})
    for path in sorted((tmp_path / "in").iterdir())[2:]:
        data = path.read_bytes()
        path.write_bytes(bytes(len(data)) if input_format == "csv" else data[:99])
    figures = r"max_error_pct: 6 of 8 shards cannot be read, \d+\.\d+% of the bytes"
    with pytest.raises(GateRefused, match=rf"{figures}.*; limit 5%.*--accept max_error_pct=REASON"):
        job.run()
    assert current_manifest(job.out, job.layout) is None
    job.sections["gates"] = {"error_mode": "warn"}
    manifest = job.run()
    [gate] = [gate for gate in manifest.gates if gate["name"] == "max_error_pct"]
    assert (gate["status"], manifest.num_unreadable_shards) == ("warn", 6)


@pytest.mark.parametrize("table", [None, "delta"])
def test_a_night_without_rows_has_no_folders_of_its_columns(table: str | None, tmp_path: Path):
    """What types a column has that is passed through, only a shard tells."""
    sink = {"partition_columns": ["camera"], "table": table}
    gates = {"allow_empty": True, "max_error_pct": 100}
    job = make_partition(tmp_path, "parquet", sink=sink, gates=gates, folders=["a"])
    first = job.at(job.out, "date=2026-11-23")
    empty = job.at(job.out, "date=2026-11-24")
    broken, last = job.at(job.out, "date=2026-11-25"), job.at(job.out, "date=2026-11-26")
    last.inputs = str(tmp_path / "in" / "a")
    for night in (first, empty, broken):
        night.inputs = str(tmp_path / "in" / night.partition)
        Path(night.inputs).mkdir()
    (tmp_path / "in" / broken.partition / "s.parquet").write_bytes(b"PAR1 and no footer")
    for night, num_rows in ((empty, 0), (last, NUM_ROWS), (first, 0), (broken, 1)):
        manifest = night.run()
        assert (manifest.num_rows, list(manifest.partition_columns)) == (num_rows, ["camera"])
        assert night.run() == manifest
        verify_output(job.out.uri, night.partition, {})
    assert len(open_output(job.out.uri).predictions()) == NUM_ROWS
    empty.sections["gates"] = {}
    with pytest.raises(GateRefused, match="not_empty"):
        empty.at(job.out, "date=2026-11-27").run()
