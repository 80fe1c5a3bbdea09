"""What a run checks of a job before its first row; `plan` and `doctor` make the same checks.

What only a cluster can tell (its processors and GPUs, what is installed on its nodes) is checked
once a run is connected to it, and by its workers.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.execution.caller import restore_process_state
from pipeline.execution.cluster.hardware import embedded_hardware
from pipeline.execution.cluster.login import log_in
from pipeline.execution.environment import refuse_autoload
from pipeline.gates.golden import GoldenRows
from pipeline.gates.golden_files import read_golden
from pipeline.inference.library_check import hold_to_library
from pipeline.inference.runtimes.choice import require_usable
from pipeline.job.job import Job
from pipeline.models.spec import ModelSpec
from pipeline.planning.allocation import Hardware, allocate
from pipeline.planning.plan import Plan
from pipeline.preprocessing.input_facts import cost_of
from pipeline.runs.builders import make_reader
from pipeline.runs.context import RunContext


def check_before_ray(run: RunContext, plan: Plan, model: ModelSpec) -> GoldenRows | None:
    """Check what needs no Ray, and return the golden rows of the job; None where it wants none.

    Raises:
        JobError: No runtime here can run the model as the job wants it, the model's own library
            predicts something else for the probes, the golden rows cannot be used, or the
            environment lets input files run code.
    """
    refuse_autoload()
    check_runtime(run.job, model, run.options.address)
    hold_to_library(model)
    return read_golden(
        run.job.gates,
        model.task,
        make_reader(run.job, plan),
        is_accepted="golden" in run.options.accepted,
    )


def check_runtime(job: Job, model: ModelSpec, address: str | None) -> None:
    """Check runtime and precision against the device that the job asks for.

    Raises:
        JobError: No runtime can run the model so; on a cluster only what holds of any machine.
    """
    is_on_gpu = bool(job.resources.num_gpus)
    require_usable(model, is_on_gpu=is_on_gpu, is_here=address is None)


def check_hardware(
    job: Job, address: str | None, here: Callable[[], Hardware] = embedded_hardware
) -> str:
    """Check that the job's actors fit this machine, or that a cluster lets us in; say so in words.

    Args:
        address: Of the cluster, or of its job API; None for an embedded Ray.
        here: Returns what an embedded Ray has.

    Raises:
        JobError: They do not fit, or the cluster wants another token.
        InfraError: The cluster does not answer.
    """
    if address is not None:
        with restore_process_state():
            return log_in(address)
    if job.resources.num_gpus:
        from pipeline.inference.devices.device import require_cuda

        require_cuda(job.resources.num_gpus, "the")
    allocation = allocate(job.resources, here(), cost=cost_of(job.source))
    return f"{allocation.max_actors} actors of {allocation.actor_threads} threads fit this machine"
