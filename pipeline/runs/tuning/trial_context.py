"""The context of measuring: the facts of the run, a sample of its rows, and Ray tasks.

The tasks have the resources of an actor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.execution.tasks import start
from pipeline.job.job import Job
from pipeline.models.agreement import AgreementLimits
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.planning.allocation import Allocation, Hardware
from pipeline.planning.plan import Plan
from pipeline.process.liveness import note_progress
from pipeline.runs.builders import make_reader, unchecked_config
from pipeline.runs.context import RunContext
from pipeline.storage.store import Store


def _silent(_: str) -> None:
    return


@dataclass(frozen=True)
class TuningContext:
    """The facts of the run whose model is measured."""

    run: RunContext
    plan: Plan
    model: ModelSpec
    hardware: Hardware
    allocation: Allocation
    machines: tuple[str, ...] = ()
    """The types of machines, as `machines_of`; empty if unknown."""
    on_cluster: bool = False
    """This process did not start the Ray in use."""
    is_command: bool = False
    """`pipeline tune` measures; no run waits for the result."""
    say: Callable[[str], None] = _silent
    """Shows what is being tried."""

    @property
    def job(self) -> Job:
        """Return the job of the run."""
        return self.run.job

    @property
    def store(self) -> Store:
        """Return the output, where calibrated models go."""
        return self.run.store

    @property
    def measured_by(self) -> str:
        """Return the id of the run that measures, or `tune`."""
        return "tune" if self.is_command else self.run.record.run_id

    @property
    def is_on_gpu(self) -> bool:
        """Tell whether actors have GPUs."""
        return bool(self.allocation.actor_gpus)

    @property
    def limits(self) -> AgreementLimits:
        """How far a runtime may be from eager fp32."""
        return AgreementLimits.of(self.job.gates)

    @property
    def config(self) -> PredictorConfig:
        """Return the configuration of an actor, whatever runs the model."""
        return unchecked_config(self.job, self.plan, self.model, self.allocation, self.store)

    @property
    def node_actors(self) -> int:
        """Return the number of actors that share a node."""
        return -(-self.allocation.max_actors // self.hardware.num_nodes)

    def rows_by_size(self, row_bytes: float) -> int:
        """Return the rows of the run, if rows of the input have this many bytes."""
        num_rows, limit = round(self.plan.input_bytes / row_bytes), self.job.run.limit_rows
        return num_rows if limit is None else min(num_rows, limit)

    def start(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Start a task with the resources of an actor; return Ray's reference to its result.

        Args:
            function: The function of the task.
            arguments: Its arguments; references are replaced by their results.
            options: Further options of `ray.remote`.
        """
        note_progress("something to try")
        resources = {
            "num_cpus": self.allocation.actor_cpus,
            "num_gpus": self.allocation.actor_gpus or None,
        }
        return start(function, *arguments, max_retries=0, **resources, **options)

    def start_alone(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Start a task likewise in a fresh process, which ends with it."""
        return self.start(function, *arguments, max_calls=1, **options)


class Sample:
    """A sample of the job's rows, in Ray's object store."""

    def __init__(self, tuning: TuningContext, num_rows: int) -> None:
        """Read rows at random; the same ones for a plan and a number."""
        from pipeline.planning.sampling import sample_rows, sample_units

        units, seed = sample_units(tuning.plan, num_rows)
        self._tuning, self._reader = tuning, make_reader(tuning.job, tuning.plan)
        self.rows = tuning.start(sample_rows, self._reader, units, num_rows, seed)

    def inputs(self, model: ModelSpec) -> Any:
        """Return the sample as prepared by a model's decoder and transform."""
        from pipeline.runs.tuning.measure import preprocess_rows

        return self._tuning.start(preprocess_rows, self._reader, self.rows, model.input)
