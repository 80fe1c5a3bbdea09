"""One run: the whole way of the data on one screen.

    plan -> source -> preprocess -> engine (actor pool) -> sink (staging) -> gates -> publish

What is here is the order of things; each step lives in the file of its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial

from pipeline.commit.layout import parse_staged_name
from pipeline.commit.lease import Lease
from pipeline.commit.manifest import Manifest, current_manifest
from pipeline.commit.plan_store import adopt_plan
from pipeline.commit.publish import repair
from pipeline.commit.staging import list_staged
from pipeline.core.slices import SliceKey
from pipeline.execution.caller import one_run_at_a_time, restore_process_state
from pipeline.execution.executors import Executor, start_executor
from pipeline.job.job import Job
from pipeline.models.spec import ModelSpec
from pipeline.models.weights.factory_tensors import warn_random_weights
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import missing_units, num_left
from pipeline.process.failpoints import failpoint
from pipeline.process.interrupts import defer_stops, stopped_by_ctrl_c
from pipeline.report.document import Report, RunStatus
from pipeline.runs.builders import make_stream
from pipeline.runs.carried.merge import predict_with_reuse
from pipeline.runs.context import RunContext, RunOptions, Settled
from pipeline.runs.ending.finish import fail_fast_on_certain_refusal, finish, require_some_row
from pipeline.runs.ending.save_report import save_report, save_trouble
from pipeline.runs.ending.supervisor import stoppable, supervise
from pipeline.runs.merging import Merge
from pipeline.runs.preparing.checks import check_before_ray
from pipeline.runs.preparing.prepare import prepare
from pipeline.runs.progress import Progress
from pipeline.runs.resume import note_if_published, take_over, tidy_if_free
from pipeline.runs.settle import settle
from pipeline.runs.staleness import why_stale
from pipeline.storage.errors import options_named
from pipeline.storage.store import StoredFile

Execute = Callable[[RunContext, Progress], RunStatus]


def run_job(
    job: Job, options: RunOptions, progress: Progress, execute: Execute | None = None
) -> Report:
    """Execute a job once and return its report; the report is stored beside the output.

    The process is left as it was found: its environment, logging, warning filters, signal handlers
    and DataContext. A Ray that is initialised in it is used and left running.

    Args:
        options: What the command line adds to it.
        progress: Where to show what it does and how far it is.
        execute: What to do; left out, all of the job.

    Raises:
        JobError: Another run is in progress in this process.
        PipelineError: With the exit code of what happened. A report is stored for refusals,
            stops and failures too, also unexpected ones, once the store has been found usable.
        Interrupted: Ctrl-C in a caller's program has stopped it.
    """
    is_callers = not options.owns_process
    with one_run_at_a_time(), restore_process_state(signals=is_callers), stopped_by_ctrl_c():
        return _run_job(RunContext.of(job, options), progress, execute or _execute)


def _run_job(run: RunContext, progress: Progress, execute: Execute) -> Report:
    job = run.job
    with options_named("sink.storage_options"):
        run.store.probe(single_writer=job.run.single_writer)
    with supervise(run, lambda error: save_trouble(run, error)), run.exports.during(run):
        try:
            with stoppable(run):
                status = execute(run.with_settled_source(), progress)
        except BaseException as error:
            with defer_stops():
                save_trouble(run, error)
            raise
        with defer_stops():
            return save_report(run, status, None)


def _execute(run: RunContext, progress: Progress) -> RunStatus:
    job, store, layout = run.job, run.store, run.layout
    progress.phase(f"listing {job.source.uri}")
    plan, model = prepare(run)
    rows = "" if plan.num_rows is None else f" with {plan.num_rows:,} rows"
    progress.phase(f"listed {plan.num_shards:,} shards{rows}")
    current = current_manifest(store, layout)
    if current and note_if_published(run, current, plan):
        tidy_if_free(run)
        return "nothing_to_do"
    with run.held() as lease:
        base = repair(store, layout, job.sink.keep_versions, table=run.table)
        if note_if_published(run, base, plan):
            return "nothing_to_do"
        if base and (changed := why_stale(store, layout, base, plan)):
            progress.phase(f"version {base.number} is of before a change: {changed}")
        plan = adopt_plan(store, layout, plan)
        predict = partial(
            predict_and_publish, run, model=model, base=base, lease=lease, progress=progress
        )
        manifest = predict_with_reuse(run, plan, model, base, predict, progress.phase)
    run.record.published(manifest, store.url(layout.predictions))
    return "published"


def predict_and_publish(
    run: RunContext,
    plan: Plan,
    model: ModelSpec,
    base: Manifest | None,
    lease: Lease,
    progress: Progress,
    merge: Merge | None = None,
) -> Manifest:
    """Carry out an adopted plan; see `finish` for what it returns and raises."""
    if model.kind == "factory" and not model.has_weights:
        warn_random_weights(model.name)
    golden = check_before_ray(run, plan, model)
    with start_executor(run.options.address, progress.phase) as executor:
        hardware, on_cluster = executor.hardware, executor.on_cluster
        settled = settle(
            *(run, plan, model, hardware, merge), on_cluster=on_cluster, say=progress.phase
        )
        settled = replace(settled, golden=golden)
        start_s = executor.start_s
        run.record.connected(hardware, settled.allocation, start_s, on_cluster=on_cluster)
        run.record.planned(settled.plan, settled.model, run.job.resources.num_gpus)
        staged = _predict_missing(run, settled, executor, progress)
        progress.phase("checking and publishing")
        return finish(run, settled.plan, staged, base, lease, executor.run_tasks, merge)


def _predict_missing(
    run: RunContext, settled: Settled, executor: Executor, progress: Progress
) -> Mapping[SliceKey, StoredFile]:
    """Compute the slices that have no staged part yet; return the staged part of every slice.

    Raises:
        GateRefused: A gate is certain to refuse; what is finished stays.
        SystematicFailure: All rows failed in the model for one cause.
    """
    plan, staged = settled.plan, take_over(run, settled.plan)
    units = missing_units(plan, staged)
    if not units:
        return staged
    fail_fast_on_certain_refusal(run, plan)
    settled = replace(settled, allocation=settled.allocation.for_slices(num_left(units)))
    listener = executor.listener(run.record.run_id, settled.allocation.max_actors)
    parts = make_stream(run, settled, units, listener.channel)
    slices, told = executor.stream(parts, settled.allocation), None
    with (
        listener,
        progress.rows(plan.num_rows, done=run.record.num_done, under_way=listener),
        run.record.streaming(),
        closing(slices),
    ):
        for committed in slices:
            run.record.computed(committed)
            key = parse_staged_name(committed.name)
            where = (key.unit, key.start) if key else (-1, -1)
            progress.advance(where, committed.num_rows, committed.num_quarantined)
            if told is None and (told := run.record.scores):
                progress.phase(told)
            failpoint("slice_done")
            fail_fast_on_certain_refusal(run, plan)
    require_some_row(run)
    return list_staged(run.store, run.layout.staging(plan.fingerprint))
