"""Try batch sizes of the way to run a model that was chosen."""

from __future__ import annotations

from dataclasses import replace

from pipeline.execution.tasks import TaskLost, value_if_kept
from pipeline.preprocessing.model_input import BatchLimits, is_varying
from pipeline.runs.tuning.profile import Profile
from pipeline.runs.tuning.selection import as_tried, choose_batch
from pipeline.runs.tuning.trial import Trial
from pipeline.runs.tuning.trials.context import Sample, TuningContext, lone_task

CPU_BATCHES = (8, 16, 32, 64, 128)
GPU_BATCHES = (32, 64, 128, 256, 512, 1024)
TABLE_SHARES = (1 / 16, 1 / 4, 1, 4)
"""Of the usual batch of rows of a table, which is larger than all of these."""
CPU_TOKENS = (512, 1_024, 2_048, 4_096, 8_192)
GPU_TOKENS = (16_384, 32_768, 65_536, 131_072)
MEMORY_SHARE = 0.6
"""Of a node's memory, for all actors; the rest is the object store's and the other stages'."""
_MIB = 2**20


def try_batches(tuning: TuningContext, sample: Sample, way: Trial) -> list[Trial]:
    """Measure rate and memory of the way that was chosen with every batch size left open."""
    from pipeline.runs.tuning.trials.measure import try_batch

    spec = as_tried(tuning.model, way)
    inputs = sample.inputs(spec)
    trials: list[Trial] = []
    for size in _open_batches(tuning, way):
        config = replace(tuning.config, spec=spec, batch_size=size.rows, batch_tokens=size.tokens)
        try:
            asked = lone_task(tuning, try_batch).remote(config, inputs)
            trial: Trial = value_if_kept(asked)
        except TaskLost as error:
            problem = f"crashed: {error}"
            trial = Trial(
                way.runtime,
                way.precision,
                batch_size=size.rows,
                batch_tokens=size.tokens,
                problem=problem,
            )
        trials.append(trial)
        if trial.problem:
            break  # larger ones need more memory still
    return trials


def _open_batches(tuning: TuningContext, way: Trial) -> list[BatchLimits]:
    """List the batch sizes to try; none if the job sets it, or the model is made for one."""
    wanted, usual, on_gpu = tuning.job.model, tuning.config, bool(tuning.allocation.actor_gpus)
    if tuning.model.input.counts_tokens:
        if wanted.batch_tokens is not None:
            return []
        sizes = GPU_TOKENS if on_gpu else CPU_TOKENS
        return [BatchLimits(usual.batch_size, tokens) for tokens in sizes]
    has_one_size = bool(way.artefact_sha256) and not is_varying(tuning.model.input)
    if wanted.batch_size is not None or has_one_size:
        return []  # a calibrated model of rows of one shape is made for its batch
    rows = GPU_BATCHES if on_gpu else CPU_BATCHES
    if usual.batch_size > max(rows):
        return [BatchLimits(max(1, int(usual.batch_size * share))) for share in TABLE_SHARES]
    return [BatchLimits(size) for size in rows]


def node_memory_mib(num_gpus: float) -> float:
    """Return what the actors of a node may take; on a GPU, of its memory."""
    import psutil

    if num_gpus:
        return float("inf")  # what does not fit has failed when it was tried
    return float(MEMORY_SHARE * psutil.virtual_memory().total / _MIB)


def pick(profile: Profile, way: Trial, tuning: TuningContext) -> Trial:
    """Put together what was chosen: way and batch size."""
    memory_mib = node_memory_mib(tuning.allocation.actor_gpus)
    batches = [trial for trial in profile.batches if trial.is_like(way)]
    slice_rows = tuning.plan.usual_slice_rows()
    batch = choose_batch(batches, memory_mib, tuning.node_actors, slice_rows)
    if batch is None:
        return replace(way, batch_size=0, batch_tokens=0)
    return replace(way, batch_size=batch.batch_size, batch_tokens=batch.batch_tokens)
