"""Try out, on a sample of the job's own rows, what `auto` leaves open; workers do the work.

Here are the runtimes and precisions, one after the other; batch_trials.py goes on from there.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy.typing as npt

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.execution.tasks import (
    TaskLost,
    are_done,
    give_up,
    keep,
    ray_errors,
    value_if_kept,
    value_of,
)
from pipeline.inference.runtimes import runtime_of
from pipeline.inference.runtimes.base import emulated_reason, missing_reason
from pipeline.inference.runtimes.int8 import INT8
from pipeline.models.spec import EAGER, FP32, ModelSpec, PredictorConfig
from pipeline.preprocessing.model_input import Arrays, num_rows, take_rows
from pipeline.runs.tuning.profile import Profile
from pipeline.runs.tuning.selection import Budget, expected_s, is_usable
from pipeline.runs.tuning.trial import GIVEN_UP, Trial
from pipeline.runs.tuning.trials.context import Sample, TuningContext, lone_task
from pipeline.runs.tuning.trials.search import Search, Ways
from pipeline.runs.tuning.trials.workload import calibrated_rows, run_batches

_PROBLEM_MAX_CHARS = 200
_LEAST_ROW_BYTES = 16.0
"""Of an input whose rows are not counted yet: small ones are not even sampled."""


def try_ways(tuning: TuningContext, budget: Budget, wanted: Ways, known: Profile) -> Profile:
    """Try runtimes and precisions, as far as the time allows.

    Args:
        tuning: Where.
        budget: What the run that waits for the answer may spend.
        wanted: Which, in their order.
        known: What was tried before, which is tried again only if it was given up.

    Returns:
        What is known now.

    Raises:
        JobError: Eager fp32 cannot predict the sample, or not soon enough for a run whose job does
            not ask for it.
    """
    search = Search.of(tuning, budget)
    if known.eager is not None and not search.is_any_open(wanted, known, math.inf):
        return known
    num_rows = tuning.plan.num_rows
    most_rows = tuning.rows_by_size(_LEAST_ROW_BYTES) if num_rows is None else num_rows
    if not search.has_time(tuning, budget, wanted, known, most_rows):
        return known
    sample = Sample.usual(tuning, search.num_compared)
    if num_rows is None:
        num_rows = sample.rows_of_all()
        if not search.has_time(tuning, budget, wanted, known, num_rows):
            return known
    tries = _Tries(tuning, sample, search)
    budget.expect(expected_s(tries.first, num_rows, tuning.allocation))
    if not tuning.model.input.is_approximate:
        known = known.with_ways([tries.first])
    best = tries.first
    for way in wanted:
        left_s = search.left_s(budget, wanted, known)
        if search.is_any_open([way], known, left_s):
            trial = tries.one(way, best.rows_per_s, known.of(*way), left_s)
            known = known.with_ways([trial])
        found = known.of(*way)
        if found and is_usable(found, search.least_pct) and found.rows_per_s > best.rows_per_s:
            best = found
    return known


class _Tries:
    """Tries ways to run the model on one sample, each beside what eager fp32 made of it."""

    def __init__(self, tuning: TuningContext, sample: Sample, search: Search) -> None:
        from pipeline.runs.tuning.trials.measure import try_out

        self._tuning, self._plain = tuning, tuning.model.as_reference()
        self._search = search
        self._settings = {"for_s": search.measured_s, "num_compared": search.num_compared}
        self._int8: tuple[str, str] | None = None
        self.first: Trial
        config = replace(tuning.config, spec=self._plain)
        tuning.say(f"trying {EAGER} {FP32}, with which others are compared")
        with ray_errors():
            self._inputs = sample.inputs(self._plain)
            task = lone_task(tuning, try_out)
            asked = task.remote(config, self._inputs, None, tuning.limits, **self._settings)
            if not are_done([asked], search.reference_s)[0]:
                give_up(asked)
                raise JobError(
                    f"{EAGER} {FP32} has not predicted a sample in {search.reference_s:g} s"
                )
            first, found = value_of(asked)
            if first.problem:
                raise JobError(f"model: eager fp32 cannot predict the sample: {first.problem}")
            self.first = self._signed(first)
            self._reference = keep(found)
            if tuning.model.input.is_approximate:
                self._inputs = sample.inputs(tuning.model)
                value_of(self._inputs)  # a decoder that is not there is no fault of any way

    def one(
        self, way: tuple[str, str], best_rows_per_s: float, before: Trial | None, left_s: float
    ) -> Trial:
        """Try a runtime and precision.

        Args:
            way: Which.
            best_rows_per_s: The best rate so far.
            before: What trying it gave before.
            left_s: For how long; infinite: without limit.
        """
        runtime, precision = way
        spec = replace(self._tuning.model, runtime=runtime, precision=precision)
        if spec == self._plain:
            return self.first
        problem = self._cannot_run(runtime, precision)
        if problem:
            return self._signed(Trial(runtime, precision, problem=problem))
        limit_s = left_s if math.isfinite(left_s) else self._search.patience_s(runtime)
        self._tuning.say(f"trying {runtime} {precision}, for at most {limit_s:.0f} s")
        began = perf_counter()
        if precision == INT8:
            self._int8 = self._int8 or self._calibrated()
            sha256, problem = self._int8
            if problem:
                return self._signed(Trial(runtime, precision, problem=problem))
            spec = replace(spec, artefact_sha256=sha256)
        trial = self._attempt(spec, best_rows_per_s, limit_s)
        attempts = trial.was_given_up + (before.attempts if before else 0)
        return self._signed(
            replace(trial, took_s=round(perf_counter() - began, 2), attempts=attempts)
        )

    def _cannot_run(self, runtime: str, precision: str) -> str:
        """Return why a way cannot run on this machine, which spares it a process; '' elsewhere."""
        if len(self._tuning.machines) != 1 or self._tuning.on_cluster:
            return ""
        is_on_gpu = bool(self._tuning.allocation.actor_gpus)
        reason = emulated_reason(precision, is_on_gpu=is_on_gpu)
        return reason or missing_reason(runtime_of(runtime), precision, is_on_gpu=is_on_gpu)

    def _signed(self, trial: Trial) -> Trial:
        """Note who measured, and when."""
        today = dt.datetime.now(dt.UTC).date().isoformat()
        return replace(trial, measured_by=self._tuning.measured_by, measured_at=today)

    def _calibrated(self) -> tuple[str, str]:
        task = lone_task(self._tuning, calibrate)
        try:
            made: tuple[str, str] = value_if_kept(task.remote(self._tuning.config, self._inputs))
        except TaskLost as error:
            return "", f"calibration crashed: {error}"
        return made

    def _attempt(self, spec: ModelSpec, best_rows_per_s: float, limit_s: float) -> Trial:
        from pipeline.runs.tuning.trials.measure import try_out

        config, limits = replace(self._tuning.config, spec=spec), self._tuning.limits
        arguments: list[Any] = [self._inputs, self._reference, limits, best_rows_per_s]
        reference = lone_task(self._tuning, try_out).remote(config, *arguments, **self._settings)
        if not are_done([reference], limit_s)[0]:
            give_up(reference)
            return Trial(spec.runtime, spec.precision, problem=f"{GIVEN_UP} after {limit_s:.0f} s")
        try:
            trial: Trial = value_if_kept(reference)[0]
        except TaskLost as error:
            return Trial(spec.runtime, spec.precision, problem=f"crashed: {error}")
        return trial


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
