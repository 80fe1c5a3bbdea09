"""One run: the whole data path on one screen.

    plan -> divide -> source -> preprocess -> engine (actor pool) -> sink (staging) -> gates
         -> publish

This file has the order of the steps; each step is in the file that it is imported from.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import partial

from pipeline.commit.lease import Lease
from pipeline.commit.manifest import Manifest, current_or_unknown
from pipeline.commit.publish import repair
from pipeline.commit.staging import list_staged
from pipeline.core.errors import InfraError, JobError
from pipeline.execution import executors
from pipeline.execution.caller import one_run
from pipeline.execution.executors import Executor
from pipeline.job.job import Job
from pipeline.planning.tiling import Staged, missing_units, num_left
from pipeline.process.failpoints import failpoint
from pipeline.report.document import Report, RunStatus
from pipeline.runs.builders import make_stream
from pipeline.runs.context import RunContext, RunOptions, Settled
from pipeline.runs.ending.finish import fail_fast_on_certain_refusal, finish, require_some_row
from pipeline.runs.ending.supervisor import run_reported
from pipeline.runs.preparing.prepare import check_before_ray, prepare
from pipeline.runs.progress import Progress
from pipeline.runs.resume import stage_known_slices, take_over
from pipeline.runs.staleness import note_if_published, note_unchanged, tidy_if_free, why_stale
from pipeline.runs.work import Work, again, divide, settle


def run_job(job: Job, options: RunOptions, progress: Progress) -> Report:
    """Execute a job once and return its report, which is stored beside the output.

    The process is left unchanged: environment, logging, warning filters, signal handlers and
    DataContext. A Ray that is initialised in it is used and left running.

    Args:
        options: The options of the command line.
        progress: Shows the phases and the progress of the run.

    Raises:
        JobError: Another run is in progress in this process.
        PipelineError: With its exit code. Refused, stopped and failed runs also store a report,
            after unexpected errors, too, once the store was found usable.
        Interrupted: Ctrl-C in a caller's program stopped the run.
    """
    with one_run(is_callers=not options.owns_process):
        return run_reported(RunContext.of(job, options), partial(_execute, progress=progress))


def _execute(run: RunContext, progress: Progress) -> RunStatus:
    job, store, layout, is_retry = run.job, run.store, run.layout, run.options.retried is not None
    current = current_or_unknown(store, layout)
    if is_retry and not (current and current.is_known):
        raise JobError(f"partition {layout.name}: nothing is published, so use `pipeline run`")
    progress.phase(f"listing {job.source.uri}")
    plan, model = prepare(run)
    rows = "" if plan.num_rows is None else f" with {plan.num_rows:,} rows"
    progress.phase(f"listed {plan.num_shards:,} shards{rows}")
    if not is_retry and note_if_published(run, current, plan):
        tidy_if_free(run)
        return "nothing_to_do"
    with run.held() as lease:
        base = repair(store, layout, job.sink.keep_versions, table=run.table)
        if not is_retry and note_if_published(run, base, plan):
            return "nothing_to_do"
        if base and (changed := why_stale(store, layout, base, plan)):
            progress.phase(f"version {base.number} predates a change: {changed}")
        work = divide(run, plan, model, base, progress.phase)
        if work.is_vain:
            note_unchanged(run)
            return "nothing_to_do"
        golden = check_before_ray(run, work.plan, model)
        with executors.start_executor(run.options.address, progress.phase) as executor:
            hardware, on_cluster = executor.hardware, executor.on_cluster
            settled = settle(run, work, executor, progress.phase)
            settled, start_s = replace(settled, golden=golden), executor.start_s
            run.record.connected(hardware, settled.allocation, start_s, on_cluster=on_cluster)
            run.record.planned(settled.plan, settled.model, job.resources.num_gpus)
            publish = partial(_publish, run, lease, executor, progress)
            try:
                manifest = publish(work, settled)
            except InfraError as error:  # slices that are deleted are computed again
                manifest = publish(*again(work, settled, error))
    run.record.published(manifest, store.url(layout.predictions))
    return "nothing_to_do" if manifest is base else "published"


def _publish(
    run: RunContext,
    lease: Lease,
    executor: Executor,
    progress: Progress,
    work: Work,
    settled: Settled,
) -> Manifest:
    """Predict the missing slices and publish; raises as `_predict` and `finish`."""
    staged = _predict(run, work, settled, executor, progress)
    progress.phase("checking and publishing")
    return finish(run, work, settled.plan, staged, lease, executor.run_tasks)


def _predict(
    run: RunContext, work: Work, settled: Settled, executor: Executor, progress: Progress
) -> Staged:
    """Compute the slices that have no staged part yet; return the staged part of every slice.

    Raises:
        GateRefused: A gate is certain to refuse; finished slices stay.
        SystematicFailure: All rows failed in the model for one cause.
    """
    plan, staged = settled.plan, take_over(run, settled.plan, work.reuse.sources)
    staged = stage_known_slices(run, work, settled.model, staged, executor.run_tasks)
    units = missing_units(plan, staged)
    if not units:
        return staged
    fail_fast_on_certain_refusal(run, plan)
    settled = replace(settled, allocation=settled.allocation.for_slices(num_left(units)))
    run.record.divided(settled.allocation)
    parts = make_stream(run, settled, units)
    slices, shown = executor.stream(parts, settled.allocation), None
    with (
        progress.rows(plan.num_rows, done=run.record.num_done),
        run.record.streaming(),
        closing(slices),
    ):
        for committed in slices:
            run.record.computed(committed)
            run.record.looks(executor.look)
            progress.advance(committed.num_rows, committed.num_quarantined)
            if shown is None and (shown := run.record.scores):
                progress.phase(shown)
            failpoint("slice_done")
            fail_fast_on_certain_refusal(run, plan)
    require_some_row(run)
    return list_staged(run.store, run.layout.staging(plan.work))
