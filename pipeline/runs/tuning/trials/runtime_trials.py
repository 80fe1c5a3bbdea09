"""Try out, on a sample of the job's own rows, what `auto` leaves open; workers do the work.

Here are the runtimes and precisions, one after the other; batch_trials.py goes on from there.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
from pipeline.inference.runtimes.base import Device, emulated_reason, missing_reason
from pipeline.inference.runtimes.int8 import INT8
from pipeline.job.model import AUTO
from pipeline.models.spec import EAGER, FP32, ModelSpec, PredictorConfig
from pipeline.preprocessing.model_input import Arrays, is_varying, num_rows, take_rows
from pipeline.runs.tuning.profile import Profile
from pipeline.runs.tuning.selection import (
    Budget,
    candidates,
    expected_s,
    is_usable,
    is_worth_trying,
    time_left_s,
    usual_s,
)
from pipeline.runs.tuning.trial import GIVEN_UP, Trial
from pipeline.runs.tuning.trials.context import Sample, TuningContext, lone_task
from pipeline.runs.tuning.trials.workload import calibrated_rows, run_batches

_TRIAL_S, _AUTOTUNING_S = 120.0, 900.0
_RUN_MEASURES_S = 1.0
_PROBLEM_MAX_CHARS = 200


def try_ways(tuning: TuningContext, budget: Budget, known: Profile) -> Profile:
    """Try every runtime and precision that the job leaves open, as far as the time allows.

    Args:
        tuning: Where.
        budget: What the run that waits for the answer may spend.
        known: What was tried before, which is tried again only if it was given up.

    Returns:
        What is known now.

    Raises:
        JobError: Eager fp32 cannot predict the sample.
    """
    wanted = candidates(tuning.model, is_on_gpu=bool(tuning.allocation.actor_gpus))
    least_pct, num_rows = tuning.job.gates.min_agreement_pct, tuning.plan.num_rows

    def left_s() -> float:
        return time_left_s(known.those(wanted), least_pct, budget.left_s)

    search = Search(
        tuning.model.runtime == AUTO,
        is_on_gpu=bool(tuning.allocation.actor_gpus),
        is_bounded=budget.is_bounded,
        varies=is_varying(tuning.model.input),
    )

    def is_open(way: tuple[str, str]) -> bool:
        eager = [trial for trial in known.ways if is_usable(trial, least_pct)]
        is_for_this = search.is_for(way, eager)
        return is_for_this and is_worth_trying(known.of(*way), left_s(), usual_s(known.ways))

    if known.eager is not None and num_rows is not None:
        budget.expect(expected_s(known.eager, num_rows, tuning.allocation))
        if not any(map(is_open, wanted)):
            return known
    sample = Sample(tuning)
    tries = _Tries(tuning, sample, search, budget)
    num_rows = num_rows or sample.rows_of_all()
    budget.expect(expected_s(tries.first, num_rows, tuning.allocation))
    if not tuning.model.input.is_approximate:
        known = known.with_ways([tries.first])
    best = tries.first
    for way in wanted:
        if is_open(way):
            trial = tries.one(way, best.rows_per_s, known.of(*way), left_s())
            known = known.with_ways([trial])
        found = known.of(*way)
        if found and is_usable(found, least_pct) and found.rows_per_s > best.rows_per_s:
            best = found
    return known


@dataclass(frozen=True)
class Search:
    """Who looks for a way, and for what."""

    leaves_runtime_open: bool
    """The job has `runtime: auto`."""
    is_on_gpu: bool
    is_bounded: bool
    """A run waits for the answer; it is not `pipeline tune`."""
    varies: bool
    """Batches are of many shapes."""

    @property
    def _device(self) -> Device:
        return "gpu" if self.is_on_gpu else "cpu"

    def patience_s(self, runtime: str) -> float:
        """Return how long a way may be tried where nothing else limits that."""
        tries_kernels = self._device in runtime_of(runtime).autotunes and not self.varies
        return _AUTOTUNING_S if tries_kernels else _TRIAL_S

    def is_for(self, way: tuple[str, str], usable: Sequence[Trial]) -> bool:
        """Tell whether a runtime and precision is to be tried at all.

        Args:
            way: Which.
            usable: What was tried, ran and agreed.
        """
        runtime, precision = runtime_of(way[0]), way[1]
        device = self._device
        if not self.leaves_runtime_open:
            return True
        if self.is_bounded and device in runtime.autotunes and not self.varies:
            return False
        eager = [trial for trial in usable if trial.runtime == EAGER]
        if device not in runtime.follows_eager or not eager:
            return True
        return precision == max(eager, key=lambda trial: trial.rows_per_s).precision


class _Tries:
    """Tries ways to run the model on one sample, each beside what eager fp32 made of it."""

    def __init__(
        self, tuning: TuningContext, sample: Sample, search: Search, budget: Budget
    ) -> None:
        from pipeline.runs.tuning.trials.measure import MEASURE_S, try_out

        self._tuning, self._plain = tuning, tuning.model.as_reference()
        self._search = search
        self._for_s = _RUN_MEASURES_S if budget.is_bounded else MEASURE_S
        self._int8: tuple[str, str] | None = None
        self.first: Trial
        config = replace(tuning.config, spec=self._plain)
        tuning.say(f"trying {EAGER} {FP32}, with which others are compared")
        with ray_errors():
            self._inputs = sample.inputs(self._plain)
            task = lone_task(tuning, try_out)
            asked = task.remote(config, self._inputs, None, tuning.limits, for_s=self._for_s)
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
        return signed(trial, self._tuning.measured_by)

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
        arguments: list[Any] = [self._inputs, self._reference, limits, best_rows_per_s, self._for_s]
        reference = lone_task(self._tuning, try_out).remote(config, *arguments)
        if not are_done([reference], limit_s)[0]:
            give_up(reference)
            return Trial(spec.runtime, spec.precision, problem=f"{GIVEN_UP} after {limit_s:.0f} s")
        try:
            trial: Trial = value_if_kept(reference)[0]
        except TaskLost as error:
            return Trial(spec.runtime, spec.precision, problem=f"crashed: {error}")
        return trial


def signed(trial: Trial, measured_by: str) -> Trial:
    """Note who measured, and when."""
    today = dt.datetime.now(dt.UTC).date().isoformat()
    return replace(trial, measured_by=measured_by, measured_at=today)


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
