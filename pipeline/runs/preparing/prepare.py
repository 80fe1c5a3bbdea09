"""Prepare a run: resolve the model, list the inputs, make the plan, check what needs no Ray.

`plan` and `doctor` make the same checks. What only a cluster can tell (its processors and GPUs,
what is installed on its nodes) is checked once a run is connected to it, and by its workers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline.core.errors import InfraError, JobError
from pipeline.core.hive_paths import partition_types, require_folders
from pipeline.core.node_cache import cached_folder, key_of
from pipeline.core.printable import clean_message
from pipeline.core.schema import EMBEDDING
from pipeline.execution.caller import restore_process_state
from pipeline.execution.cluster.connect import log_in
from pipeline.execution.cluster.hardware import embedded_hardware
from pipeline.execution.environment import refuse_autoload
from pipeline.gates.golden import GoldenRows
from pipeline.gates.golden_files import read_golden
from pipeline.inference.library_check import hold_to_library
from pipeline.inference.runtimes.int8 import INT8
from pipeline.inference.runtimes.usable import require_usable
from pipeline.inference.vllm.usable import reference_problem, require_usable_engine
from pipeline.job.job import Job
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec
from pipeline.models.tasks.embed import lacks_length
from pipeline.planning.allocation import Hardware, allocate
from pipeline.planning.plan import Plan, make_plan, schema_to_text
from pipeline.planning.slicing import SliceSizes
from pipeline.preprocessing.model_input import BatchLimits, cost_of
from pipeline.runs.builders import make_reader
from pipeline.runs.context import RunContext
from pipeline.sources.listing.inputs import Inputs, list_inputs

log = logging.getLogger(__name__)

_OF_TOKENS = ("max_truncated_pct", "truncated_mode")
_OF_WRITTEN = ("max_repeating_pct", "repeating_mode")
_WRITTEN_ROWS = {False: 16, True: 32}
"""On a GPU or not -> rows of a batch for a model that writes to clips or images: a step takes about
as long for many rows as for one, and each row holds the keys and values of its encoder."""


def prepare(run: RunContext) -> tuple[Plan, ModelSpec]:
    """Resolve the model, list the inputs and make the plan; starts nothing, writes nothing."""
    job = run.job
    model = resolve_model(job, run.options.allow_import)
    _check_int8(model)
    batch = _batch_limits(job, model)
    with run.record.stage("list") as listed:
        inputs = list_inputs(
            job.source,
            max_extent_rows=SliceSizes.of(job, batch.rows, model.task.kind).most,
            may_be_empty=job.gates.allow_empty,
        )
        model = with_lengths(job, inputs, model.fitted(inputs.fields))
        batch = _batch_limits(job, model)
        plan = make_plan(job, inputs, model, batch_size=batch.rows)
        plan = replace(plan, batch_tokens=batch.tokens)
        listed.rows_in = listed.rows_out = plan.num_rows or 0
        listed.bytes_in = inputs.num_bytes
    _warn_of_skipped(inputs)
    schema = plan.prediction_schema()
    columns = partition_types(job.sink.partition_columns, schema, job.source.passed)
    require_folders(columns, model.task.labels)
    if run.table is not None:
        run.table.require(run.layout, columns, schema)
    run.record.planned(plan, model, job.resources.num_gpus)
    if plan.unopened:
        log.warning("%s", run.record.unreadable.describe("opened"))
    return plan, model


def _batch_limits(job: Job, model: ModelSpec) -> BatchLimits:
    """Return the batch that the job sets, or the usual one of the device.

    It may be smaller once the input is fitted.
    """
    is_on_gpu = bool(job.resources.num_gpus)
    if not model.input.counts_tokens:
        if job.model.batch_tokens is not None:
            raise JobError("model.batch_tokens: applies to texts only; set model.batch_size")
        for field in _OF_TOKENS:
            if field in job.gates.model_fields_set:
                raise JobError(
                    f"gates.{field}: applies to texts only, and has no effect on input "
                    f"{model.input.name!r}; leave it out"
                )
    for field in _OF_WRITTEN:
        if model.task.generation is None and field in job.gates.model_fields_set:
            raise JobError(
                f"gates.{field}: applies to task 'generate' only, and has no effect on task "
                f"{model.task.kind!r}; leave it out"
            )
    usual = model.input.usual_batch(is_on_gpu=is_on_gpu)
    if model.task.generation is not None and not model.input.counts_tokens:
        usual = BatchLimits(_WRITTEN_ROWS[is_on_gpu])
    return BatchLimits(job.model.batch_size or usual.rows, job.model.batch_tokens or usual.tokens)


def _check_int8(model: ModelSpec) -> None:
    """Refuse int8 for a model that cannot be calibrated.

    Raises:
        JobError: With the reason and a remedy.
    """
    if model.precision != INT8:
        return
    if model.directory is not None and model.directory.is_file:
        raise JobError(
            f"model.precision = {INT8!r}: an .onnx file runs as it is, and is not calibrated; set "
            "fp32, bf16 or auto, or use a quantised file with fp32"
        )


def _warn_of_skipped(inputs: Inputs) -> None:
    """Log that files are skipped, unless no source would read them."""
    skipped = inputs.skipped
    if not skipped.judged:
        return
    first = next(names[0] for reason, names in skipped.first.items() if skipped.counts(reason))
    log.warning(
        "%d of %d files below the source are not read: %s; e.g. %s",
        skipped.total,
        skipped.total + len(inputs.shards),
        skipped.describe(),
        clean_message(first),
    )


_FILE = "length.json"


def with_lengths(job: Job, inputs: Inputs, model: ModelSpec) -> ModelSpec:
    """Return the model with the length of its vectors, measured on a row of the input.

    The length is cached per node, so that the model is built for it once.

    Raises:
        JobError: No row can be predicted.
    """
    if not lacks_length(model.task):
        return model

    def write(folder: Path) -> None:
        (folder / _FILE).write_text(json.dumps(_measure(job, inputs, model)))

    facts = ["vector length", model.to_dict(), schema_to_text(inputs.fields)]
    try:
        length = json.loads((cached_folder(key_of(facts), write) / _FILE).read_text())
    except (OSError, InfraError):  # the node cache is not writable
        length = _measure(job, inputs, model)
    return replace(model, task=replace(model.task, embedding_dim=length))


def _measure(job: Job, inputs: Inputs, model: ModelSpec) -> int:
    from pipeline.runs.preparing.one_row import preview_row

    tried = preview_row(job, make_plan(job, inputs, model, batch_size=1), model)
    if tried.predicted is None:
        raise JobError(f"model.embedding_dim: cannot be measured ({tried.message}); set it")
    [row] = tried.predicted.to_pylist()
    return len(row[EMBEDDING])


def check_before_ray(run: RunContext, plan: Plan, model: ModelSpec) -> GoldenRows | None:
    """Check what needs no Ray, and return the golden rows of the job; None if it has none.

    Raises:
        JobError: No runtime here can run the model as in the job, the model's own library predicts
            something else for the probes, the golden rows cannot be used, or the environment lets
            input files run code.
    """
    refuse_autoload()
    check_runtime(run.job, model, run.options.address)
    hold_to_library(model)
    if problem := reference_problem(model):
        log.warning("%s", problem)
    return read_golden(
        run.job.gates,
        model.task,
        make_reader(run.job, plan),
        is_accepted="golden" in run.options.accepted,
    )


def check_runtime(job: Job, model: ModelSpec, address: str | None) -> None:
    """Check engine, runtime and precision against the device of the job.

    Raises:
        JobError: None can run the model so; for a cluster, only if that holds on any machine.
    """
    require = require_usable_engine if model.has_other_engine else require_usable
    require(model, is_on_gpu=bool(job.resources.num_gpus), is_here=address is None)


def check_hardware(
    job: Job, address: str | None, here: Callable[[], Hardware] = embedded_hardware
) -> str:
    """Check that the job's actors fit this machine, or that a cluster lets us in; describe it.

    Args:
        address: Of the cluster, or of its job API; None for an embedded Ray.
        here: Returns the resources of an embedded Ray.

    Raises:
        JobError: The actors do not fit, or the cluster requires another token.
        InfraError: The cluster does not answer.
    """
    if address is not None:
        with restore_process_state():
            return log_in(address)
    if job.resources.num_gpus:
        from pipeline.inference.devices.load_runner import require_cuda

        require_cuda(job.resources.num_gpus, "the")
    allocation = allocate(job.resources, here(), cost=cost_of(job.source))
    return f"{allocation.max_actors} actors of {allocation.actor_threads} threads fit this machine"
