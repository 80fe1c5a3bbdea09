"""Try out, on a sample of the job's own rows, all that `auto` leaves open; workers do the work.

Here are the runtimes and precisions, one after the other; trial_layouts.py goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.agreement import AgreementLimits
from pipeline.allocation import Allocation, Hardware
from pipeline.choose import candidates, seconds
from pipeline.errors import JobError
from pipeline.job import Job
from pipeline.model import INT8, ModelSpec, PredictorConfig
from pipeline.plan import Plan
from pipeline.pulse import beat
from pipeline.ray_tasks import ray_errors
from pipeline.rows import Reader
from pipeline.storage import Store
from pipeline.trial import GIVEN_UP, Trial

SAMPLE_ROWS = 128
_PATIENCE_S = 120.0
_MIN_PATIENCE_S = 30.0


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
    store: Store
    """The output, where calibrated models go."""
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
            models=self.store,
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

    def __init__(self, workshop: Workshop, num_rows: int = SAMPLE_ROWS) -> None:
        """Read rows at random; the same ones for the same work and number of rows."""
        import ray

        from pipeline.sampling import sample_rows, sample_units

        units, seed = sample_units(workshop.plan, num_rows)
        self._workshop = workshop
        read = lone_task(workshop, sample_rows)
        self.rows = read.remote(workshop.reader, units, num_rows, seed)
        ray.wait([self.rows])

    def inputs(self, model: ModelSpec) -> Any:
        """Return the sample as a model's decoder and transform leave it."""
        from pipeline.trial_run import prepare

        task = lone_task(self._workshop, prepare)
        return task.remote(self._workshop.reader, self.rows, model.transform)


def lone_task(workshop: Workshop, function: Callable[..., Any]) -> Any:
    """Make a task with a process of its own, which ends with it."""
    import ray

    beat("something to try")
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
            lone_task(workshop, try_out).remote(
                replace(workshop.config, spec=plain), inputs, None, limits
            )
        )
        if first.problem:
            raise JobError(f"model: eager fp32 cannot predict the sample: {first.problem}")
        reference = ray.put(found)
        if workshop.model.changes_pixels:
            inputs = sample.inputs(workshop.model)
            ray.get(inputs)  # a decoder that is not there is no fault of any way to run the model
    trials, best = [], first
    ways = candidates(workshop.model, is_on_gpu=bool(workshop.allocation.actor_gpus))
    for spec, problem in _specs(workshop, ways, inputs):
        if spec == plain:
            trials.append(first)
            continue
        if problem:
            trials.append(Trial(spec.runtime, spec.precision, problem=problem))
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


def _specs(
    workshop: Workshop, ways: Sequence[tuple[str, str]], inputs: Any
) -> Iterator[tuple[ModelSpec, str]]:
    """Yield each way to run the model, and '' or why it cannot be tried; int8 is made once."""
    import ray
    from ray.exceptions import RayError

    from pipeline.trial_run import calibrate

    made: tuple[str, str] | None = None
    for runtime, precision in ways:
        spec, problem = replace(workshop.model, runtime=runtime, precision=precision), ""
        if precision == INT8:
            try:
                task = lone_task(workshop, calibrate)
                made = made or ray.get(task.remote(workshop.config, inputs))
            except RayError as error:
                made = "", f"calibrating died: {type(error).__name__}"
            spec, problem = replace(spec, artefact_sha256=made[0]), made[1]
        yield spec, problem


def _attempt(
    workshop: Workshop,
    function: Callable[..., tuple[Trial, Any]],
    spec: ModelSpec,
    arguments: tuple[Any, ...],
    patience_s: float,
) -> Trial:
    import ray
    from ray.exceptions import RayError

    reference = lone_task(workshop, function).remote(
        replace(workshop.config, spec=spec), *arguments
    )
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
