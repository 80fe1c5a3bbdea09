"""`pipeline retry`: run only the quarantined rows again, through the ordinary stages.

quarantine -> plan of its rows -> engine -> staging -> merge -> gates -> publish
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from pipeline.commit.manifest import Manifest, current_manifest
from pipeline.commit.plan_store import adopt_plan
from pipeline.commit.publish import repair
from pipeline.commit.staging import list_staged, read_footer
from pipeline.core.errors import JobError
from pipeline.core.hive_paths import partition_types
from pipeline.dataflow import predict_and_publish, run_job
from pipeline.job.reading.loader import Overrides
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.weights.factory_tensors import copy_pin
from pipeline.operations.jobs import Accepted, Date, JobLike, load_job, name_of, run_options
from pipeline.planning.plan import Plan, settings_digest
from pipeline.report.document import Report, RunStatus
from pipeline.runs.context import RunContext
from pipeline.runs.progress import Progress, shown_on
from pipeline.runs.retry.plan import Replan, replan
from pipeline.runs.retry.quarantine import Base, read_base, read_reasons, select_entries
from pipeline.runs.retry.readmission import RetryMerge
from pipeline.sources.inputs import open_source, require_there
from pipeline.storage.store import Store

log = logging.getLogger(__name__)
Predict = Callable[..., Manifest]


def retry(
    job: JobLike,
    *,
    reasons: Sequence[str] = (),
    date: Date = None,
    overrides: Overrides = (),
    address: str | None = None,
    allow_import: Sequence[str] = (),
    accept: Accepted = (),
    progress: Progress | None = None,
    owns_process: bool = False,
) -> Report:
    """Run the quarantined rows of the job's partition again, and merge what now succeeds into it.

    Args:
        job: The job that published it.
        reasons: Only rows with these reasons; none means all that may be retried.
        date: As of `run`, and so are the others.
        overrides: Fields that are set over those of the job.
        address: The Ray cluster; None starts a local Ray.
        allow_import: Prefixes of the modules that the job may name.
        accept: Gates whose failure is accepted, with the reason.
        progress: As of `run`.
        owns_process: The process is there for this run only.

    Returns:
        The report.

    Raises:
        JobError: There is no such reason, nothing is published, or the job asks for other
            predictions than the published ones.
        InputMissing: The input is gone.
        PipelineError: As a run of the job.
    """
    options = run_options(address, allow_import, accept, job=job, owns_process=owns_process)
    loaded = load_job(job, date=date, overrides=overrides)
    wanted = read_reasons(reasons)

    def execute(run: RunContext, progress: Progress) -> RunStatus:
        return carry_out(run, wanted, partial(predict_and_publish, progress=progress))

    with shown_on(progress) as shown:
        shown.phase(f"retrying {name_of(job)}")
        return run_job(loaded, options, shown, execute)


def carry_out(run: RunContext, reasons: frozenset[str], predict: Predict) -> RunStatus:
    """Retry rows of the quarantine and publish the result.

    Args:
        run: The run.
        reasons: Which rows.
        predict: Predicts the rows of a plan and merges them; see `dataflow.predict_and_publish`.
    """
    job, store, layout = run.job, run.store, run.layout
    if current_manifest(store, layout) is None:
        raise JobError(f"partition {layout.name}: nothing is published, so use `pipeline run`")
    model = resolve_model(job, run.options.allow_import)
    settings = settings_digest(job, model)
    with run.held() as lease:
        current = repair(store, layout, job.sink.keep_versions, table=run.table)
        assert current is not None, "published, as seen above"
        base = read_base(store, layout, current)
        model = model.fitted(base.plan.fields)
        is_same = base.plan.settings == settings
        is_same &= base.plan.task_fields.names == [field.name for field in model.output_fields()]
        inputs = _require_same_job(run, base, is_same=is_same)
        require_there(inputs)
        with run.record.stage("list") as listed:
            work = replan(base, select_entries(base, reasons), job, model, inputs)
            listed.rows_in = listed.rows_out = len(work.chosen.entries)
        if not len(work.chosen.entries):
            return _nothing_to_retry(run, work)
        merge = _prepare(run, work)
        plan = replace(adopt_plan(store, layout, work.plan), source_root=inputs.uri)
        copy_pin(store, *(layout.tensors(p.fingerprint) for p in (base.plan, plan)))
        _forget_failures(run, plan)
        run.record.planned(plan, model, job.resources.num_gpus)
        manifest = predict(run, plan, model, current, lease, merge=merge)
        run.record.published(manifest, store.url(layout.predictions))
        if manifest.token == current.token:
            log.info("all rows failed again just as before: version %d stays", current.number)
            repair(store, layout, job.sink.keep_versions, table=run.table, is_last=True)
            return "nothing_to_do"
    return "published"


def _require_same_job(run: RunContext, base: Base, *, is_same: bool) -> Store:
    """Return where the rows come from.

    Args:
        run: The run.
        base: The version that is published.
        is_same: Whether the job has the settings and the columns of that version.

    Raises:
        JobError: The job asks for other predictions than those that are published.
    """
    source, sink, manifest = run.job.source, run.job.sink, base.manifest
    root, _ = open_source(source)
    schema = base.plan.prediction_schema()
    if not is_same or list(manifest.partition_columns) != list(sink.partition_columns):
        raise JobError(
            f"partition {run.layout.name}: version {manifest.number} was published with other "
            "settings than the job's; `pipeline run` makes a new version with these"
        )
    if run.table is not None:
        run.table.require(run.layout, partition_types(sink.partition_columns, schema), schema)
    if root.url("") == base.plan.source_root:
        return root
    parent = Store(root.uri.rpartition("/")[0] or "/", source.storage_options)
    return parent if parent.url("") == base.plan.source_root else root


def _nothing_to_retry(run: RunContext, work: Replan) -> RunStatus:
    sink, others = run.job.sink, work.chosen.describe_others()
    log.info("nothing to retry%s", f": quarantined stay {others}" if others else "")
    current = repair(run.store, run.layout, sink.keep_versions, table=run.table, is_last=True)
    found: Manifest = current or work.base.manifest
    run.record.found_published(found, run.store.url(run.layout.predictions))
    _note(run, work)
    return "nothing_to_do"


def _prepare(run: RunContext, work: Replan) -> RetryMerge:
    """Note what stays, and store the plan of all rows, if it is a new one."""
    others = work.chosen.describe_others()
    log.info(
        "retrying %d quarantined rows of version %d%s",
        len(work.chosen.entries),
        work.base.manifest.number,
        f"; others stay: {others}" if others else "",
    )
    merge = RetryMerge(work, run.layout)
    run.record.keep(merge.kept())
    _note(run, work)
    if work.accounts.fingerprint != work.base.accounts.fingerprint:
        adopt_plan(run.store, run.layout, work.accounts)
    return merge


def _note(run: RunContext, work: Replan) -> None:
    chosen = work.chosen
    run.record.retried(
        base_version=work.base.manifest.number,
        entries=len(chosen.entries),
        duplicate_ids=chosen.duplicates,
        inputs_changed=chosen.changed,
        not_asked=chosen.not_asked,
    )


def _forget_failures(run: RunContext, plan: Plan) -> None:
    """Take over of an interrupted retry only slices without a failure: the others are retried."""
    staged = list_staged(run.store, run.layout.staging(plan.fingerprint)).values()
    failed = [file.path for file in staged if read_footer(run.store, file.path).num_quarantined]
    run.store.delete(failed)
