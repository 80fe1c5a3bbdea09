"""Try out, on a sample of the job's own rows, all that `auto` leaves open; workers do the work.

First every runtime and precision, one after the other. Then, for `pipeline tune`, batch sizes of
the one that was chosen, and divisions of the cores of a node, all of whose actors work at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

from pipeline.agreement import AgreementLimits
from pipeline.allocation import TASK_CPUS, Allocation, Hardware
from pipeline.choose import candidates, choose_batch, choose_layout, layouts, seconds
from pipeline.errors import JobError
from pipeline.job import Job
from pipeline.model import ModelSpec, PredictorConfig
from pipeline.plan import Plan
from pipeline.ray_tasks import ray_errors
from pipeline.rows import Reader
from pipeline.stages import Preprocessing
from pipeline.trial import GIVEN_UP, Trial

SAMPLE_ROWS = 128
CPU_BATCHES = (8, 16, 32, 64, 128)
GPU_BATCHES = (32, 64, 128, 256, 512, 1024)
LAYOUT_S = 4.0
MEMORY_SHARE = 0.6
"""Of a node's memory, for all actors; the rest is the object store's and the other stages'."""
_SAMPLE_UNITS = 4
_PATIENCE_S = 120.0
_MIN_PATIENCE_S = 30.0
_MIB = 2**20


@dataclass(frozen=True)
class Profile:
    """All that was measured, in the order in which it was chosen."""

    ways: tuple[Trial, ...]
    """Each runtime and precision: one actor alone, the model only."""
    batches: tuple[Trial, ...] = ()
    layouts: tuple[Trial, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            name: [trial.to_dict() for trial in getattr(self, name)]
            for name in ("ways", "batches", "layouts")
        }

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Profile:
        """Undo `to_dict`.

        Raises:
            KeyError, TypeError: It is something else.
        """
        found = {
            name: tuple(Trial(**trial) for trial in document[name])
            for name in ("ways", "batches", "layouts")
        }
        return cls(**found)


