"""Try one way to run a model, in a worker: measure its speed and its agreement with eager fp32.

Every way is tried in a process of its own, so that a runtime that crashes costs only its trial. The
driver names these functions, too, so torch is imported only inside them.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import PipelineError
from pipeline.core.printable import clean_message
from pipeline.core.schema import ERROR
from pipeline.core.user_code import describe_user_error
from pipeline.inference.engines import engine_class, open_engine
from pipeline.inference.engines.engine import Engine
from pipeline.inference.runtimes import runtime_of
from pipeline.inference.runtimes.runtime import emulated_reason
from pipeline.models.agreement import AgreementLimits
from pipeline.models.outputs import OutputError
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import Arrays
from pipeline.preprocessing.model_input import (
    BatchLimits,
    Input,
    Inputs,
    Limits,
    is_varying,
    num_rows,
    take_rows,
)
from pipeline.process.memory import node_bytes
from pipeline.runs.tuning.selection import Trial, best_batch
from pipeline.runs.tuning.workload import (
    NO_OTHERS,
    SAMPLE_ROWS,
    Batches,
    RunBatch,
    calibrated_rows,
    compared_rows,
    run_batches,
)
from pipeline.sources.rows import Reader

MEASURE_S = 1.0
"""The least time to measure a rate; of calls that take longer, one is enough."""
MIN_CALLS = 3
MEMORY_SHARE = 0.6
"""Share of a node's memory for all actors; the object store and other stages have the rest."""
_OVERLAPPED, _OVERLAPPED_ROWS = 4, 1024
"""On a GPU one timed call has at least this many batches, and this many rows."""
_PROBLEM_MAX_CHARS = 200


def preprocess_rows(reader: Reader, rows: pa.Table, seen: Input) -> Inputs:
    """Prepare sampled rows or their windows, each array (N, ...), without rows that fail."""
    limits = Limits(reader.source.max_image_bytes, reader.source.max_image_px)
    rows = seen.prepare(rows, {}, limits)
    windows = seen.windows(rows)
    rows = rows if windows is None else windows.rows
    inputs = seen.arrays(rows)
    if not rows.column(ERROR).is_valid().to_numpy().any():
        return inputs
    return take_rows(inputs, np.flatnonzero(rows.column(ERROR).is_null().to_numpy()))


def try_out(
    config: PredictorConfig,
    sample: Inputs,
    reference: Arrays | None,
    limits: AgreementLimits,
    num_compared: int = SAMPLE_ROWS,
    batches: Batches = NO_OTHERS,
) -> tuple[Trial, Arrays]:
    """Run the sample one way; return the trial and the kept outputs.

    Args:
        sample: Prepared rows, each array (N, ...).
        reference: The outputs that eager fp32 kept; None if this is eager fp32.
        limits: How far a row may be from the reference.
        num_compared: The most rows to compare.
        batches: Other batches to measure.
    """
    began = perf_counter()
    trial = Trial(config.spec.runtime, config.spec.precision)
    emulated = emulated_reason(config.spec.precision, is_on_gpu=config.num_gpus > 0)
    if emulated:
        return replace(trial, problem=emulated), {}
    try:
        engine_class(config.spec)  # imports the runtime, which is not part of loading the model
        if runtime_of(config.spec.runtime).exports:
            open_engine(config).close()  # exported models are cached: no actor exports again
        started = perf_counter()
        predictor = open_engine(config)
        loaded_bytes, work = _peak_bytes(), Workload(config, sample)
        work.warm_up(predictor)
        load_s = perf_counter() - started
        rate, call_bytes = work.measure_rate(predictor), _peak_bytes() - loaded_bytes
        compared = take_rows(sample, compared_rows(num_rows(sample), num_compared))
        outputs = predictor.reduce(compared)
        predictor.close()
    except Exception as error:  # noqa: BLE001  # a user's model may raise anything
        return replace(trial, problem=_failure_texts(error)), {}
    task = make_task(config.spec.task)
    agreement = task.compare(reference if reference is not None else outputs, outputs, limits)
    trial = replace(
        trial,
        rows_per_s=round(rate, 1),
        load_s=round(load_s, 2),
        agreement_pct=agreement.pct,
        worst=agreement.worst,
        num_compared=num_rows(compared),
        artefact_sha256=config.spec.artefact_sha256 or "",
    )
    if batches.others:
        trial = _with_best_batch(trial, config, sample, batches, loaded_bytes, call_bytes)
    return replace(trial, took_s=round(perf_counter() - began, 2)), outputs


def _with_best_batch(
    trial: Trial,
    config: PredictorConfig,
    sample: Inputs,
    batches: Batches,
    loaded_bytes: int,
    call_bytes: int,
) -> Trial:
    """Return the trial with the best of several batches, and the rates of all of them."""
    most_bytes = MEMORY_SHARE * node_bytes()
    size, counts_tokens = _size(config.limits_of_batch), bool(config.batch_tokens)
    rates = {size: trial.rows_per_s}
    for limits in batches.others:
        more = _size(limits) / size
        needed_bytes = (loaded_bytes + more * call_bytes) * batches.node_actors
        if more > 1 and not config.num_gpus and needed_bytes > most_bytes:
            continue
        rung = replace(config, batch_size=limits.rows, batch_tokens=limits.tokens)
        try:
            predictor, work = open_engine(rung), Workload(rung, sample)
            work.warm_up(predictor)
            rates[_size(limits)] = round(work.measure_rate(predictor), 1)
            predictor.close()
        except Exception:  # noqa: BLE001  # as above; a GPU may have no memory for it
            rates[_size(limits)] = 0.0
    best = best_batch(rates)
    return replace(
        trial,
        rows_per_s=rates[best],
        batch_size=config.batch_size if counts_tokens else best,
        batch_tokens=best if counts_tokens else 0,
        batches=sorted(rates.items()),
    )


