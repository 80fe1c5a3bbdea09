"""What measuring takes: the facts of the run, a sample of its rows, and Ray tasks.

The tasks have the resources of an actor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.execution.tasks import are_done, remote, value_of
from pipeline.job.job import Job
from pipeline.models.agreement import AgreementLimits
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.planning.allocation import Allocation, Hardware
from pipeline.planning.plan import Plan
from pipeline.process.liveness import note_progress
from pipeline.runs.builders import make_reader
from pipeline.runs.context import RunContext
from pipeline.runs.tuning.trials.workload import SAMPLE_ROWS, rows_to_sample
from pipeline.sources.rows import Reader
from pipeline.storage.store import Store


def _silent(_: str) -> None:
    return


@dataclass(frozen=True)
class TuningContext:
    """The facts of the run that is measured for."""

    job: Job
    store: Store
    """The output, where calibrated models go."""
    plan: Plan
    model: ModelSpec
    reader: Reader
    hardware: Hardware
    allocation: Allocation
    machines: tuple[str, ...] = ()
    """Their kinds (`machines_of`); empty if they are unknown."""
    gpu_kind: str | None = None
    """Ray's name of the only kind of GPU to measure on; None: they are all one."""
    on_cluster: bool = False
    """The Ray in use is not one on this machine that this process has started."""
    measured_by: str = ""
    """The run that measures, or `tune`."""
    say: Callable[[str], None] = _silent
    """Shows what is being tried."""

    @property
    def limits(self) -> AgreementLimits:
        """How far a runtime may be from eager fp32."""
        return AgreementLimits.of(self.job.gates)

    @property
    def config(self) -> PredictorConfig:
        """Return what an actor is made from, whatever runs the model."""
        return PredictorConfig(
            spec=self.model,
            batch_size=self.job.model.batch_size or self.plan.batch_size,
            batch_tokens=self.plan.batch_tokens,
            num_gpus=self.allocation.actor_gpus,
            num_threads=self.allocation.actor_threads,
            pass_through=self.plan.pass_through,
            models=self.store,
        )

    @property
    def kind(self) -> dict[str, str]:
        """Return the option of Ray by which what measures lands on the kind of GPU meant."""
        return {"accelerator_type": self.gpu_kind} if self.gpu_kind else {}

    def rows_by_size(self, row_bytes: float) -> int:
        """Return how many rows the run has if those of its input take so many bytes each."""
        num_rows, limit = round(self.plan.input_bytes / row_bytes), self.job.run.limit_rows
        return num_rows if limit is None else min(num_rows, limit)

    @property
    def node_actors(self) -> int:
        """Return how many actors share a node."""
        return -(-self.allocation.max_actors // self.hardware.num_nodes)


def tuning_context(
    run: RunContext,
    plan: Plan,
    model: ModelSpec,
    hardware: Hardware,
    allocation: Allocation,
    **others: Any,
) -> TuningContext:
    """Return the context of a plan; `others` are further fields of it."""
    reader = make_reader(run.job, plan)
    others = {"measured_by": run.record.run_id, **others}
    return TuningContext(run.job, run.store, plan, model, reader, hardware, allocation, **others)


class Sample:
    """Some of the job's rows, in Ray's store: encoded, and prepared for a model."""

    def __init__(self, tuning: TuningContext, num_rows: int) -> None:
        """Read rows at random; the same ones for the same work and number of rows."""
        from pipeline.planning.sampling import sample_rows, sample_units

        units, seed = sample_units(tuning.plan, num_rows)
        self._tuning = tuning
        read = plain_task(tuning, sample_rows)
        self.rows = read.remote(tuning.reader, units, num_rows, seed)
        are_done([self.rows])

    @classmethod
    def usual(cls, tuning: TuningContext, num_compared: int = SAMPLE_ROWS) -> Sample:
        """Return as many rows as ways to run the model are timed and compared on."""
        slice_rows = tuning.plan.usual_slice_rows()
        return cls(tuning, rows_to_sample(tuning.model.input, slice_rows, num_compared))

    def rows_of_all(self) -> int | None:
        """Return how many rows the run has, by the bytes of these; None if there are none.

        Columns that are not read, and compression, make it a guess.
        """
        rows = value_of(self.rows)
        return self._tuning.rows_by_size(rows.nbytes / rows.num_rows) if rows.nbytes else None

    def inputs(self, model: ModelSpec) -> Any:
        """Return the sample as a model's decoder and transform leave it."""
        from pipeline.runs.tuning.trials.measure import preprocess_rows

        task = plain_task(self._tuning, preprocess_rows)
        return task.remote(self._tuning.reader, self.rows, model.input)


def lone_task(tuning: TuningContext, function: Callable[..., Any]) -> Any:
    """Make a task with a process of its own, which ends with it: nothing earlier counts in it."""
    return plain_task(tuning, function, max_calls=1)


def plain_task(tuning: TuningContext, function: Callable[..., Any], **options: Any) -> Any:
    """Make a task with what an actor gets; others may follow in its process, which spares starts.

    Args:
        tuning: Whose.
        function: What to do.
        options: Further options of `ray.remote`.
    """
    note_progress("something to try")
    allocation = tuning.allocation
    resources = {"num_cpus": allocation.actor_cpus, "num_gpus": allocation.actor_gpus or None}
    return remote(function, **resources, **tuning.kind, max_retries=0, **options)
