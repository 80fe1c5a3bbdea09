"""Compares what was chosen with eager fp32 once more, on more rows and on others.

128 rows mislead both ways: of a way to run a model with which 97% of all rows agree, they show 99%
once in ten times, and of one with which 99.4% agree they show less once in five times. So what is
to be compared on more rows may have agreed on a few less of the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.execution.tasks import TaskLost, value_if_kept, value_of
from pipeline.models.spec import FP32
from pipeline.planning.allocation import Allocation
from pipeline.runs.tuning.profile import Profile
from pipeline.runs.tuning.selection import Budget, as_tried, choose, is_usable
from pipeline.runs.tuning.trial import Trial
from pipeline.runs.tuning.trials.context import Sample, TuningContext, lone_task

CONFIRM_ROWS = 512
SLACK_PCT = 2.0


def choose_confirmed(
    tuning: TuningContext, profile: Profile, wanted: Sequence[tuple[str, str]], budget: Budget
) -> tuple[Profile, Trial]:
    """Choose from what was tried; a variant that proves to agree less is not chosen again.

    One that there is no time to compare is not chosen by this run, unless nothing else is left.

    Args:
        tuning: Where.
        wanted: Runtimes and precisions that the job leaves open.
        budget: What the run that waits for the answer may spend.

    Returns:
        The profile, with what was found out now, and the one to take.

    Raises:
        JobError: Nothing that was tried can be used.
    """
    larger, too_late = None, set[tuple[str, str]]()
    least_pct, allocation = tuning.job.gates.min_agreement_pct, tuning.allocation

    def in_doubt(way: Trial) -> bool:
        # Other pixels, or fewer bits: there rows differ that no sample of a few shows.
        may_differ = way.precision != FP32 or tuning.model.input.is_approximate
        return may_differ and not way.is_confirmed

    def slack_pct(way: Trial) -> float:
        return SLACK_PCT if in_doubt(way) else 0.0

    while True:
        tried = profile.those([way for way in wanted if way not in too_late])
        way = choose(tried, least_pct, tuning.plan.num_rows, allocation, slack_pct)
        if not in_doubt(way):
            return profile, way
        others = [t for t in tried if not in_doubt(t) and is_usable(t, least_pct)]
        if others and confirm_s(profile, way, _num_parts(allocation)) > budget.left_s:
            too_late.add((way.runtime, way.precision))
            continue
        tuning.say(f"comparing {way.runtime} {way.precision} on {CONFIRM_ROWS} rows")
        larger = larger or _Larger(tuning)
        profile = profile.with_ways([larger.compare(way)])


def confirm_s(profile: Profile, way: Trial, num_parts: int) -> float:
    """Return how long the comparison takes, by what was measured: eager in so many processes."""
    eager = profile.eager or way
    exact_s = eager.load_s + CONFIRM_ROWS / num_parts / (eager.rows_per_s or 1.0)
    return exact_s + way.load_s + CONFIRM_ROWS / (way.rows_per_s or 1.0)


class _Larger:
    """The larger sample, and what eager fp32 keeps of it."""

    def __init__(self, tuning: TuningContext) -> None:
        from pipeline.runs.tuning.trials.measure import keep_part

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
        from pipeline.runs.tuning.trials.measure import compare_with

        spec = as_tried(self._tuning.model, way)
        task = lone_task(self._tuning, compare_with)
        config, limits = replace(self._tuning.config, spec=spec), self._tuning.limits
        value_of(self._reference)  # what fails here is no fault of the way
        try:
            asked = task.remote(config, self._inputs, limits, *self._reference)
            pct, worst = value_if_kept(asked)
        except TaskLost as error:
            return replace(way, problem=f"crashed on more rows: {error}")
        return replace(
            way, agreement_pct=pct, worst=worst, num_compared=CONFIRM_ROWS, is_confirmed=True
        )


def _num_parts(allocation: Allocation) -> int:
    return min(8, max(1, allocation.max_actors))
