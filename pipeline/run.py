"""One run: the whole way of the data on one screen.

    plan -> source -> preprocess -> Predictor (actor pool) -> sink (staging) -> gates -> publish

What is here is the order of things; each step lives in the file of its name.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from time import time
from typing import Any

from pipeline.commit.layout import Layout, new_run_id, parse_staged_name
from pipeline.commit.lease import Lease, hold_lease
from pipeline.commit.manifest import Manifest, current_manifest
from pipeline.commit.plan_store import adopt_plan
from pipeline.commit.provenance import file_metadata
from pipeline.commit.publish import repair
from pipeline.commit.staging import StagedSlice, StagingWriter, list_staged, read_footer
from pipeline.core.causes import AlikeError
from pipeline.core.errors import PartitionBusy
from pipeline.core.failpoints import reach
from pipeline.core.heartbeat import beat
from pipeline.core.interrupts import undisturbed
from pipeline.core.schema import Reason, SliceKey
from pipeline.execution.cluster.backpressure import limit_read_ahead
from pipeline.execution.cluster.connect import connect
from pipeline.execution.dedupe_actor import start_index
from pipeline.execution.stages import (
    PredictorActor,
    Preprocessing,
    preprocess_stage,
    writer_stage,
)
from pipeline.execution.tasks import ray_errors
from pipeline.gates.golden import GoldenRefused, GoldenRows
from pipeline.gates.golden_files import read_golden
from pipeline.inference.first_rows import FirstRows
from pipeline.inference.ticks import Channel
from pipeline.job.job import Job
from pipeline.models.agreement import AgreementLimits
from pipeline.models.factory_tensors import warn
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.models.tasks import make_task
from pipeline.plan.allocation import Allocation, allocate
from pipeline.plan.plan import Plan
from pipeline.plan.tiling import done_slices, first_slices, missing_units
from pipeline.report.document import Status
from pipeline.report.progress import Progress
from pipeline.report.recorder import RunRecorder
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.finish import finish, require_hope, require_some_row
from pipeline.runs.prepare import prepare
from pipeline.runs.retry.readmission import Readmission
from pipeline.runs.save_report import save_report, save_trouble
from pipeline.runs.sink_below_source import require_apart
from pipeline.runs.supervisor import stoppable, watch
from pipeline.runs.tuning.auto import is_open, settle
from pipeline.sources.rows import Reader
from pipeline.sources.units import Unit
from pipeline.storage.store import Store, StoredFile

_FOOTER_THREADS = 16
_COMPARED_EACH = 2
"""Slices for each actor that carry exact pixels where tasks decode: who gets which is up to Ray."""


Execute = Callable[[RunContext, Progress], Status]


def run_job(
    job: Job, options: RunOptions, progress: Progress, execute: Execute | None = None
) -> dict[str, Any]:
    """Execute a job once and return its report; the report is stored beside the output.

    Args:
        job: The job.
        options: What the command line adds to it.
        progress: Where to show what it does and how far it is.
        execute: What to do; left out, all of the job.

    Raises:
        PipelineError: With the exit code of what happened. A report is stored for refusals,
            stops and failures too, also unexpected ones, once the store has been found usable.
    """
    store, layout = Store(job.sink.uri, job.sink.storage_options), Layout(job.sink.partition)
    record = RunRecorder(new_run_id(dt.datetime.now(dt.UTC)), layout.name)
    run = RunContext(job, options, store, layout, record)
    require_apart(job.source, store)  # before anything is written below the source
    store.probe(single_writer=job.run.single_writer)
    with watch(run, lambda error: save_trouble(run, error)):
        try:
            with stoppable(run):
                status = (execute or _execute)(run, progress)
        except BaseException as error:
            if isinstance(error, GoldenRefused):
                record.judged([error.verdict()])
            with undisturbed():
                save_trouble(run, error)
            raise
        with undisturbed():
            return save_report(run, status, None)


def _execute(run: RunContext, progress: Progress) -> Status:
    job, store, layout = run.job, run.store, run.layout
    progress.phase(f"listing {job.source.uri}")
    plan, model = prepare(run)
    rows = "" if plan.num_rows is None else f" with {plan.num_rows:,} rows"
    progress.phase(f"listed {plan.num_shards:,} shards{rows}")
    if _is_published(run, current_manifest(store, layout), plan):
        _tidy_if_free(run)
        return "nothing_to_do"
    with hold_lease(store, layout, run.record.run_id, job.run.lease_ttl_s) as lease:
        base = repair(store, layout, job.sink.keep_versions, table=job.sink.table)
        if _is_published(run, base, plan):
            return "nothing_to_do"
        plan = replace(adopt_plan(store, layout, plan), source_root=plan.source_root)
        manifest = predict_and_publish(run, plan, model, base, lease, progress)
    run.record.published(manifest, store.url(layout.predictions))
    return "published"


def predict_and_publish(
    run: RunContext,
    plan: Plan,
    model: ModelSpec,
    base: Manifest | None,
    lease: Lease,
    progress: Progress,
    onto: Readmission | None = None,
) -> Manifest:
    """Carry out an adopted plan on a cluster; see `finish` for what it returns and raises."""
    job = run.job
    if model.kind == "factory" and model.weights_uri is None:
        warn(model.name)
    golden = read_golden(
        job.gates, model.task, _reader(run, plan), is_accepted="golden" in run.options.accepted
    )
    address = run.options.address
    progress.phase("starting Ray" if address is None else f"connecting to Ray at {address}")
    with connect(address) as (hardware, ray_start_s):
        allocation = allocate(job.shares, hardware)
        if is_open(model):
            progress.phase("choosing how to run the model")
        settled = settle(run, onto.named(plan) if onto else plan, model, hardware, allocation)
        plan, model, allocation = replace(settled[0], fingerprint=plan.fingerprint), *settled[1:]
        if not run.store.is_object_store:  # after `settle`, which may divide the cluster anew
            allocation = allocation.for_local_disk(hardware)
        if onto:
            onto.require_same_model(plan)
        run.record.connected(hardware, allocation, ray_start_s, on_cluster=address is not None)
        run.record.planned(plan, model, job.resources.num_gpus)
        try:
            staged = _predict_missing(run, plan, model, allocation, golden, progress)
        except AlikeError as error:
            run.record.failed_alike(error.failed)
            raise
        progress.phase("checking and publishing")
        return finish(run, plan, staged, base, lease, onto=onto)


def _predict_missing(
    run: RunContext,
    plan: Plan,
    model: ModelSpec,
    allocation: Allocation,
    golden: GoldenRows | None,
    progress: Progress,
) -> Mapping[SliceKey, StoredFile]:
    """Compute the slices that have no staged part yet; return the staged part of every slice.

    Raises:
        GateRefused: A gate is certain to refuse; what is finished stays.
        AlikeError: All rows failed in the model for one cause.
    """
    staged = take_over(run, plan)
    units = missing_units(plan, staged)
    if not units:
        return staged
    require_hope(run, plan)
    channel = progress.open_channel(
        run.record.run_id, allocation.max_actors, is_local=run.options.address is None
    )
    slices = stream(run, plan, model, allocation, units, golden, channel)
    with (
        progress.rows(plan.num_rows, done=run.record.num_done),
        run.record.streaming(),
        closing(slices),
    ):
        for committed in slices:
            run.record.computed(committed)
            key = parse_staged_name(committed.name)
            where = (key.unit, key.start) if key else (-1, -1)
            progress.advance(where, committed.num_rows, committed.num_quarantined)
            reach("slice_done")
            require_hope(run, plan)
    require_some_row(run)
    return list_staged(run.store, run.layout.staging(plan.fingerprint))


def take_over(run: RunContext, plan: Plan) -> Mapping[SliceKey, StoredFile]:
    """Count the slices that are staged already; return the staged part of each.

    Slices in which the model failed over every row are deleted: the cause may be mended since, in
    code of the user's that no fingerprint knows.
    """
    counted: set[SliceKey] = set()
    while True:
        staged = list_staged(run.store, run.layout.staging(plan.fingerprint))
        done = [key for key in done_slices(plan, staged) if key not in counted]
        paths, failed = [staged[key].path for key in done], list[str]()
        with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
            footers = pool.map(partial(read_footer, run.store), paths)
            for key, path, footer in zip(done, paths, footers, strict=True):
                beat("read the footer of a finished slice")
                if footer.is_without_predictions_by(Reason.MODEL_ERROR):
                    failed.append(path)
                else:
                    run.record.resumed(footer)
                    counted.add(key)
        if not failed:
            return staged
        run.store.delete(failed)  # another attempt at the same slice may come forth now


def stream(
    run: RunContext,
    plan: Plan,
    model: ModelSpec,
    allocation: Allocation,
    units: Mapping[Unit, Sequence[int]],
    golden: GoldenRows | None,
    channel: Channel | None,
) -> Generator[StagedSlice, None, None]:
    """Read, decode, transform, predict and stage slices; yield each one when it is committed."""
    import ray

    from pipeline.execution.datasource import ShardSource

    source, reader = run.job.source, _reader(run, plan)
    predictor, writer = _predictor(run, plan, model, allocation), _writer(run, plan, model)
    dedupe = run.job.run.dedupe
    preprocessing = Preprocessing.of(
        source, model.transform, allocation.decoder_threads, digests=dedupe
    )
    in_actor = preprocessing if allocation.decodes_in_actors else None
    golden = golden and replace(golden, preprocess=preprocessing)
    is_compared = predictor.limits is not None and model.changes_pixels
    compared = first_slices(units, _COMPARED_EACH * allocation.max_actors if is_compared else 0)
    guarding = (run.record.run_id, run.job.run.row_timeout_s)
    asked_at_s = time() if allocation.min_actors == allocation.max_actors else None
    limit_read_ahead(allocation.max_actors)
    with ray_errors():
        # A row of this dataset is a slice (schema.pack): Ray cannot cut or merge slices.
        dataset = ray.data.read_datasource(
            ShardSource(reader, units, *guarding), **allocation.read(len(units))
        )
        if preprocessing is not None and in_actor is None:
            dataset = dataset.map_batches(
                preprocess_stage(preprocessing, compared, *guarding), **allocation.preprocess()
            )
        dataset = dataset.map_batches(
            PredictorActor,
            fn_constructor_args=[
                predictor,
                in_actor,
                start_index() if dedupe else None,
                asked_at_s,
                golden,
                run.job.run.row_timeout_s,
                writer if allocation.writes_in_actors else None,
                _first_rows(run, plan),
                channel,
            ],
            **allocation.predict(),
        )
        if not allocation.writes_in_actors:
            dataset = dataset.map_batches(writer_stage(writer), **allocation.write())
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for text in block.column("staged").to_pylist():
                yield StagedSlice.from_json(text)


def _first_rows(run: RunContext, plan: Plan) -> FirstRows | None:
    if run.record.is_retry:  # its rows have failed before
        return None
    return FirstRows(plan.num_rows, has_predictions=run.record.num_predicted > 0)


def _reader(run: RunContext, plan: Plan) -> Reader:
    source = run.job.source
    store = Store(plan.source_root, source.storage_options)
    folders = run.job.sink.partition_columns
    return Reader(store, source, plan.pass_through, plan.num_features, folders)


def _predictor(
    run: RunContext, plan: Plan, model: ModelSpec, allocation: Allocation
) -> PredictorConfig:
    return PredictorConfig(
        spec=model,
        batch_size=run.job.model.batch_size or plan.batch_size,
        num_gpus=allocation.actor_gpus,
        num_threads=allocation.actor_threads,
        pass_through=plan.pass_through,
        num_features=plan.num_features,
        limits=_canary_limits(run, model),
        run_id=run.record.run_id,
        models=run.store,
        pin=run.layout.tensors(plan.fingerprint) if model.weights_uri is None else None,
    )


def _writer(run: RunContext, plan: Plan, model: ModelSpec) -> StagingWriter:
    return StagingWriter(
        store=run.store,
        folder=run.layout.staging(plan.fingerprint),
        run_id=run.record.run_id,
        compression=run.job.sink.compression,
        metadata=file_metadata(plan, run.record.run_id),
        counted=make_task(model.task).measured_columns(),
    )


def _canary_limits(run: RunContext, model: ModelSpec) -> AgreementLimits | None:
    is_same = model.is_reference and not model.changes_pixels
    is_off = is_same or run.job.gates.agreement_mode == "off"
    return None if is_off else AgreementLimits.of(run.job.gates)


def _is_published(run: RunContext, manifest: Manifest | None, plan: Plan) -> bool:
    if manifest is None or not manifest.is_of(plan.fingerprint, run.job.sink.partition_columns):
        return False
    run.record.found_published(manifest, run.store.url(run.layout.predictions))
    return True


def _tidy_if_free(run: RunContext) -> None:
    """Finish what a run that crashed after its commit left undone, unless someone is at it."""
    try:
        with hold_lease(run.store, run.layout, run.record.run_id, run.job.run.lease_ttl_s):
            sink = run.job.sink
            repair(run.store, run.layout, sink.keep_versions, table=sink.table, is_last=True)
    except PartitionBusy:
        return
