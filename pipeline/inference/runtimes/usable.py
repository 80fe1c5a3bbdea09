"""Check that the runtime and precision of a job can run its model, before anything is loaded.

A run checks before it starts Ray, as do `plan` and `doctor`; a worker checks again on its own
machine (`make_runner.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.core.errors import JobError
from pipeline.inference.runtimes import all_runtimes, runtime_of
from pipeline.inference.runtimes.runtime import (
    Runtime,
    file_reason,
    idle_gpu_reason,
    missing_reason,
    refuse,
    shapes_reason,
    task_reason,
    unfit_reason,
)
from pipeline.job.model import AUTO
from pipeline.models.spec import ModelSpec
from pipeline.models.tasks import task_class
from pipeline.preprocessing.model_input import is_varying


def require_usable(model: ModelSpec, *, is_on_gpu: bool, is_here: bool) -> None:
    """Check that a runtime and precision that the job allows can run its model.

    Args:
        model: The model, with the job's runtime and precision.
        is_on_gpu: Whether the job asks for GPUs.
        is_here: Whether workers run on this machine, so that its packages count.

    Raises:
        JobError: None can; names the reason and the remedy.
    """
    if AUTO not in (model.runtime, model.precision):
        runtime, precision = runtime_of(model.runtime), model.precision
        refuse(runtime, precision, _reason(runtime, precision, model, is_on_gpu, is_here))
    elif next(usable_ways(model, is_on_gpu=is_on_gpu, is_here=is_here), None) is None:
        raise JobError(
            "model.runtime, model.precision: no installed runtime can run that; see the extras"
        )


def usable_ways(model: ModelSpec, *, is_on_gpu: bool, is_here: bool) -> Iterator[str]:
    """Yield the runtimes and precisions that the job allows and that can run the model."""
    for runtime in all_runtimes():
        for precision in runtime.precisions:
            is_asked = model.runtime in (AUTO, runtime.name)
            is_asked = is_asked and model.precision in (AUTO, precision)
            if is_asked and not _reason(runtime, precision, model, is_on_gpu, is_here):
                yield f"{runtime.name} {precision}"


def _reason(
    runtime: Runtime, precision: str, model: ModelSpec, is_on_gpu: bool, is_here: bool
) -> str:
    find = missing_reason if is_here else unfit_reason
    reason = find(runtime, precision, is_on_gpu=is_on_gpu)
    reason = reason or shapes_reason(runtime, is_varying=is_varying(model.input))
    reason = reason or task_reason(runtime, model.task.kind, task_class(model.task.kind).runtimes)
    is_file = model.directory is not None and model.directory.is_file
    if reason or not is_file:
        return reason
    reason = file_reason(runtime, precision)
    return reason or (idle_gpu_reason(runtime) if is_on_gpu else "")
