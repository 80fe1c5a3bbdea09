"""What is tried, and whether there is time for it. Pure: figures in, an answer out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.inference.runtimes import runtime_of
from pipeline.inference.runtimes.base import Device
from pipeline.job.model import AUTO
from pipeline.models.spec import EAGER
from pipeline.preprocessing.model_input import is_varying
from pipeline.runs.tuning.profile import Profile
from pipeline.runs.tuning.selection import (
    UNASKED_ROWS,
    Budget,
    expected_s,
    has_rows_to_measure,
    is_usable,
    is_worth_trying,
    time_left_s,
    usual_s,
)
from pipeline.runs.tuning.trial import Trial
from pipeline.runs.tuning.trials.context import TuningContext
from pipeline.runs.tuning.trials.workload import MEASURE_S, SAMPLE_ROWS

TRIAL_S, _AUTOTUNING_S = 120.0, 900.0
_RUN_MEASURES_S = 1.0
Ways = Sequence[tuple[str, str]]
"""Runtimes and precisions."""


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
    is_asked: bool = True
    """The job has `auto`, or it is `pipeline tune`."""
    least_pct: float = 0.0
    """`gates.min_agreement_pct`."""

    @classmethod
    def of(cls, tuning: TuningContext, budget: Budget) -> Search:
        """Return the search of a run, or of `pipeline tune`."""
        return cls(
            tuning.model.runtime == AUTO,
            is_on_gpu=bool(tuning.allocation.actor_gpus),
            is_bounded=budget.is_bounded,
            varies=is_varying(tuning.model.input),
            is_asked=budget.is_asked,
            least_pct=tuning.job.gates.min_agreement_pct,
        )

    @property
    def _device(self) -> Device:
        return "gpu" if self.is_on_gpu else "cpu"

    @property
    def num_compared(self) -> int:
        """Return how many rows are compared with eager fp32."""
        return SAMPLE_ROWS if self.is_asked else UNASKED_ROWS

    @property
    def measured_s(self) -> float:
        """Return for how long a rate is measured at least."""
        return _RUN_MEASURES_S if self.is_bounded else MEASURE_S

    @property
    def reference_s(self) -> float | None:
        """Return how long eager fp32 may take; None: without it there is no run."""
        return None if self.is_asked else TRIAL_S

    def patience_s(self, runtime: str) -> float:
        """Return how long a way may be tried where nothing else limits that."""
        tries_kernels = self._device in runtime_of(runtime).autotunes and not self.varies
        return _AUTOTUNING_S if tries_kernels else TRIAL_S

    def has_time(
        self,
        tuning: TuningContext,
        budget: Budget,
        wanted: Ways,
        known: Profile,
        num_rows: int | None,
    ) -> bool:
        """Tell whether a run of so many rows may begin to measure, as far as that is foreseen."""
        eager, allocation = known.eager, tuning.allocation
        if eager is not None:
            budget.expect(expected_s(eager, num_rows, allocation))
            left_s = self.left_s(budget, wanted, known)
            if not self.is_any_open(wanted, known, left_s - eager.took_s):  # it is tried once more
                return False
        batch_rows = UNASKED_ROWS if tuning.model.input.counts_tokens else tuning.config.batch_size
        return self.is_asked or has_rows_to_measure(num_rows, allocation.max_actors, batch_rows)

    def left_s(self, budget: Budget, wanted: Ways, known: Profile) -> float:
        """Return how long a run may still look; infinite while it knows nothing to take."""
        return time_left_s(known.those(wanted), self.least_pct, budget.left_s)

    def is_any_open(self, ways: Ways, known: Profile, seconds: float) -> bool:
        """Tell whether one of some runtimes and precisions is to be tried in the time."""
        usable = [trial for trial in known.ways if is_usable(trial, self.least_pct)]
        return any(
            self.is_for(way, usable)
            and is_worth_trying(known.of(*way), seconds, usual_s(known.ways))
            for way in ways
        )

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
