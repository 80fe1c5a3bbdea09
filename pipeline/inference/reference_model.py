"""The reference check's model: eager fp32, loaded beside the model of a slice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from pipeline.core.private_files import one_at_a_time
from pipeline.inference.devices.device_model import DeviceModel
from pipeline.inference.runtimes.make_runner import exact_math
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks.base import Arrays
from pipeline.models.tasks.scores import OFF
from pipeline.preprocessing.model_input import Inputs
from pipeline.process.liveness import no_limit

T = TypeVar("T")
Work = Callable[[DeviceModel], T]


def reduced(model: DeviceModel, inputs: Inputs) -> Arrays:
    """Return the reduced outputs of rows, as `Engine.reduce`."""
    results = Arrays()
    try:
        for batch in model.predict_batches(inputs, results):
            model.check_outputs(results, batch)
    except Exception as error:
        if model.gpu is not None:
            model.gpu.lacks_memory(error)  # ends the process if its context is lost
        raise
    return {name: values for name, values in results.items() if name != OFF}


def alone(model: DeviceModel, config: PredictorConfig, work: Work[T]) -> T:
    """Do work with a model in eager fp32 while no other slice or reference is in progress.

    On a GPU it waits for the slices in flight and holds up later ones, as the model may leave its
    device. If the GPU has no room for both models, the reference takes the model's place; if the
    reference alone is too large, the CPU does the work.

    Args:
        model: The model of the slice that this thread works on; on its device again afterwards.
        config: The configuration in eager fp32.
        work: May be called more than once.
    """
    gpu = model.gpu

    def there() -> T:
        with exact_math():
            return _in_some_place(model, config, work)

    with no_limit():
        if gpu is None:
            return there()
        with (
            model.lock.exclusive(within_shared=True),
            one_at_a_time(f"reference-check-{gpu.key}"),  # of all actors that share the card
        ):
            return gpu.call(model.restored, there)


def _in_some_place(model: DeviceModel, config: PredictorConfig, work: Work[T]) -> T:
    gpu = model.gpu
    for is_instead in (False, True):
        if is_instead:
            model.unload()
        try:
            return work(DeviceModel(config))
        except Exception as error:
            if gpu is None or not gpu.lacks_memory(error):
                raise
        # Outside `except`: the frames of the exception hold tensors.
        model.call(gpu.release)
    return work(DeviceModel(replace(config, num_gpus=0.0)))
