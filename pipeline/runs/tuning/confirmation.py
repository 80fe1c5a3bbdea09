"""Compares what was chosen with eager fp32 once more, on more rows and on others.

128 rows mislead both ways: of a way to run a model with which 97% of all rows agree, they show 99%
once in ten times, and of one with which 99.4% agree they show less once in five times. So what is
to be compared on more rows may have agreed on a few less of the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipeline.execution.tasks import ray_errors
from pipeline.plan.allocation import Allocation
from pipeline.runs.tuning.context import Sample, TuningContext, lone_task
from pipeline.runs.tuning.selection import as_tried, choose
from pipeline.runs.tuning.trial import Trial

CONFIRM_ROWS = 512
SLACK_PCT = 2.0
_EXACT = "fp32"


def choose_confirmed(
    tuning: TuningContext, ways: Sequence[Trial], num_rows: int | None
) -> tuple[tuple[Trial, ...], Trial]:
    """Choose from what was tried; a variant that proves to agree less is not chosen again.

    Args:
        tuning: Where.
        ways: Each runtime and precision that was tried.
        num_rows: As for `choose`.

    Returns:
        The ways, with what was found out now, and the one to take.

    Raises:
        JobError: Nothing that was tried can be used.
    """
    tried, larger = list(ways), None
    least_pct, allocation = tuning.job.gates.min_agreement_pct, tuning.allocation

    def in_doubt(way: Trial) -> bool:
        # Other pixels, or fewer bits: there rows differ that no sample of a few shows.
        may_differ = way.precision != _EXACT or tuning.model.input.is_approximate
        return may_differ and not way.is_confirmed

    def slack_pct(way: Trial) -> float:
        return SLACK_PCT if in_doubt(way) else 0.0

    while True:
        way = choose(tried, least_pct, num_rows, allocation, slack_pct)
        if not in_doubt(way):
            return tuple(tried), way
        larger = larger or _Larger(tuning)
        tried[tried.index(way)] = larger.compare(way)


class _Larger:
    """The larger sample, and what eager fp32 keeps of it."""

    def __init__(self, tuning: TuningContext) -> None:
        from pipeline.runs.tuning.measure import keep_part

        plain, sample = tuning.model.as_reference(), Sample(tuning, CONFIRM_ROWS)
        exact = sample.inputs(plain)
        self._tuning = tuning
        self._inputs = sample.inputs(tuning.model) if tuning.model.input.is_approximate else exact
        config, parts = replace(tuning.config, spec=plain), _num_parts(tuning.allocation)
        self._reference = [
            lone_task(tuning, keep_part).remote(config, exact, part, parts) for part in range(parts)
        ]

    def compare(self, way: Trial) -> Trial:
        """Return what was tried, with the share of these rows that agree."""
        import ray
        from ray.exceptions import RayError

        from pipeline.runs.tuning.measure import compare_with

        spec = as_tried(self._tuning.model, way)
        task = lone_task(self._tuning, compare_with)
        config, limits = replace(self._tuning.config, spec=spec), self._tuning.limits
        with ray_errors():
            ray.get(self._reference)  # what fails here is no fault of the way
        try:
            found: Any = ray.get(task.remote(config, self._inputs, limits, *self._reference))
        except RayError as error:
            return replace(way, problem=f"crashed on more rows: {type(error).__name__}")
        return replace(way, agreement_pct=found[0], worst=found[1], is_confirmed=True)


def _num_parts(allocation: Allocation) -> int:
    return min(8, max(1, allocation.max_actors))