def _size(limits: BatchLimits) -> int:
    return limits.tokens or limits.rows


def _peak_bytes() -> int:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare(
    plain: PredictorConfig,
    config: PredictorConfig,
    exact: Inputs,
    inputs: Inputs,
    limits: AgreementLimits,
) -> tuple[float, float]:
    """Compare the kept outputs of eager fp32 with those of another way.

    Returns:
        The share of rows that agree, in percent, and the worst figure.
    """
    reference = _kept(plain, exact)
    agreement = make_task(config.spec.task).compare(reference, _kept(config, inputs), limits)
    return agreement.pct, agreement.worst


def _kept(config: PredictorConfig, inputs: Inputs) -> Arrays:
    """Return the kept outputs of rows, and free the model."""
    predictor = open_engine(config)
    outputs = predictor.reduce(inputs)
    predictor.close()
    return outputs


def _failure_texts(error: Exception) -> str:
    is_plain = isinstance(error, PipelineError | OutputError)
    return clean_message(str(error) if is_plain else describe_user_error(error), _PROBLEM_MAX_CHARS)


class Workload:
    """The batches of a sample on which a way is timed; one, if all cost the same."""

    def __init__(self, config: PredictorConfig, sample: Inputs) -> None:
        seen = config.spec.input
        batches = run_batches(seen, sample, config.limits_of_batch)
        batches = batches if is_varying(seen) else batches[:1]
        self._batches = overlapping(batches) if config.num_gpus else batches
        self._sample = sample

    def warm_up(self, predictor: Engine) -> None:
        """Run a batch without timing it."""
        predictor.reduce(take_rows(self._sample, self._batches[0].rows))

    def measure_rate(self, predictor: Engine) -> float:
        """Return rows/s by the median call of each batch, which other work disturbs least."""
        calls: list[list[float]] = [[] for _ in self._batches]
        number, spent_s = 0, 0.0
        while spent_s < (MEASURE_S if number >= MIN_CALLS else MIN_CALLS * MEASURE_S) or not number:
            place = number % len(calls)
            batch = take_rows(self._sample, self._batches[place].rows)
            started = perf_counter()
            predictor.reduce(batch)
            calls[place].append(perf_counter() - started)
            number, spent_s = number + 1, spent_s + calls[place][-1]
        return rate_of(self._batches, calls)


def overlapping(batches: Sequence[RunBatch]) -> list[RunBatch]:
    """Return all batches as one call, some of them several times, as on a GPU in a run.

    While one batch is computed, another is copied and a third gathered. One call per batch would
    add up these times, and favour large batches.
    """
    num_rows_once = sum(len(batch.rows) for batch in batches)
    times = max(-(-_OVERLAPPED // len(batches)), -(-_OVERLAPPED_ROWS // num_rows_once))
    rows = np.concatenate([batch.rows for batch in batches] * times)
    return [RunBatch(rows, times * sum(batch.worth for batch in batches))]


def rate_of(batches: Sequence[RunBatch], calls: Sequence[Sequence[float]]) -> float:
    """Return rows/s: the rows that the timed batches stand for, over their median calls."""
    timed = [(batch.worth, median(s)) for batch, s in zip(batches, calls, strict=True) if s]
    return sum(worth for worth, _ in timed) / sum(seconds for _, seconds in timed)


def calibrate(config: PredictorConfig, sample: Inputs) -> tuple[str, str]:
    """Make and store the int8 model from every other row of the sample; the rest stays unseen.

    Args:
        config: The model, its batches, and the store for the result.
        sample: Prepared rows, each array (N, ...).

    Returns:
        Its digest and '', or '' and the reason why there is none.
    """
    from pipeline.inference.devices.load_runner import export
    from pipeline.inference.runtimes.int8 import missing_reason, quantise, store_model

    reason = missing_reason(is_on_gpu=config.num_gpus > 0)
    if reason or config.models is None:
        return "", reason or "there is no store for the calibrated model"
    try:
        seen = take_rows(sample, calibrated_rows(num_rows(sample)))
        has_tokens = config.spec.input.counts_tokens
        made = quantise(export(config), _tensors(config, seen), only_products=has_tokens)
        return store_model(config.models, made), ""
    except Exception as error:  # noqa: BLE001  # other ways to run the model are left
        return "", clean_message(f"{type(error).__name__}: {error}", _PROBLEM_MAX_CHARS)


def _tensors(config: PredictorConfig, sample: Inputs) -> Iterator[list[npt.NDArray[Any]]]:
    """Yield the tensors of each batch, (B, ...), in the order of the model's arguments.

    The next batch overwrites them.
    """
    from pipeline.inference.devices.device_buffers import DeviceBuffer
    from pipeline.inference.devices.load_runner import make_buffer

    seen, limits = config.spec.input, config.limits_of_batch
    buffer = DeviceBuffer(make_buffer(config), seen.gather)
    for batch in run_batches(seen, sample, limits):
        for rows in seen.batches(sample, batch.rows, limits):  # several if images keep their sizes
            yield [tensor.numpy() for tensor in buffer.fill(sample, rows).values()]
