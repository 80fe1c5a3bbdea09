"""Try one way to run a model: how fast it is, and whether it agrees with eager fp32.

Ways are tried in worker processes of their own, so that a runtime that crashes costs only its
trial. The driver names these functions, too, so torch is imported only inside them.
"""

from __future__ import annotations

import resource
from dataclasses import replace
from statistics import median
from time import perf_counter, sleep
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.core.errors import PipelineError
from pipeline.core.printable import clean_message
from pipeline.core.schema import ERROR
from pipeline.core.user_errors import tell
from pipeline.execution.stages import Preprocessing
from pipeline.inference.runtimes import runtime_of
from pipeline.models.agreement import AgreementLimits
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import Arrays, OutputError
from pipeline.preprocessing.model_input import Arrays as Inputs
from pipeline.preprocessing.model_input import Input, Limits, num_rows, repeat_rows, take_rows
from pipeline.runs.tuning.trial import Trial
from pipeline.sources.rows import Reader

if TYPE_CHECKING:
    from pipeline.inference.predictor import Predictor

MEASURE_S = 2.0
MIN_CALLS = 3
ENOUGH_S = 1.0
HOPELESS = 0.25
"""A way that makes less than this share of the best rate so far is not measured further."""
_MIB = 2**20
_PROBLEM_MAX_CHARS = 200


def preprocess_rows(reader: Reader, rows: pa.Table, seen: Input) -> Inputs:
    """Prepare sampled rows, each array (N, ...); what cannot be is left out."""
    limits = Limits(reader.source.max_image_bytes, reader.source.max_image_px)
    rows = seen.prepare(rows, {}, limits)
    inputs = seen.arrays(rows)
    if not rows.column(ERROR).is_valid().to_numpy().any():
        return inputs
    return take_rows(inputs, np.flatnonzero(rows.column(ERROR).is_null().to_numpy()))


def try_out(
    config: PredictorConfig,
    sample: Inputs,
    reference: Arrays | None,
    limits: AgreementLimits,
    best_rows_per_s: float = 0.0,
) -> tuple[Trial, Arrays]:
    """Run the sample one way; what it keeps of each row becomes the next ones' reference.

    Args:
        config: The way.
        sample: Prepared rows, each array (N, ...).
        reference: What eager fp32 keeps of the sample; None if this is eager fp32.
        limits: How far a row may be from the reference.
        best_rows_per_s: The best rate so far.
    """
    from pipeline.inference.predictor import Predictor
    from pipeline.inference.runtimes.opening import emulated_reason

    trial = Trial(config.spec.runtime, config.spec.precision)
    emulated = emulated_reason(config.spec.precision, is_on_gpu=config.num_gpus > 0)
    if emulated:
        return replace(trial, problem=emulated), {}
    batch = repeat_rows(sample, config.batch_size)
    try:
        if runtime_of(config.spec.runtime).keeps:
            Predictor(config)  # what a runtime makes of a model is kept: no actor pays for it again
        started = perf_counter()
        predictor = Predictor(config)
        predictor.reduce(batch)
        load_s = perf_counter() - started
        rate = measure_rate(predictor, batch, HOPELESS * best_rows_per_s)
        if rate < HOPELESS * best_rows_per_s:
            problem = f"{rate:.1f} rows/s, less than a quarter of what another way gives"
            return replace(trial, rows_per_s=round(rate, 1), problem=problem), {}
        found = predictor.reduce(sample)
    except Exception as error:  # noqa: BLE001  # a user's model may raise anything
        return replace(trial, problem=_failure_texts(error)), {}
    task = make_task(config.spec.task)
    agreement = task.compare(reference if reference is not None else found, found, limits)
    return replace(
        trial,
        rows_per_s=round(rate, 1),
        load_s=round(load_s, 2),
        agreement_pct=agreement.pct,
        worst=agreement.worst,
        peak_mib=peak_mib(config),
        artefact_sha256=config.spec.artefact_sha256 or "",
    ), found


def keep_part(config: PredictorConfig, inputs: Inputs, part: int, num_parts: int) -> Arrays:
    """Return what a way keeps of one of so many parts of the rows."""
    from pipeline.inference.predictor import Predictor

    rows = np.array_split(np.arange(num_rows(inputs)), num_parts)[part]
    return Predictor(config).reduce(take_rows(inputs, slice(rows[0], rows[-1] + 1)))


def compare_with(
    config: PredictorConfig,
    inputs: Inputs,
    limits: AgreementLimits,
    *reference: Arrays,
) -> tuple[float, float]:
    """Compare what a way keeps of rows with what another keeps of them, part after part.

    Returns:
        The share that agrees, in percent, and the worst figure.
    """
    found = keep_part(config, inputs, 0, 1)
    whole = {name: np.concatenate([part[name] for part in reference]) for name in found}
    agreement = make_task(config.spec.task).compare(whole, found, limits)
    return agreement.pct, agreement.worst


