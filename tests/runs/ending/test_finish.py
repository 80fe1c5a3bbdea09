"""What is published is what was planned: a slice that is lost before the end publishes nothing."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from support.runs.protocol import LAYOUT, compute, new_run, run_once
from support.runs.published import Rows, make_plan, run_here, slice_table

from pipeline.commit.lease import hold_lease
from pipeline.commit.manifest import current_manifest, log_numbers
from pipeline.commit.plan_store import adopt_plan
from pipeline.commit.staging import list_staged
from pipeline.core.errors import GateRefused, InfraError
from pipeline.core.figures.histograms import Distribution
from pipeline.report.recording.rows import KeptRows
from pipeline.runs.ending.finish import finish
from pipeline.storage.store import Store


@pytest.mark.parametrize("lost", [0, 2, 3])
def test_a_slice_that_was_deleted_before_the_end_publishes_nothing(lost: int, tmp_path: Path):
    store, rows = Store(str(tmp_path)), Rows()
    plan, run = adopt_plan(store, LAYOUT, make_plan(rows)), new_run(store)
    folder = LAYOUT.staging(plan.fingerprint)
    with hold_lease(store, LAYOUT, run.record.run_id, 60.0) as lease:
        compute(run, plan, rows, slice_table, {})
        store.delete([store.list_files(folder)[lost].path])
        staged = list_staged(store, folder)
        with pytest.raises(InfraError, match="1 slices have no staged part"):
            finish(run, plan, staged, None, lease, run_here)
    assert current_manifest(store, LAYOUT) is None
    assert store.list_files(LAYOUT.predictions) == []
    # Run again, it computes that slice alone.
    done = run_once(store, rows)
    assert (done.num_computed, log_numbers(store, LAYOUT)) == (rows.rows_per_slice, [1])


@pytest.mark.parametrize(
    ("content_rows", "differing", "refusing", "told"),
    [
        (None, (), set(), "of the computed rows: "),
        (40, ("a.jpg: expected x, found y",), {"carried"}, "80 computed predictions"),
    ],
)
def test_drift_is_judged_of_the_computed_rows_and_errors_with_the_carried_ones(
    content_rows: int | None,
    differing: tuple[str, ...],
    refusing: set[str],
    told: str,
    tmp_path: Path,
):
    """Of 240 computed rows each second one failed, which among 10,000 carried ones is little."""
    store, rows = Store(str(tmp_path)), Rows(num_slices=3, rows_per_slice=80, fail_every=2)
    plan, run = adopt_plan(store, LAYOUT, make_plan(rows)), new_run(store)
    gates = run.job.gates.model_copy(update={"max_error_pct": 5.0})
    run = replace(run, job=run.job.model_copy(update={"gates": gates}))
    distribution = Distribution({"cat": 10_000})
    run.record.keep(KeptRows(10_000, {}, distribution, None, plan.fingerprint))
    run.record.carried(rows=10_000, content_rows=content_rows)
    run.record.checked(16, differing)
    with hold_lease(store, LAYOUT, run.record.run_id, 60.0) as lease:
        compute(run, plan, rows, slice_table, {})
        staged = list_staged(store, LAYOUT.staging(plan.fingerprint))
        with pytest.raises(GateRefused) if refusing else nullcontext():
            manifest = finish(run, plan, staged, None, lease, run_here)
            assert manifest.carried["rows"] == 10_000
    gates_told = {gate.name: gate for gate in run.record.report("refused", 3).gates}
    assert {name for name, gate in gates_told.items() if gate.status == "fail"} == refusing
    assert told in (gates_told["constant"].message or "")
    assert gates_told["max_error_pct"].status == "pass"
    assert gates_told["carried"].status == ("fail" if differing else "pass")
