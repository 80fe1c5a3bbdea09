"""Eager fp32 beside a model: for the reference check, and for rows whose outputs overflow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import numpy as np

from pipeline.core.cache.cache_folder import one_at_a_time
from pipeline.core.errors import PipelineError
from pipeline.inference.devices.device_model import DeviceModel
from pipeline.inference.runtimes.float32_math import exact_math
from pipeline.inference.slice_results import scatter_batch
from pipeline.inference.slices.slice_run import are_finite
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks.base import Arrays
from pipeline.models.tasks.scores import without_outputs
from pipeline.preprocessing.model_input import Arrays as Inputs
from pipeline.preprocessing.model_input import Rows, num_rows, take_rows
from pipeline.process.liveness import no_limit

T = TypeVar("T")
Work = Callable[[DeviceModel], T]
NARROW = ("fp16", "bf16")
"""Precisions that hold fewer numbers than fp32: int8 saturates, and tf32 has the range of fp32."""
OVERFLOWS = (
    "outputs of some rows are beyond {}, so these rows were predicted once more in fp32: if they "
    "are many, another model.precision is faster"
)


def reduced(model: DeviceModel, inputs: Inputs) -> Arrays:
    """Return the reduced outputs of rows as `Engine.reduce` does; `model` is loaded."""
    results = Arrays()
    try:
        for batch in model.each(inputs, results):
            model.settle(results, batch)
    except Exception as error:
        if model.gpu is not None:
            model.gpu.lacks_memory(error)  # ends the process if its context is lost
        raise
    return without_outputs(results)


def alone(model: DeviceModel, config: PredictorConfig, work: Work[T], *, keeps: bool = False) -> T:
    """Do work with eager fp32, beside no other batch and no other reference.

    In the thread of a GPU: no batch of another slice is launched meanwhile, with other flags or
    without its model. Where the GPU has no room for both models, it is there instead of the own
    one; where it alone is too large, the CPU does the work.

    Args:
        model: The own model, on its device again afterwards.
        config: Of eager fp32.
        work: May be done more than once.
        keeps: Whether it stays beside the model, while there is room, for more of such work.
    """
    gpu = model.gpu

    def there() -> T:
        with exact_math():
            return _in_some_place(model, config, work, keeps=keeps)

    with no_limit():
        if gpu is None:
            return there()
        with one_at_a_time(f"reference-check-{gpu.key}"):  # of all actors that share the card
            return gpu.call(model.restored, there)


def _in_some_place(model: DeviceModel, config: PredictorConfig, work: Work[T], *, keeps: bool) -> T:
    gpu = model.gpu
    for is_instead in (False, True):
        if is_instead:
            model.unload()
        try:
            return _beside(model, config, work, keeps=keeps and not is_instead)
        except Exception as error:
            if gpu is None or not gpu.lacks_memory(error):
                raise
        # Outside `except`: the frames of the exception hold tensors.
        model.call(gpu.release)
    return work(DeviceModel(replace(config, num_gpus=0.0)))


def _beside(model: DeviceModel, config: PredictorConfig, work: Work[T], *, keeps: bool) -> T:
    exact = (model.beside if keeps else None) or DeviceModel(config)
    done = work(exact)
    if keeps:
        model.beside = exact
    return done


def predict_again(model: DeviceModel, inputs: Inputs, rows: Rows, results: Arrays) -> Rows:
    """Predict rows once more, in eager fp32, whose outputs a narrower type could not hold.

    Args:
        model: Of a precision in NARROW.
        inputs: What the model saw of the slice, each (N, ...).
        rows: (K,) row numbers in the slice.
        results: What the task kept of the slice, each (N, ...); gets what this makes of the rows.

    Returns:
        The rows, at most K, whose results are finite now; a row that eager fp32 cannot predict is
        left as it was.
    """
    own = model.config
    spec = replace(own.spec.as_reference(), input=own.spec.input, task=model.task.spec)
    config = replace(own, spec=spec, limits=None)
    done = list[Rows]()
    for part, found in alone(model, config, lambda e: [*_parts(e, inputs, rows)], keeps=True):
        is_good = are_finite(found, np.arange(len(part)))
        for name, values in found.items():
            scatter_batch(results, name, num_rows(inputs), part, values)
        done.append(part[is_good])
    return np.concatenate([rows[:0], *done])


def _parts(exact: DeviceModel, inputs: Inputs, rows: Rows) -> Iterator[tuple[Rows, Arrays]]:
    """Yield rows with their results, each (K, ...), without those that raise an error alone."""
    try:
        yield rows, reduced(exact, take_rows(inputs, rows))
        return
    except Exception as error:
        lacks_memory = exact.gpu is not None and exact.gpu.lacks_memory(error)
        if isinstance(error, PipelineError) or lacks_memory:
            raise
    if len(rows) > 1:
        half = len(rows) // 2
        yield from _parts(exact, inputs, rows[:half])
        yield from _parts(exact, inputs, rows[half:])