def calibrate(config: PredictorConfig, sample: Inputs) -> tuple[str, str]:
    """Make and store the int8 model, by every other row of the sample: the rest stays unseen.

    Returns:
        Its digest and '', or '' and why there is none.
    """
    from pipeline.inference.device import export
    from pipeline.inference.model_store import store_model
    from pipeline.inference.runtimes.int8 import missing_reason, quantise

    reason = missing_reason(is_on_gpu=config.num_gpus > 0)
    if reason or config.models is None:
        return "", reason or "there is no store for the calibrated model"
    try:
        return store_model(
            config.models, quantise(export(config), take_rows(sample, slice(None, None, 2)))
        ), ""
    except Exception as error:  # noqa: BLE001  # whatever fails, other ways to run are left
        return "", clean_message(f"{type(error).__name__}: {error}", _PROBLEM_MAX_CHARS)


def try_batch(config: PredictorConfig, sample: Inputs) -> Trial:
    """Measure rate and memory of one batch size."""
    from pipeline.inference.predictor import Predictor

    spec = config.spec
    trial = Trial(spec.runtime, spec.precision, batch_size=config.batch_size)
    started = perf_counter()
    try:
        predictor = Predictor(config)
        batch = repeat_rows(sample, config.batch_size)
        predictor.reduce(batch)
        load_s = perf_counter() - started
        rate = measure_rate(predictor, batch, 0.0)
    except Exception as error:  # noqa: BLE001  # as above
        return replace(trial, problem=_failure_texts(error))
    return replace(
        trial, rows_per_s=round(rate, 1), load_s=round(load_s, 2), peak_mib=peak_mib(config)
    )


def _failure_texts(error: Exception) -> str:
    is_plain = isinstance(error, PipelineError | OutputError)
    return clean_message(str(error) if is_plain else tell(error), _PROBLEM_MAX_CHARS)


def measure_rate(predictor: Predictor, batch: Inputs, least_rows_per_s: float) -> float:
    """Return rows over the median call, which other work on the machine disturbs least."""
    calls: list[float] = []
    while len(calls) < MIN_CALLS or sum(calls) < MEASURE_S:
        started = perf_counter()
        predictor.reduce(batch)
        calls.append(perf_counter() - started)
        is_slow = num_rows(batch) / median(calls) < least_rows_per_s
        if is_slow and sum(calls) >= ENOUGH_S:  # one call may be slow by chance
            break
    return num_rows(batch) / median(calls)


def peak_mib(config: PredictorConfig) -> float:
    """Return the most memory that this process, or on a GPU its tensors, had at once."""
    if config.num_gpus:
        import torch

        return round(torch.cuda.max_memory_allocated() / _MIB, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


class LayoutWorker:
    """One actor, or one decoder, of a division of the cores that is tried out."""

    def __init__(
        self, kind: str, config: PredictorConfig, preprocessing: Preprocessing | None
    ) -> None:
        """Say what it does: `predict`, `decode`, or `both` one after the other."""
        self._kind, self._config, self._preprocessing = kind, config, preprocessing
        self._predictor: Predictor | None = None

    def load(self, rows: pa.Table, inputs: Inputs) -> None:
        """Take a sample, encoded and decoded; load the model if there is need, and warm up."""
        self._rows, self._inputs = rows, inputs
        if self._kind != "decode":
            from pipeline.inference.predictor import Predictor

            self._predictor = Predictor(self._config)
        self._one_batch(0)

    def work(self, seconds: float, pace_rows_per_s: float | None) -> tuple[float, float]:
        """Work for some seconds, whole batches; return rows/s and the peak memory in MiB.

        Args:
            seconds: For how long.
            pace_rows_per_s: Work no faster, as a decoder whose rows are not taken faster.
        """
        num_rows, started = 0, perf_counter()
        while perf_counter() - started < seconds:
            self._one_batch(num_rows)
            num_rows += self._config.batch_size
            if pace_rows_per_s is not None:
                ahead_s = num_rows / pace_rows_per_s - (perf_counter() - started)
                sleep(max(0.0, ahead_s))
        return num_rows / (perf_counter() - started), peak_mib(self._config)

    def _one_batch(self, position: int) -> None:
        wanted = np.arange(position, position + self._config.batch_size)
        if self._preprocessing is not None and self._kind != "predict":
            self._preprocessing({}, self._rows.take(pa.array(wanted % self._rows.num_rows)))
        if self._predictor is not None:
            self._predictor.reduce(take_rows(self._inputs, wanted % num_rows(self._inputs)))
