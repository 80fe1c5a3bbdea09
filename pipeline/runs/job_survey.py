"""Say what a run of a job would do, and the state of its partition as the job sees it."""

from __future__ import annotations

from dataclasses import replace

from pipeline.commit.manifest import current_or_unknown, require_one_key
from pipeline.commit.plan_store import named
from pipeline.commit.staging import list_staged
from pipeline.core.errors import InputMissing, PipelineError
from pipeline.job.job import Job
from pipeline.published.state import PartitionStatus
from pipeline.published.survey import survey
from pipeline.reuse.finding import find_reuse
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.preparing.prepare import prepare
from pipeline.runs.staleness import is_published, next_step, why_stale


def survey_job(job: Job, options: RunOptions) -> PartitionStatus:
    """Say how the partition of a job is, and what a run would do; starts nothing, writes nothing.

    Its input is listed and its model resolved, as at the beginning of a run.
    """
    run = RunContext.of(job, options)
    (seen,) = survey(run.store, [run.layout.name])
    if seen.state == "running":
        return replace(seen, a_run_would="end with 4: it is running")
    try:
        return _compared(run.with_settled_source(), seen)
    except PipelineError as error:
        is_missing = isinstance(error, InputMissing)
        state = "no_input" if is_missing and seen.version is None else seen.state
        return replace(
            seen,
            state=state,
            why=str(error) if state == "no_input" else seen.why,
            a_run_would=f"end with {error.exit_code}: {error}",
        )


def _compared(run: RunContext, seen: PartitionStatus) -> PartitionStatus:
    store, layout = run.store, run.layout
    require_one_key(store, layout)
    plan, _ = prepare(run)
    current = current_or_unknown(store, layout)
    if is_published(current, plan, run.job.sink.partition_columns):
        return replace(seen, state="complete", why=None, a_run_would="do nothing")
    is_asked = run.options.reuse
    reuse = find_reuse(store, layout, run.job, plan, current, is_asked=is_asked)
    staged = list_staged(store, layout.staging(named(reuse.plan).work))
    would = next_step(current, has_staged=bool(staged))
    if current is None:
        state = "missing" if seen.state in ("unpublished", "no_input") else seen.state
        return replace(seen, state=state, a_run_would=would)
    if not current.is_known:
        return replace(seen, a_run_would=would)
    changed = why_stale(store, layout, current, plan) or "it was published with other settings"
    if seen.state != "complete":
        return replace(seen, a_run_would=f"{would}, which predates a change: {changed}")
    return replace(seen, state="stale", why=changed, a_run_would=would)
