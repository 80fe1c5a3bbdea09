"""Build the parts of a stream from a job, its plan and its share of the cluster.

An executor connects the parts; this module decides their arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import time

from pipeline.commit.parts.part_writer import file_metadata
from pipeline.commit.staging import StagingWriter
from pipeline.execution.environment import without_gpus
from pipeline.execution.executors import StreamParts, read_unit, unit_reads
from pipeline.execution.predictor_actor import ActorConfig
from pipeline.execution.stages import Preprocessing, preprocess_stage, writer_stage
from pipeline.gates.judging import needs_of
from pipeline.inference.first_rows import SystematicFailureDetector
from pipeline.inference.vllm.usable import reference_problem
from pipeline.job.job import Job
from pipeline.models.agreement import AgreementLimits
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.models.tasks import make_task, task_class
from pipeline.planning.allocation import Allocation
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import first_slices
from pipeline.process.memory import MIB, MemoryShare
from pipeline.reuse.checked_sample import Checker
from pipeline.runs.context import RunContext, Settled
from pipeline.sources.rows import Reader
from pipeline.sources.units import Unit
from pipeline.storage.store import Store

_COPIES = 4
"""The most memory of a model while it is loaded, as a multiple of its files: their bytes, tensors
of twice the width if they are float16, and perhaps the module's own."""
_COMPARED_PER_ACTOR = 2
"""Slices per actor that have reference pixels if tasks decode; Ray assigns slices to actors."""


def make_reader(job: Job, plan: Plan) -> Reader:
    """Return the reader of a plan's units."""
    store = Store(plan.source_root, job.source.storage_options)
    return Reader(
        store,
        job.source,
        plan.pass_through,
        plan.fields,
        job.sink.partition_columns,
        plan.table,
        job.run.row_timeout_s,
    )


def make_stream(
    run: RunContext, settled: Settled, units: Mapping[Unit, Sequence[int]]
) -> StreamParts:
    """Return the parts that compute the slices of `units`, given as unit -> starts of slices."""
    source = run.job.source
    plan, model, allocation = settled.plan, settled.model, settled.allocation
    predictor, writer = predictor_config(run, settled), make_writer(run, plan, model)
    threads = allocation.decoder_threads
    preprocessing = Preprocessing.of(source, model.input, threads, plan.fields)
    in_actor = preprocessing if allocation.decodes_in_actors else None
    in_tasks = None if allocation.decodes_in_actors else preprocessing
    is_compared = predictor.limits is not None and model.input.is_approximate
    compared = first_slices(
        units, _COMPARED_PER_ACTOR * allocation.max_actors if is_compared else 0
    )
    guarding = (run.record.run_id, run.job.run.row_timeout_s)
    decode = preprocess_stage(in_tasks, compared, *guarding) if in_tasks else None
    asked_at_s = time() if allocation.min_actors == allocation.max_actors else None
    return StreamParts(
        unit_reads(units, settled.known),
        partial(read_unit, make_reader(run.job, plan), *guarding),
        without_gpus(decode) if decode else None,
        ActorConfig(
            predictor,
            row_timeout_s=run.job.run.row_timeout_s,
            memory=MemoryShare(trial_bytes(run.job, model), allocation.actors_per_node),
            fields=plan.fields,
            preprocessing=in_actor,
            asked_at_s=asked_at_s,
            deadline_at_s=run.deadline_at_s,
            golden=settled.golden and replace(settled.golden, preprocess=preprocessing),
            writer=writer if allocation.writes_in_actors else None,
            first_rows=first_rows(run, plan),
        ),
        None if allocation.writes_in_actors else without_gpus(writer_stage(writer)),
    )


def predictor_config(run: RunContext, settled: Settled) -> PredictorConfig:
    """Return the configuration of an actor of a run."""
    plan, model = settled.plan, settled.model
    return replace(
        unchecked_config(run.job, plan, model, settled.allocation, run.store),
        limits=_reference_limits(run, model),
        run_id=run.record.run_id,
        pin=None if model.has_weights else run.layout.tensors(plan.fingerprint),
    )


def unchecked_config(
    job: Job, plan: Plan, model: ModelSpec, allocation: Allocation, output: Store
) -> PredictorConfig:
    """Return the configuration of an actor that makes no reference check and pins nothing."""
    batch_size = job.model.batch_size or plan.batch_size
    return replace(
        plain_predictor_config(plan, model, batch_size, allocation.actor_threads),
        num_gpus=allocation.actor_gpus,
        models=output,
    )


def plain_predictor_config(
    plan: Plan, model: ModelSpec, batch_size: int, num_threads: int
) -> PredictorConfig:
    """Return the configuration of a predictor on the CPU, without a reference check."""
    return PredictorConfig(
        spec=model,
        batch_size=batch_size,
        batch_tokens=plan.batch_tokens,
        num_gpus=0,
        num_threads=num_threads,
        pass_through=plan.pass_through,
    )


def trial_bytes(job: Job, model: ModelSpec) -> int:
    """Return the memory limit of a process that tries the model on a row."""
    return job.run.trial_mib * MIB + _COPIES * model.file_bytes()


def _reference_limits(run: RunContext, model: ModelSpec) -> AgreementLimits | None:
    """Return the limits of the comparison with eager fp32; None if there is none."""
    has_way = task_class(model.task.kind).checks_reference
    is_same = model.is_reference and not model.input.is_approximate and not has_way
    is_needed = not is_same and "reference_check" in needs_of(run.job.gates)
    is_needed &= not reference_problem(model)
    return AgreementLimits.of(run.job.gates) if is_needed else None


def make_writer(run: RunContext, plan: Plan, model: ModelSpec) -> StagingWriter:
    """Return the writer of staged slices."""
    return StagingWriter(
        store=run.store,
        folder=run.layout.staging(plan.work),
        run_id=run.record.run_id,
        compression=run.job.sink.compression,
        metadata=file_metadata(plan, run.record.run_id),
        counted=make_task(model.task).measured_columns(),
        folders=tuple(n for n in run.job.sink.partition_columns if n in plan.staged_schema().names),
        check=Checker(model.task, AgreementLimits.of(run.job.gates))
        if "carried" in needs_of(run.job.gates)
        else None,
    )


def first_rows(run: RunContext, plan: Plan) -> SystematicFailureDetector | None:
    """Return the detector that ends a run whose first rows all fail; None for a retry."""
    if run.record.is_retry:
        return None
    return SystematicFailureDetector(plan.num_rows, has_predictions=run.record.num_predicted > 0)
