"""Make the int8 model of a job by the batches that a run would make of its sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

from pipeline.core.printable import clean_message
from pipeline.models.spec import PredictorConfig
from pipeline.preprocessing.model_input import Arrays, num_rows, take_rows
from pipeline.runs.tuning.trials.workload import calibrated_rows, run_batches

_PROBLEM_MAX_CHARS = 200


def calibrate(config: PredictorConfig, sample: Arrays) -> tuple[str, str]:
    """Make and store the int8 model, by every other row of the sample: the rest stays unseen.

    Args:
        config: The model, its batches, and the store for the result.
        sample: Prepared rows, each array (N, ...).

    Returns:
        Its digest and '', or '' and why there is none.
    """
    from pipeline.inference.devices.device import export
    from pipeline.inference.model_store import store_model
    from pipeline.inference.runtimes.int8 import missing_reason, quantise

    reason = missing_reason(is_on_gpu=config.num_gpus > 0)
    if reason or config.models is None:
        return "", reason or "there is no store for the calibrated model"
    try:
        seen = take_rows(sample, calibrated_rows(num_rows(sample)))
        has_tokens = config.spec.input.counts_tokens
        made = quantise(export(config), _batches(config, seen), only_products=has_tokens)
        return store_model(config.models, made), ""
    except Exception as error:  # noqa: BLE001  # whatever fails, other ways to run are left
        return "", clean_message(f"{type(error).__name__}: {error}", _PROBLEM_MAX_CHARS)


def _batches(config: PredictorConfig, sample: Arrays) -> Iterator[list[npt.NDArray[Any]]]:
    """Yield the tensors of each batch, (B, ...), in the order in which the model takes them.

    The next batch overwrites them.
    """
    from pipeline.inference.devices.device import make_buffer
    from pipeline.inference.devices.device_buffers import DeviceBuffer

    seen, limits = config.spec.input, config.limits_of_batch
    buffer = DeviceBuffer(make_buffer(config), seen.gather)
    for batch in run_batches(seen, sample, limits):
        for rows in seen.batches(sample, batch.rows, limits):  # several if images keep their sizes
            yield [tensor.numpy() for tensor in buffer.fill(sample, rows).values()]
