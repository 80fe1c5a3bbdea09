"""Try out, on a sample of the job's own rows, all that `auto` leaves open; workers do the work.

Here are the runtimes and precisions, one after the other; layout_trials.py goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

from pipeline.core.documents import known_fields
from pipeline.core.errors import JobError
from pipeline.execution.tasks import ray_errors
from pipeline.inference.runtimes.int8 import INT8
from pipeline.models.spec import ModelSpec
from pipeline.runs.tuning.context import Sample, TuningContext, lone_task
from pipeline.runs.tuning.selection import candidates, is_usable, search_budget_s, time_left_s
from pipeline.runs.tuning.trial import GIVEN_UP, Trial

_TRIAL_S = 120.0
_LEAST_TRIAL_S = 15.0
_MUCH_LONGER = 1.5
_TOO_LATE = "others would have ended by then"


@dataclass(frozen=True)
class Profile:
    """All that was measured, in the order in which it was chosen."""

    ways: tuple[Trial, ...]
    """Each runtime and precision: one actor alone, the model only."""
    batches: tuple[Trial, ...] = ()
    layouts: tuple[Trial, ...] = ()
    search_budget_s: float = math.inf
    """Seconds that the search had; ways for which no time was left were given up."""

    def is_enough(self, wanted_s: float) -> bool:
        """Tell whether a run that would look so long would hardly find more."""
        is_whole = not any(way.was_given_up for way in self.ways)
        return is_whole or wanted_s <= _MUCH_LONGER * self.search_budget_s

    def to_dict(self) -> dict[str, Any]:
        """Return the form that is stored."""
        lists = {
            name: [trial.to_dict() for trial in getattr(self, name)]
            for name in ("ways", "batches", "layouts")
        }
        budget_s = self.search_budget_s if math.isfinite(self.search_budget_s) else None
        return {**lists, "patience_s": budget_s}  # its name in profiles that are stored

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Profile:
        """Undo `to_dict`.

        Raises:
            KeyError, TypeError: It is something else.
        """
        found = {
            name: tuple(Trial(**known_fields(Trial, trial)) for trial in document[name])
            for name in ("ways", "batches", "layouts")
        }
        budget_s = document["patience_s"]
        return cls(**found, search_budget_s=math.inf if budget_s is None else float(budget_s))


def try_ways(
    tuning: TuningContext, sample: Sample, num_rows: int | None, known: Sequence[Trial] = ()
) -> Profile:
    """Try every runtime and precision that the job leaves open.

    Args:
        tuning: Where.
        sample: On what.
        num_rows: Rows of the run that waits for the answer: once it would have ended with the best
            way so far, the others are given up. None if no run waits.
        known: What was tried before; only what was given up is tried again.

    Raises:
        JobError: Eager fp32 cannot predict the sample.
    """
    started, tries = perf_counter(), _Tries(tuning, sample)
    tried = {(trial.runtime, trial.precision): trial for trial in known if not trial.was_given_up}
    ways, best = list[Trial](), tries.first
    budget = search_budget_s(best, num_rows, tuning.allocation)
    least_pct = tuning.job.gates.min_agreement_pct
    for way in candidates(tuning.model, is_on_gpu=bool(tuning.allocation.actor_gpus)):
        left_s = time_left_s(ways, least_pct, budget, perf_counter() - started)
        trial = tried.get(way) or tries.one(way, best.rows_per_s, left_s)
        ways.append(trial)
        if is_usable(trial, least_pct) and trial.rows_per_s > best.rows_per_s:
            best, budget = trial, search_budget_s(trial, num_rows, tuning.allocation)
    return Profile(tuple(ways), search_budget_s=budget)


class _Tries:
    """Tries ways to run the model on one sample, each beside what eager fp32 made of it."""

    def __init__(self, tuning: TuningContext, sample: Sample) -> None:
        import ray

        from pipeline.runs.tuning.measure import try_out

        self._tuning, self._plain = tuning, tuning.model.as_reference()
        self._int8: tuple[str, str] | None = None
        self.first: Trial
        config = replace(tuning.config, spec=self._plain)
        with ray_errors():
            self._inputs = sample.inputs(self._plain)
            task = lone_task(tuning, try_out)
            self.first, found = ray.get(task.remote(config, self._inputs, None, tuning.limits))
            if self.first.problem:
                raise JobError(f"model: eager fp32 cannot predict the sample: {self.first.problem}")
            self._reference = ray.put(found)
            if tuning.model.input.is_approximate:
                self._inputs = sample.inputs(tuning.model)
                ray.get(self._inputs)  # a decoder that is not there is no fault of any way

    def one(self, way: tuple[str, str], best_rows_per_s: float, left_s: float) -> Trial:
        """Try a runtime and precision, if there is time left."""
        runtime, precision = way
        spec = replace(self._tuning.model, runtime=runtime, precision=precision)
        if spec == self._plain:
            return self.first
        if left_s <= 0:
            return Trial(runtime, precision, problem=f"{GIVEN_UP} untried: {_TOO_LATE}")
        if precision == INT8:
            self._int8 = self._int8 or self._calibrated()
            sha256, problem = self._int8
            if problem:
                return Trial(runtime, precision, problem=problem)
            spec = replace(spec, artefact_sha256=sha256)
        return self._attempt(spec, best_rows_per_s, left_s)

    def _calibrated(self) -> tuple[str, str]:
        import ray
        from ray.exceptions import RayError

        from pipeline.runs.tuning.calibration import calibrate

        task = lone_task(self._tuning, calibrate)
        try:
            made: tuple[str, str] = ray.get(task.remote(self._tuning.config, self._inputs))
        except RayError as error:
            return "", f"calibration crashed: {type(error).__name__}"
        return made

    def _attempt(self, spec: ModelSpec, best_rows_per_s: float, left_s: float) -> Trial:
        import ray
        from ray.exceptions import RayError

        from pipeline.runs.tuning.measure import try_out

        limit_s = max(_LEAST_TRIAL_S, left_s) if math.isfinite(left_s) else _TRIAL_S
        config, limits = replace(self._tuning.config, spec=spec), self._tuning.limits
        task = lone_task(self._tuning, try_out)
        reference = task.remote(config, self._inputs, self._reference, limits, best_rows_per_s)
        done, _ = ray.wait([reference], timeout=limit_s)
        if not done:
            ray.cancel(reference, force=True)
            problem = f"{GIVEN_UP} after {limit_s:.0f} s: {_TOO_LATE}"
            return Trial(spec.runtime, spec.precision, problem=problem)
        try:
            trial: Trial = ray.get(reference)[0]
        except RayError as error:
            return Trial(spec.runtime, spec.precision, problem=f"crashed: {type(error).__name__}")
        return trial
