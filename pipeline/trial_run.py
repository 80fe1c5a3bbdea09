"""Try one way to run a model: how fast it is, and whether it agrees with eager fp32.

Runs in a worker process of its own, so that a runtime that crashes costs only its trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.agreement import AgreementLimits, compare
from pipeline.decode import DecodeLimits
from pipeline.errors import PipelineError
from pipeline.model import INT8, PredictorConfig
from pipeline.plan import Unit
from pipeline.predictor import Predictor, export
from pipeline.preprocess import preprocess
from pipeline.quantise import quantise, store_model
from pipeline.rows import Reader
from pipeline.runtimes import missing_reason
from pipeline.schema import ERROR, FEATURES, IMAGE, features_from_arrow, images_from_arrow
from pipeline.source import read_slices
from pipeline.task import Arrays
from pipeline.trial import Trial

MIN_MEASURE_S = 2.0
MIN_CALLS = 3


def sample_inputs(
    reader: Reader, units: Sequence[Unit], config: PredictorConfig, num_rows: int
) -> npt.NDArray[Any]:
    """Read, decode and transform the first good rows of some units.

    Returns:
        uint8 (N, S, S, 3) or float32 (N, F), N <= num_rows.
    """
    transform, source = config.spec.transform, reader.source
    pieces: list[npt.NDArray[Any]] = []
    for unit in units:
        _, _, rows = next(iter(read_slices(reader, unit, frozenset([0]))))
        if transform is not None:
            limits = DecodeLimits(source.max_image_bytes, source.max_image_px)
            rows = preprocess(rows, {}, limits, transform)
            inputs: npt.NDArray[Any] = images_from_arrow(rows.column(IMAGE), transform.size_px)
        else:
            inputs = features_from_arrow(rows.column(FEATURES))
        good = np.flatnonzero(rows.column(ERROR).is_null().to_numpy())
        pieces.append(inputs[good[: -(-num_rows // len(units))]])
    return np.concatenate(pieces)[:num_rows]


def try_out(
    config: PredictorConfig,
    sample: npt.NDArray[Any],
    reference: Arrays | None,
    limits: AgreementLimits,
) -> tuple[Trial, Arrays]:
    """Run the sample one way; what it keeps of each row becomes the next ones' reference."""
    runtime, precision = config.spec.runtime, config.spec.precision
    started = perf_counter()
    try:
        predictor = Predictor(config)
        found = predictor.reduce(sample)
    except (PipelineError, ValueError, RuntimeError) as error:
        problem = " ".join(str(error).split())[:200]
        return Trial(runtime, precision, problem=problem), {}
    load_s = perf_counter() - started
    agreement = compare(reference if reference is not None else found, found, limits)
    batch = np.resize(sample, (config.batch_size, *sample.shape[1:]))
    predictor.reduce(batch)
    calls, started = 0, perf_counter()
    while calls < MIN_CALLS or perf_counter() - started < MIN_MEASURE_S:
        predictor.reduce(batch)
        calls += 1
    rate = calls * len(batch) / (perf_counter() - started)
    return Trial(
        runtime,
        precision,
        round(rate, 1),
        round(load_s, 2),
        agreement.pct,
        agreement.worst,
        config.spec.artefact_sha256 or "",
    ), found


def calibrate(config: PredictorConfig, sample: npt.NDArray[Any]) -> tuple[str, str]:
    """Make and store the int8 model, by every other row of the sample: the rest stays unseen.

    Returns:
        Its digest and '', or '' and why there is none.
    """
    reason = missing_reason("onnxruntime", INT8, is_on_gpu=config.num_gpus > 0)
    if reason or config.models is None:
        return "", reason or "there is no store for the calibrated model"
    try:
        return store_model(config.models, quantise(export(config), sample[::2])), ""
    except Exception as error:  # noqa: BLE001  # whatever fails, other ways to run are left
        return "", " ".join(f"{type(error).__name__}: {error}".split())[:200]
