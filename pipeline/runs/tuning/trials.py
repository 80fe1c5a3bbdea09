"""Try ways to run a model on a sample of the job's own rows: the driver's side.

Each runtime and precision is tried once, in turn, while time is left. The chosen one is compared
with eager fp32 once more, on more and other rows.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

from pipeline.core.errors import JobError
from pipeline.execution.tasks import TaskLate, TaskLost, value_if_kept, value_of
from pipeline.inference.runtimes import runtime_of
from pipeline.inference.runtimes.int8 import INT8
from pipeline.inference.runtimes.runtime import emulated_reason, missing_reason
from pipeline.models.spec import EAGER, FP32
from pipeline.preprocessing.model_input import is_varying
from pipeline.runs.tuning.profile import Profile
from pipeline.runs.tuning.selection import (
    GIVEN_UP,
    UNASKED_ROWS,
    Budget,
    Trial,
    Way,
    as_tried,
    batches_beside,
    choose,
    expected_s,
    has_rows_to_measure,
    is_usable,
    is_worth_trying,
)
from pipeline.runs.tuning.trial_context import Sample, TuningContext
from pipeline.runs.tuning.workload import SAMPLE_ROWS, Batches, rows_to_sample

TRIAL_S = 120.0
"""The longest trial, if the budget does not limit it."""
_AUTOTUNING_S = 900.0
"""The same for a runtime that tries kernels."""
_LEAST_ROW_BYTES = 16.0
"""Least bytes of a row, for an input whose rows are not counted yet: small ones are not sampled."""
CONFIRM_ROWS = 512
SLACK_PCT = 2.0
"""128 rows mislead both ways: if 97% of all rows agree, they show 99% one time in ten, and if 99.4%
agree, they show less one time in five. So a way that will be compared on more rows may agree on a
few less of the first ones."""


def try_ways(
    tuning: TuningContext, budget: Budget, wanted: Sequence[Way], known: Profile
) -> Profile:
    """Try runtimes and precisions while time is left.

    Args:
        budget: The time that the waiting run may spend.
        wanted: Runtimes and precisions, in their order.
        known: Earlier trials; only those that were given up are repeated.

    Returns:
        The profile after the trials.

    Raises:
        JobError: Eager fp32 cannot predict the sample, or is too slow for a run whose job does not
            ask for measuring.
    """
    num_rows, least_pct = tuning.plan.num_rows, tuning.job.gates.min_agreement_pct
    most_rows = tuning.rows_by_size(_LEAST_ROW_BYTES) if num_rows is None else num_rows
    if not _may_begin(tuning, budget, wanted, known, most_rows):
        return known
    num_compared = SAMPLE_ROWS if budget.is_asked else UNASKED_ROWS
    slice_rows = tuning.plan.usual_slice_rows()
    sample = Sample(tuning, rows_to_sample(tuning.model.input, slice_rows, num_compared))
    if num_rows is None:
        # Columns that are not read, and compression, make it a guess.
        rows = value_of(sample.rows)
        num_rows = tuning.rows_by_size(rows.nbytes / rows.num_rows) if rows.nbytes else None
        if not _may_begin(tuning, budget, wanted, known, num_rows):
            return known
    tries = _Tries(tuning, sample, num_compared, TRIAL_S if not budget.is_asked else None)
    budget.expect(expected_s(tries.eager, num_rows, tuning.allocation))
    if not tuning.model.input.is_approximate:
        known = known.with_way(tries.eager)
    for way in wanted:
        left_s = budget.left_with(known.those(wanted), least_pct)
        if is_worth_trying(known.of(*way), left_s):
            known = known.with_way(tries.one(way, known.of(*way), left_s))
    return known


def _may_begin(
    tuning: TuningContext,
    budget: Budget,
    wanted: Sequence[Way],
    known: Profile,
    num_rows: int | None,
) -> bool:
    """Tell whether a run of this many rows may begin to measure, as far as can be foreseen."""
    eager, allocation = known.eager, tuning.allocation
    if eager is not None:
        budget.expect(expected_s(eager, num_rows, allocation))
        left_s = budget.left_with(known.those(wanted), tuning.job.gates.min_agreement_pct)
        left_s -= eager.took_s  # it is tried once more
        if not any(is_worth_trying(known.of(*way), left_s) for way in wanted):
            return False
    batch_rows = UNASKED_ROWS if tuning.model.input.counts_tokens else tuning.config.batch_size
    return budget.is_asked or has_rows_to_measure(num_rows, allocation.max_actors, batch_rows)


class _Tries:
    """Tries ways to run the model on one sample, and compares each with eager fp32."""

    def __init__(
        self, tuning: TuningContext, sample: Sample, num_compared: int, reference_s: float | None
    ) -> None:
        """Try eager fp32 itself, for at most `reference_s`.

        Raises:
            JobError: It cannot predict the sample, or not in that time.
        """
        from pipeline.runs.tuning.measure import try_out

        self._tuning, self._num_compared, plain = tuning, num_compared, tuning.model.as_reference()
        self._int8: tuple[str, str] | None = None
        tuning.say(f"trying {EAGER} {FP32}, with which others are compared")
        self._inputs = sample.inputs(plain)
        config = replace(tuning.config, spec=plain)
        arguments = (config, self._inputs, None, tuning.limits, num_compared, self._batches())
        try:
            asked = tuning.start_alone(try_out, *arguments)
            eager, self._reference = value_of(asked, reference_s)
        except TaskLate:
            message = f"{EAGER} {FP32} has not predicted a sample in {reference_s:g} s"
            raise JobError(message) from None
        if eager.problem:
            raise JobError(f"model: eager fp32 cannot predict the sample: {eager.problem}")
        self.eager: Trial = self._signed(eager)
        if tuning.model.input.is_approximate:
            self._inputs = sample.inputs(tuning.model)
            value_of(self._inputs)  # a missing decoder is not the fault of a way

    def one(self, way: Way, before: Trial | None, left_s: float) -> Trial:
        """Try a runtime and precision.

        Args:
            before: Its earlier trial.
            left_s: The longest time; infinite for no limit.
        """
        began, trial, tuning = perf_counter(), Trial(*way), self._tuning
        if problem := self._cannot_run(way):
            return self._signed(replace(trial, problem=problem))
        limit_s = left_s if math.isfinite(left_s) else self._patience_s(way[0])
        tuning.say(f"trying {' '.join(way)}, for at most {limit_s:.0f} s")
        sha256, problem = self._calibrated() if way[1] == INT8 else ("", "")
        if not problem:
            trial = self._attempt(replace(trial, artefact_sha256=sha256), limit_s)
        else:
            trial = replace(trial, problem=problem)
        attempts = trial.was_given_up + (before.attempts if before else 0)
        took_s = round(perf_counter() - began, 2)
        return self._signed(replace(trial, took_s=took_s, attempts=attempts))

    def _batches(self, *, is_fixed: bool = False) -> Batches:
        """Return the other batches to try; only `pipeline tune` tries any.

        Args:
            is_fixed: The model is made for one size.
        """
        tuning, wanted = self._tuning, self._tuning.job.model
        counts_tokens = tuning.model.input.counts_tokens
        is_set = (wanted.batch_tokens if counts_tokens else wanted.batch_size) is not None
        if is_set or is_fixed or not tuning.is_command:
            return Batches()
        usual, slice_rows = tuning.config.limits_of_batch, tuning.plan.usual_slice_rows()
        others = batches_beside(usual, slice_rows, counts_tokens=counts_tokens)
        return Batches(others, tuning.node_actors)

    def _patience_s(self, runtime: str) -> float:
        device = "gpu" if self._tuning.is_on_gpu else "cpu"
        tries_kernels = device in runtime_of(runtime).autotunes
        return _AUTOTUNING_S if tries_kernels else TRIAL_S

    def _cannot_run(self, way: Way) -> str:
        """Return why a way cannot run on this machine, without a process; '' if it may."""
        if len(self._tuning.machines) != 1 or self._tuning.on_cluster:
            return ""
        is_on_gpu = self._tuning.is_on_gpu
        reason = emulated_reason(way[1], is_on_gpu=is_on_gpu)
        return reason or missing_reason(runtime_of(way[0]), way[1], is_on_gpu=is_on_gpu)

    def _signed(self, trial: Trial) -> Trial:
        """Return the trial with who measured it, and when."""
        today = dt.datetime.now(dt.UTC).date().isoformat()
        return replace(trial, measured_by=self._tuning.measured_by, measured_at=today)

    def _calibrated(self) -> tuple[str, str]:
        """Return the digest of the calibrated model, made once, and why there is none."""
        from pipeline.runs.tuning.measure import calibrate

        if self._int8 is None:
            asked = self._tuning.start_alone(calibrate, self._tuning.config, self._inputs)
            try:
                self._int8 = value_if_kept(asked)
            except TaskLost as error:
                self._int8 = "", f"calibration crashed: {error}"
        return self._int8

    def _attempt(self, trial: Trial, limit_s: float) -> Trial:
        from pipeline.runs.tuning.measure import try_out

        tuning = self._tuning
        is_fixed = bool(trial.artefact_sha256) and not is_varying(tuning.model.input)
        asked = tuning.start_alone(
            try_out,
            replace(tuning.config, spec=as_tried(tuning.model, trial)),
            self._inputs,
            self._reference,
            tuning.limits,
            self._num_compared,
            self._batches(is_fixed=is_fixed),
        )
        try:
            tried: Trial = value_if_kept(asked, limit_s)[0]
        except TaskLate:
            return replace(trial, problem=f"{GIVEN_UP} after {limit_s:.0f} s")
        except TaskLost as error:
            return replace(trial, problem=f"crashed: {error}")
        return tried


def choose_confirmed(
    tuning: TuningContext, profile: Profile, wanted: Sequence[Way], budget: Budget
) -> tuple[Profile, Trial]:
    """Choose a way; one that proves to agree less on more rows is not chosen again.

    A way that there is no time to compare on more rows is chosen only if nothing else is left.

    Args:
        profile: The trials.
        wanted: Runtimes and precisions that the job leaves open.
        budget: The time that the waiting run may spend.

    Returns:
        The profile with the comparisons made now, and the chosen way.

    Raises:
        JobError: No way that was tried can be used.
    """
    least_pct, allocation, too_late = tuning.job.gates.min_agreement_pct, tuning.allocation, set()

    def in_doubt(way: Trial) -> bool:
        # With other pixels or fewer bits, more rows differ than a small sample shows.
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
        if others and _confirm_s(profile, way) > budget.left_s:
            too_late.add((way.runtime, way.precision))
            continue
        tuning.say(f"comparing {way.runtime} {way.precision} on {CONFIRM_ROWS} rows")
        profile = profile.with_way(_confirmed(tuning, way))


def _confirm_s(profile: Profile, way: Trial) -> float:
    """Return the seconds of the comparison, by the trials."""
    both = (profile.eager or way, way)
    return sum(trial.load_s + CONFIRM_ROWS / (trial.rows_per_s or 1.0) for trial in both)


def _confirmed(tuning: TuningContext, way: Trial) -> Trial:
    """Return the trial with the share of agreeing rows of a larger sample."""
    from pipeline.runs.tuning.measure import compare

    sample, plain = Sample(tuning, CONFIRM_ROWS), tuning.model.as_reference()
    exact = sample.inputs(plain)
    inputs = sample.inputs(tuning.model) if tuning.model.input.is_approximate else exact
    configs = [replace(tuning.config, spec=s) for s in (plain, as_tried(tuning.model, way))]
    asked = tuning.start_alone(compare, *configs, exact, inputs, tuning.limits)
    try:
        pct, worst = value_if_kept(asked)
    except TaskLost as error:
        return replace(way, problem=f"crashed on more rows: {error}")
    return replace(
        way, agreement_pct=pct, worst=worst, num_compared=CONFIRM_ROWS, is_confirmed=True
    )