@dataclass(frozen=True)
class Workshop:
    """Where things are tried out."""

    job: Job
    plan: Plan
    model: ModelSpec
    reader: Reader
    hardware: Hardware
    allocation: Allocation

    @property
    def limits(self) -> AgreementLimits:
        return AgreementLimits.of(self.job.gates)

    @property
    def config(self) -> PredictorConfig:
        """Return what an actor is made from, whatever runs the model."""
        return PredictorConfig(
            spec=self.model,
            batch_size=self.job.model.batch_size or self.plan.batch_size,
            num_gpus=self.allocation.actor_gpus,
            num_threads=self.allocation.actor_threads,
            pass_through=self.plan.pass_through,
            num_features=self.plan.num_features,
        )

    @property
    def node_cpus(self) -> int:
        """Return the cores of one node, of which all have as many."""
        return max(1, int(self.hardware.cpus // self.hardware.num_nodes))

    @property
    def node_actors(self) -> int:
        """Return how many actors share a node."""
        return -(-self.allocation.max_actors // self.hardware.num_nodes)


class Sample:
    """Some of the job's rows, in Ray's store: encoded, and prepared for a model."""

    def __init__(self, workshop: Workshop) -> None:
        import ray

        from pipeline.trial_run import sample_rows

        units = workshop.plan.units
        step = max(1, len(units) // _SAMPLE_UNITS)
        self._workshop = workshop
        read = _task(workshop, sample_rows)
        self.rows = read.remote(workshop.reader, units[::step][:_SAMPLE_UNITS], SAMPLE_ROWS)
        ray.wait([self.rows])

    def inputs(self, model: ModelSpec) -> Any:
        """Return the sample as a model's decoder and transform leave it."""
        from pipeline.trial_run import prepare

        task = _task(self._workshop, prepare)
        return task.remote(self._workshop.reader, self.rows, model.transform)


def _task(workshop: Workshop, function: Callable[..., Any]) -> Any:
    """Make a task with a process of its own, which ends with it."""
    import ray

    options: dict[str, Any] = {
        "num_cpus": workshop.allocation.actor_cpus,
        "num_gpus": workshop.allocation.actor_gpus or None,
        "max_retries": 0,
        "max_calls": 1,
    }
    return ray.remote(**options)(function)


def try_ways(workshop: Workshop, sample: Sample, num_rows: int | None) -> list[Trial]:
    """Try every runtime and precision that the job leaves open.

    Args:
        workshop: Where.
        sample: On what.
        num_rows: Rows of the run that waits for the answer: what is not even ready when a better
            way would have ended the run is given up. None where no run waits.

    Raises:
        JobError: Eager fp32 cannot predict the sample.
    """
    import ray

    from pipeline.trial_run import try_out

    plain, limits = workshop.model.as_reference(), workshop.limits
    with ray_errors():
        inputs = sample.inputs(plain)
        first, found = ray.get(
            _task(workshop, try_out).remote(
                replace(workshop.config, spec=plain), inputs, None, limits
            )
        )
        if first.problem:
            raise JobError(f"model: eager fp32 cannot predict the sample: {first.problem}")
        reference = ray.put(found)
        if workshop.model.shrinks:
            inputs = sample.inputs(workshop.model)
    trials, best = [], first
    for runtime, precision in candidates(
        workshop.model, is_on_gpu=bool(workshop.allocation.actor_gpus)
    ):
        spec = replace(workshop.model, runtime=runtime, precision=precision)
        if spec == plain:
            trials.append(first)
            continue
        patience_s = _PATIENCE_S
        if num_rows is not None:
            patience_s = max(_MIN_PATIENCE_S, seconds(best, num_rows, workshop.allocation))
        arguments = (inputs, reference, limits, best.rows_per_s)
        trial = _attempt(workshop, try_out, spec, arguments, patience_s)
        trials.append(trial)
        agrees = trial.agreement_pct >= workshop.job.gates.min_agreement_pct
        if not trial.problem and agrees and trial.rows_per_s > best.rows_per_s:
            best = trial
    return trials


def _attempt(
    workshop: Workshop,
    function: Callable[..., tuple[Trial, Any]],
    spec: ModelSpec,
    arguments: tuple[Any, ...],
    patience_s: float,
) -> Trial:
    import ray
    from ray.exceptions import RayError

    reference = _task(workshop, function).remote(replace(workshop.config, spec=spec), *arguments)
    done, _ = ray.wait([reference], timeout=patience_s)
    if not done:
        ray.cancel(reference, force=True)
        problem = f"{GIVEN_UP} after {patience_s:.0f} s: others would have ended by then"
        return Trial(spec.runtime, spec.precision, problem=problem)
    try:
        trial: Trial = ray.get(reference)[0]
    except RayError as error:
        return Trial(spec.runtime, spec.precision, problem=f"died: {type(error).__name__}")
    return trial


def try_batches(workshop: Workshop, sample: Sample, way: Trial) -> list[Trial]:
    """Measure rate and memory of the way that was chosen with every batch size left open."""
    import ray
    from ray.exceptions import RayError

    from pipeline.trial_run import try_batch

    if workshop.job.model.batch_size is not None:
        return []
    spec = replace(workshop.model, runtime=way.runtime, precision=way.precision)
    inputs = sample.inputs(spec)
    trials: list[Trial] = []
    for size in GPU_BATCHES if workshop.allocation.actor_gpus else CPU_BATCHES:
        config = replace(workshop.config, spec=spec, batch_size=size)
        try:
            trial: Trial = ray.get(_task(workshop, try_batch).remote(config, inputs))
        except RayError as error:
            problem = f"died: {type(error).__name__}"
            trial = Trial(way.runtime, way.precision, batch_size=size, problem=problem)
        trials.append(trial)
        if trial.problem:
            break  # larger ones need more memory still
    return trials


def try_layouts(workshop: Workshop, sample: Sample, way: Trial, batch_size: int) -> list[Trial]:
    """Measure the divisions of a node's cores that the job leaves open, at full load.

    Actors that decode for themselves are first: where nothing is faster, they are taken.
    """
    resources, cpus = workshop.job.resources, workshop.node_cpus
    if resources.num_gpus or resources.max_actors:
        return []
    spec = replace(workshop.model, runtime=way.runtime, precision=way.precision)
    splits = layouts(cpus) if resources.num_cpus is None else [_own_split(resources.num_cpus, cpus)]
    places = ["actors", "tasks"] if resources.decode_in == "auto" else [resources.decode_in]
    if spec.transform is None:
        places = ["actors"]
    return [
        _try_layout(workshop, sample, spec, batch_size, actors, threads, place)
        for place in places
        for actors, threads in splits
    ]


def _own_split(num_cpus: float, cpus: int) -> tuple[int, int]:
    return max(1, int(cpus / num_cpus)), max(1, int(num_cpus))


def _try_layout(
    workshop: Workshop,
    sample: Sample,
    spec: ModelSpec,
    batch_size: int,
    actors: int,
    threads: int,
    place: str,
) -> Trial:
    import ray
    from ray.exceptions import RayError

    from pipeline.trial_run import LayoutWorker

    trial = Trial(
        spec.runtime,
        spec.precision,
        batch_size=batch_size,
        actors=actors,
        threads=threads,
        decode_in=place,
    )
    config = replace(workshop.config, spec=spec, batch_size=batch_size, num_threads=threads)
    in_actors = place == "actors"
    kinds = ["both"] * actors if in_actors else ["predict"] * actors
    kinds += [] if in_actors else ["decode"] * max(1, workshop.node_cpus // 2)
    preprocessing = Preprocessing.of(
        workshop.job.source, spec.transform, threads if in_actors else 1
    )
    inputs, started = sample.inputs(spec), perf_counter()
    worker = ray.remote(num_cpus=TASK_CPUS, max_restarts=0)(LayoutWorker)
    workers = [worker.remote(kind, config, preprocessing) for kind in kinds]
    try:
        ray.get([each.load.remote(sample.rows, inputs) for each in workers])
        load_s = perf_counter() - started
        found = ray.get([each.work.remote(LAYOUT_S) for each in workers])
    except RayError as error:
        return replace(trial, problem=f"died: {type(error).__name__}")
    finally:
        for each in workers:
            ray.kill(each)
    rates = {
        kind: sum(rate for (rate, _), its in zip(found, kinds, strict=True) if its == kind)
        for kind in set(kinds)
    }
    return replace(
        trial,
        rows_per_s=round(min(rates.values()), 1),
        load_s=round(load_s, 2),
        peak_mib=max(peak for _, peak in found),
    )


def node_memory_mib(num_gpus: float) -> float:
    """Return what the actors of a node may take; on a GPU, of its memory."""
    import psutil

    if num_gpus:
        return float("inf")  # what does not fit has failed when it was tried
    return float(MEMORY_SHARE * psutil.virtual_memory().total / _MIB)


def finish_profile(workshop: Workshop, sample: Sample, way: Trial) -> Profile:
    """Measure batch sizes and layouts of the way that was chosen."""
    batches = try_batches(workshop, sample, way)
    memory_mib = node_memory_mib(workshop.allocation.actor_gpus)
    batch = choose_batch(batches, memory_mib, workshop.node_actors)
    size = batch.batch_size if batch else workshop.config.batch_size
    return Profile((), tuple(batches), tuple(try_layouts(workshop, sample, way, size)))


def pick(profile: Profile, way: Trial, workshop: Workshop) -> Trial:
    """Put together what was chosen: way, batch size, layout."""
    memory_mib = node_memory_mib(workshop.allocation.actor_gpus)
    same = [t for t in profile.batches if (t.runtime, t.precision) == (way.runtime, way.precision)]
    batch = choose_batch(same, memory_mib, workshop.node_actors)
    chosen = replace(way, batch_size=batch.batch_size if batch else 0)
    fitting: Sequence[Trial] = [
        t for t in profile.layouts if (t.runtime, t.precision) == (way.runtime, way.precision)
    ]
    layout = choose_layout(fitting, memory_mib)
    if layout is None:
        return chosen
    return replace(chosen, actors=layout.actors, threads=layout.threads, decode_in=layout.decode_in)
