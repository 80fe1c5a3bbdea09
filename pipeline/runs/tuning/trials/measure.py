"""Try one way to run a model: how fast it is, and whether it agrees with eager fp32.

Ways are tried in worker processes of their own, so that a runtime that crashes costs only its
trial. The driver names these functions, too, so torch is imported only inside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from time import perf_counter

import numpy as np
import pyarrow as pa

from pipeline.core.errors import PipelineError
from pipeline.core.printable import clean_message
from pipeline.core.schema import ERROR
from pipeline.core.user_code.user_errors import describe_user_error
from pipeline.inference.engines import engine_class, open_engine
from pipeline.inference.engines.base import Engine
from pipeline.inference.runtimes import runtime_of
from pipeline.inference.runtimes.base import emulated_reason
from pipeline.inference.slice_results import scatter_batch
from pipeline.models.agreement import AgreementLimits
from pipeline.models.outputs import OutputError
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import Arrays
from pipeline.preprocessing.model_input import Arrays as Inputs
from pipeline.preprocessing.model_input import Input, Limits, is_varying, num_rows, take_rows
from pipeline.runs.tuning.trial import Trial
from pipeline.runs.tuning.trials.memory import held_bytes, lack_of_memory, peak_mib
from pipeline.runs.tuning.trials.workload import (
    MEASURE_S,
    SAMPLE_ROWS,
    RunBatch,
    compared_rows,
    run_batches,
)
from pipeline.sources.rows import Reader

MIN_CALLS = 3
ENOUGH_S = 1.0
HOPELESS = 0.25
"""A way that makes less than this share of the best rate so far is not measured further."""
_OVERLAPPED, _OVERLAPPED_ROWS = 4, 1024
"""On a GPU one timed call has so many batches at least, and so many rows."""
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
    for_s: float = MEASURE_S,
    num_compared: int = SAMPLE_ROWS,
) -> tuple[Trial, Arrays]:
    """Run the sample one way; what it keeps of each row becomes the next ones' reference.

    Args:
        sample: Prepared rows, each array (N, ...).
        reference: What eager fp32 keeps of the sample; None if this is eager fp32.
        limits: How far a row may be from the reference.
        best_rows_per_s: The best rate so far.
        for_s: For how long the rate is measured, at least.
        num_compared: How many rows are compared at most.
    """
    began = perf_counter()
    trial = Trial(config.spec.runtime, config.spec.precision)
    emulated = emulated_reason(config.spec.precision, is_on_gpu=config.num_gpus > 0)
    if emulated:
        return replace(trial, problem=emulated), {}
    try:
        engine_class(config.spec)  # imports what runs the model, which is no part of loading it
        work = Workload(config, sample)
        if runtime_of(config.spec.runtime).exports:
            open_engine(config)  # exported models are kept: no actor pays for it again
        started = perf_counter()
        predictor = open_engine(config)
        work.warm_up(predictor)
        load_s = perf_counter() - started
        rate = work.measure_rate(predictor, HOPELESS * best_rows_per_s, for_s)
        if rate < HOPELESS * best_rows_per_s:
            problem = f"{rate:.1f} rows/s, less than a quarter of what another way gives"
            return replace(trial, rows_per_s=round(rate, 1), problem=problem), {}
        compared = take_rows(sample, compared_rows(num_rows(sample), num_compared))
        found = predictor.reduce(compared)
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
        num_compared=num_rows(compared),
        took_s=round(perf_counter() - began, 2),
        peak_mib=peak_mib(config),
        artefact_sha256=config.spec.artefact_sha256 or "",
    ), found


def keep_part(config: PredictorConfig, inputs: Inputs, part: int, num_parts: int) -> Arrays:
    """Return what a way keeps of one of so many parts of the rows."""
    rows = np.array_split(np.arange(num_rows(inputs)), num_parts)[part]
    return open_engine(config).reduce(take_rows(inputs, slice(rows[0], rows[-1] + 1)))


def compare_with(
    config: PredictorConfig, inputs: Inputs, limits: AgreementLimits, *reference: Arrays
) -> tuple[float, float]:
    """Compare what a way keeps of rows with what another keeps of them, part after part.

    Returns:
        The share that agrees, in percent, and the worst figure.
    """
    found, whole, done = keep_part(config, inputs, 0, 1), Arrays(), 0
    for part in reference:  # what is kept of tokens differs in length
        size = len(next(iter(part.values())))
        for name, values in part.items():
            scatter_batch(whole, name, num_rows(inputs), np.arange(done, done + size), values)
        done += size
    agreement = make_task(config.spec.task).compare(whole, found, limits)
    return agreement.pct, agreement.worst


def try_batch(config: PredictorConfig, sample: Inputs) -> Trial:
    """Measure rate and memory of one batch size."""
    spec = config.spec
    trial = Trial(
        spec.runtime, spec.precision, batch_size=config.batch_size, batch_tokens=config.batch_tokens
    )
    try:
        engine_class(spec)
        started = perf_counter()
        work, predictor = Workload(config, sample), open_engine(config)
        loaded_bytes = held_bytes(config)
        work.warm_up(predictor)
        load_s = perf_counter() - started
        rate = work.measure_rate(predictor, 0.0)
        problem = lack_of_memory(config, loaded_bytes)
    except Exception as error:  # noqa: BLE001  # as above
        return replace(trial, problem=_failure_texts(error))
    return replace(
        trial,
        rows_per_s=round(rate, 1),
        load_s=round(load_s, 2),
        peak_mib=peak_mib(config),
        problem=problem,
    )


def _failure_texts(error: Exception) -> str:
    is_plain = isinstance(error, PipelineError | OutputError)
    return clean_message(str(error) if is_plain else describe_user_error(error), _PROBLEM_MAX_CHARS)


class Workload:
    """The batches of a sample that a way is timed on; one is enough if all cost the same."""

    def __init__(self, config: PredictorConfig, sample: Inputs) -> None:
        seen = config.spec.input
        batches = run_batches(seen, sample, config.limits_of_batch)
        batches = batches if is_varying(seen) else batches[:1]
        self._batches = overlapping(batches) if config.num_gpus else batches
        self._config, self._sample = config, sample

    def warm_up(self, predictor: Engine) -> None:
        """Run a batch, which is not timed."""
        predictor.reduce(take_rows(self._sample, self._batches[0].rows))

    def measure_rate(
        self, predictor: Engine, least_rows_per_s: float, for_s: float = MEASURE_S
    ) -> float:
        """Return rows/s by the median call of each batch, which other work disturbs least.

        Args:
            least_rows_per_s: A lower rate is not measured longer.
            for_s: For how long at least; of calls that take longer one is enough.
        """
        calls: list[list[float]] = [[] for _ in self._batches]
        number, spent_s = 0, 0.0
        while not number or spent_s < for_s or _are_few(number, spent_s, for_s):
            place = number % len(calls)
            batch = take_rows(self._sample, self._batches[place].rows)
            started = perf_counter()
            predictor.reduce(batch)
            calls[place].append(perf_counter() - started)
            number, spent_s = number + 1, spent_s + calls[place][-1]
            is_slow = rate_of(self._batches, calls) < least_rows_per_s
            if is_slow and spent_s >= ENOUGH_S:  # one call may be slow by chance
                break
        return rate_of(self._batches, calls)


def overlapping(batches: Sequence[RunBatch]) -> list[RunBatch]:
    """Return all batches as one call, some of them several times, as a GPU has them in a run.

    While one is computed, another is copied and a third gathered. One call a batch would add these
    times up, and favour large batches.
    """
    num_rows_once = sum(len(batch.rows) for batch in batches)
    times = max(-(-_OVERLAPPED // len(batches)), -(-_OVERLAPPED_ROWS // num_rows_once))
    rows = np.concatenate([batch.rows for batch in batches] * times)
    return [RunBatch(rows, times * sum(batch.worth for batch in batches))]


def _are_few(number: int, spent_s: float, for_s: float) -> bool:
    """Tell whether so many calls are too few for a median; of long ones one is enough."""
    return number < MIN_CALLS and spent_s < MIN_CALLS * for_s


def rate_of(batches: Sequence[RunBatch], calls: Sequence[Sequence[float]]) -> float:
    """Return rows/s of the batches that were run: what they stand for over their median calls."""
    timed = [(batch.worth, median(s)) for batch, s in zip(batches, calls, strict=True) if s]
    return sum(worth for worth, _ in timed) / sum(seconds for _, seconds in timed)
