"""Try batch sizes of the way to run a model that was chosen, and divisions of a node's cores.

The actors of a division all work at the same time, so that what they share counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

from pipeline.execution.stages import Preprocessing
from pipeline.execution.tasks import TaskLost, end_actors, remote, value_if_kept
from pipeline.models.spec import ModelSpec
from pipeline.planning.allocation import TASK_CPUS, gpu_share
from pipeline.preprocessing.model_input import BatchLimits, is_varying
from pipeline.process.liveness import note_progress
from pipeline.runs.tuning.profile import Profile
from pipeline.runs.tuning.selection import as_tried, choose_batch, choose_layout, layouts
from pipeline.runs.tuning.trial import Trial
from pipeline.runs.tuning.trials.context import Sample, TuningContext, lone_task

CPU_BATCHES = (8, 16, 32, 64, 128)
GPU_BATCHES = (32, 64, 128, 256, 512, 1024)
TABLE_SHARES = (1 / 16, 1 / 4, 1, 4)
"""Of the usual batch of rows of a table, which is larger than all of these."""
CPU_TOKENS = (512, 1_024, 2_048, 4_096, 8_192)
GPU_TOKENS = (16_384, 32_768, 65_536, 131_072)
ACTORS_PER_GPU = (1, 2, 3, 4)
WARM_S = 1.5  # processes that are woken together share a core for a while
LAYOUT_S = 3.0
_AHEAD = 1.1
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


def try_layouts(
    tuning: TuningContext, sample: Sample, way: Trial, batch: BatchLimits
) -> list[Trial]:
    """Measure the divisions of a node's cores, or of a GPU, that the job leaves open, at full load.

    Actors that decode for themselves are first: if nothing is faster, they are taken.
    """
    resources, cpus = tuning.job.resources, tuning.node_cpus
    if resources.max_actors:
        return []
    spec = as_tried(tuning.model, way)
    if resources.num_gpus:
        is_open = resources.num_gpus == 1 and resources.actors_per_gpu is None
        return _try_sharing(tuning, sample, spec, batch, way.rows_per_s) if is_open else []
    splits = layouts(cpus) if resources.num_cpus is None else [_own_split(resources.num_cpus, cpus)]
    places = ["actors", "tasks"] if resources.decode_in == "auto" else [resources.decode_in]
    if not spec.input.stage_names or (spec.input.counts_tokens and len(places) > 1):
        places = ["actors"]  # tokenising takes 1% of the time: tasks for it free no actor
    trials: list[Trial] = []
    for place in places:
        best = max((t.rows_per_s for t in trials if t.decode_in == "actors"), default=0.0)
        pace = _AHEAD * best if best else None
        for actors, threads in splits:
            wanted = Trial(
                spec.runtime,
                spec.precision,
                batch_size=batch.rows,
                batch_tokens=batch.tokens,
                actors=actors,
                threads=threads,
                decode_in=place,
            )
            trials.append(_try_layout(tuning, sample, spec, wanted, pace))
    return trials


def _try_sharing(
    tuning: TuningContext,
    sample: Sample,
    spec: ModelSpec,
    batch: BatchLimits,
    alone_rows_per_s: float,
) -> list[Trial]:
    """Let more and more actors share a GPU, until one more gives nothing.

    Decoders beside them keep up with what the model alone, or the actors before, have made.
    """
    trials: list[Trial] = []
    for actors in ACTORS_PER_GPU:
        best = max([alone_rows_per_s, *(trial.rows_per_s for trial in trials)])
        wanted = Trial(
            spec.runtime,
            spec.precision,
            batch_size=batch.rows,
            batch_tokens=batch.tokens,
            actors=actors,
            threads=tuning.allocation.actor_threads,
            decode_in="actors" if tuning.job.resources.decode_in == "actors" else "tasks",
        )
        trial = _try_layout(tuning, sample, spec, wanted, _AHEAD * best if best else None)
        trials.append(trial)
        if trial.problem or trial.rows_per_s < max(t.rows_per_s for t in trials):
            break
    return trials


def _own_split(num_cpus: float, cpus: int) -> tuple[int, int]:
    return max(1, int(cpus / num_cpus)), max(1, int(num_cpus))


def _try_layout(
    tuning: TuningContext, sample: Sample, spec: ModelSpec, trial: Trial, pace: float | None
) -> Trial:
    """Let the actors, and decoders beside them, of one node work at the same time.

    The decoders keep to a pace a little above what the actors reach alone: left to themselves they
    would take more of the cores than in a run, where actors limit their pace.
    """
    from pipeline.runs.tuning.trials.layout_worker import LayoutWorker

    note_progress("a layout to try")
    share = gpu_share(trial.actors) if tuning.allocation.actor_gpus else 0.0
    config = replace(
        tuning.config,
        spec=spec,
        batch_size=trial.batch_size,
        batch_tokens=trial.batch_tokens,
        num_gpus=share,
        num_threads=trial.threads,
    )
    in_actors = trial.decode_in == "actors"
    preprocessing = Preprocessing.of(
        tuning.job.source, spec.input, trial.threads if in_actors else 1, tuning.plan.fields
    )
    decoders = num_decoders(tuning.node_cpus, trial.actors, is_on_gpu=bool(share))
    if in_actors or (share and preprocessing is None):
        decoders = 0
    kinds = ["both" if in_actors else "predict"] * trial.actors + ["decode"] * decoders
    paces = {"decode": pace and pace / decoders if decoders else None}
    inputs, started = sample.inputs(spec), perf_counter()
    options: dict[str, Any] = {"num_cpus": TASK_CPUS, "max_restarts": 0, **tuning.kind}
    workers = [
        remote(
            LayoutWorker, **options, num_gpus=None if kind == "decode" else share or None
        ).remote(kind, config, preprocessing)
        for kind in kinds
    ]
    try:
        value_if_kept([each.load.remote(sample.rows, inputs) for each in workers])
        load_s = perf_counter() - started
        for seconds in (WARM_S, LAYOUT_S):
            found = value_if_kept(
                [
                    each.work.remote(seconds, paces.get(kind))
                    for each, kind in zip(workers, kinds, strict=True)
                ]
            )
    except TaskLost as error:
        return replace(trial, problem=f"crashed: {error}")
    finally:
        end_actors(workers)
    rates = {
        kind: sum(did.rows_per_s for did, its in zip(found, kinds, strict=True) if its == kind)
        for kind in set(kinds)
    }
    # On a GPU it is the card's memory that counts, of which decoders have none.
    counted = found[: trial.actors] if share else found
    return replace(
        trial,
        rows_per_s=round(min(rates.values()), 1),
        load_s=round(load_s, 2),
        peak_mib=max(did.peak_mib for did in counted),
        problem=next((did.problem for did in found if did.problem), ""),
    )


def num_decoders(node_cpus: int, actors: int, *, is_on_gpu: bool) -> int:
    """Return how many decoders work beside the actors of a node while they are tried out.

    Args:
        node_cpus: Cores of the node.
        actors: How many there are.
        is_on_gpu: They compute on a card: as in a run, all cores but theirs decode.
    """
    return max(1, node_cpus - actors if is_on_gpu else node_cpus // 2)


def node_memory_mib(num_gpus: float) -> float:
    """Return what the actors of a node may take; on a GPU, of its memory."""
    import psutil

    if num_gpus:
        return float("inf")  # what does not fit has failed when it was tried
    return float(MEMORY_SHARE * psutil.virtual_memory().total / _MIB)


def _batch(trials: Sequence[Trial], tuning: TuningContext) -> Trial | None:
    """Return what is chosen of the batch sizes that were measured; None if none can be used."""
    memory_mib = node_memory_mib(tuning.allocation.actor_gpus)
    slice_rows = tuning.plan.usual_slice_rows()
    return choose_batch(trials, memory_mib, tuning.node_actors, slice_rows)


def finish_profile(tuning: TuningContext, sample: Sample, way: Trial) -> Profile:
    """Measure batch sizes and layouts of the way that was chosen."""
    batches = try_batches(tuning, sample, way)
    best, limits = _batch(batches, tuning), tuning.config.limits_of_batch
    if best is not None:
        limits = BatchLimits(best.batch_size, best.batch_tokens)
    rates = [way.rows_per_s, *(trial.rows_per_s for trial in batches)]
    divided = try_layouts(tuning, sample, replace(way, rows_per_s=max(rates)), limits)
    return Profile((), tuple(batches), tuple(divided))


def pick(profile: Profile, way: Trial, tuning: TuningContext) -> Trial:
    """Put together what was chosen: way, batch size, layout."""
    memory_mib = node_memory_mib(tuning.allocation.actor_gpus)
    batches = [trial for trial in profile.batches if trial.is_like(way)]
    batch = _batch(batches, tuning)
    sizes = (batch.batch_size, batch.batch_tokens) if batch else (0, 0)
    chosen = replace(way, batch_size=sizes[0], batch_tokens=sizes[1])
    num_rows, num_nodes = tuning.plan.num_rows, tuning.hardware.num_nodes
    node_rows = None if num_rows is None else num_rows / num_nodes
    divisions = [trial for trial in profile.layouts if trial.is_like(way)]
    layout = choose_layout(divisions, memory_mib, node_rows)
    if layout is None:
        return chosen
    return replace(chosen, actors=layout.actors, threads=layout.threads, decode_in=layout.decode_in)
