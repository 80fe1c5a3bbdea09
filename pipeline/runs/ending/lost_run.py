"""End a run whose process is gone: its parent stores the report and gives back the lease.

The finished slices are counted in the store: each has a staged part.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from pipeline.commit.layout import Layout
from pipeline.commit.lease import release_lost
from pipeline.commit.manifest import current_manifest
from pipeline.commit.plan_store import read_plan
from pipeline.commit.staging import StagedSlice, list_staged, read_footers
from pipeline.core.errors import InfraError
from pipeline.job.job import Job
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import done_slices
from pipeline.process.run_scope import within
from pipeline.report.recorder import RunRecorder
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.ending.save_report import save_trouble
from pipeline.storage.store import Store

_STEP_S = 20.0


def describe(run: RunContext) -> dict[str, Any]:
    """Return the facts of a run that `end` needs, as JSON values."""
    return {
        "job": run.job.model_dump_json(exclude_unset=True),
        "job_name": run.options.job_name,
        "run_id": run.record.run_id,
        "started_at": run.record.started_at.isoformat(),
        "started_s": run.record.started_s,
        "plan": run.record.plan.work if run.record.plan else None,
    }


def end(description: Mapping[str, Any], how: str) -> InfraError:
    """End a run as its own process would have done; return its error.

    Args:
        description: The result of `describe`.
        how: The end of its process, in words.
    """
    job = Job.model_validate_json(description["job"])
    layout = Layout(job.sink.partition)
    record = RunRecorder(description["run_id"], layout.name)
    record.started_at = dt.datetime.fromisoformat(description["started_at"])
    record.started_s = description["started_s"]
    store = Store(job.sink.uri, job.sink.storage_options)
    run = RunContext(job, RunOptions(job_name=description["job_name"]), store, layout, record)
    name = description["plan"]
    current = within(_STEP_S, lambda: current_manifest(store, layout))
    if current is not None and current.run_id == record.run_id:
        # A report of a failed run would contradict the log; the next run tidies up.
        error = InfraError(
            f"{how}: version {current.number} is published; run again to complete the publication"
        )
        within(_STEP_S, lambda: release_lost(store, layout, record.run_id, error))
        return error
    staged = within(_STEP_S, lambda: _staged(run, name)) if name else None
    if staged is not None:
        plan, footers = staged
        if plan.num_rows is not None:
            record.tiled(list(plan.slices()))
        for footer in footers:
            count = record.computed if footer.run_id == record.run_id else record.resumed
            count(footer)
    error = InfraError(
        f"{how}: {record.left_to_do()}; finished slices are kept, run again to continue"
    )
    within(_STEP_S, lambda: save_trouble(run, error))
    within(_STEP_S, lambda: release_lost(store, layout, record.run_id, error))
    return error


def _staged(run: RunContext, name: str) -> tuple[Plan, list[StagedSlice]]:
    plan = read_plan(run.store, run.layout, name)
    staged = list_staged(run.store, run.layout.staging(name))
    paths = [staged[key].path for key in done_slices(plan, staged)]
    return plan, [footer for footer in read_footers(run.store, paths) if footer is not None]
