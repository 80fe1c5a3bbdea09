"""Choose how to run a model from what was measured. Pure: trials in, one of them out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter

from pipeline.core.errors import JobError
from pipeline.inference.runtimes import all_runtimes, runtime_of
from pipeline.inference.runtimes.base import Device
from pipeline.inference.runtimes.int8 import INT8
from pipeline.job.model import AUTO
from pipeline.models.spec import EAGER, FP32, ModelSpec
from pipeline.models.tasks import task_class
from pipeline.planning.allocation import Allocation
from pipeline.preprocessing.images.reference_pixels import NUM_REFERENCE_ROWS
from pipeline.preprocessing.model_input import is_varying
from pipeline.runs.tuning.trial import Trial

SAME_PCT = 3.0
"""Rates that differ by less are the same: the smaller batch is taken."""

SHARE = 0.1
"""Of the expected run, for measuring."""
LEAST_BUDGET_S = 5.0
"""What a run measures for at least whose job asks for it."""
LEAST_RUN_S = 60.0
"""Shorter runs measure nothing unasked."""
UNASKED_ROWS = 32
"""Rows that an unasked trial compares with eager fp32."""
MAX_ATTEMPTS, MUCH_MORE = 3, 1.5
LEAST_GAIN_PCT = 10.0


def candidates(model: ModelSpec, *, is_on_gpu: bool) -> list[tuple[str, str]]:
    """List the runtimes and precisions that the job leaves open, those first that promise most for
    the time that they take: int8 is last, as it is calibrated, and not for .onnx files, which run
    as they are.
    """
    is_file = model.directory is not None and model.directory.is_file
    varies = is_varying(model.input)
    runtimes = all_runtimes() if model.runtime == AUTO else [runtime_of(model.runtime)]
    able = task_class(model.task.kind).runtimes
    runtimes = [each for each in runtimes if able is None or each.name in able]
    device: Device = "gpu" if is_on_gpu else "cpu"
    if varies and model.runtime == AUTO:
        runtimes = [
            each for each in runtimes if each.takes_varying and device in each.tries_varying
        ]
    found = [
        (runtime.name, precision)
        for runtime in runtimes
        for precision, devices in runtime.precisions.items()
        if model.precision in (AUTO, precision)
        and device in devices
        and (precision != INT8 or not is_file)
    ]
    return sorted(found, key=lambda way: way[1] == INT8)


def as_tried(model: ModelSpec, trial: Trial) -> ModelSpec:
    """Return a model as it was tried."""
    sha256 = trial.artefact_sha256 or None
    return replace(model, runtime=trial.runtime, precision=trial.precision, artefact_sha256=sha256)


def _strict(_: Trial) -> float:
    return 0.0


def choose(
    trials: Sequence[Trial],
    min_agreement_pct: float,
    num_rows: int | None,
    allocation: Allocation,
    slack_pct: Callable[[Trial], float] = _strict,
) -> Trial:
    """Take what ends first, starting up included, among what agrees.

    Args:
        min_agreement_pct: What agrees less is left out.
        num_rows: Rows of the run; None if unknown: only the rate counts.
        allocation: How many actors share the rows.
        slack_pct: By how much less a trial may agree: what is compared again on more rows.

    Raises:
        JobError: Nothing that was tried can be used.
    """

    def agrees(trial: Trial) -> bool:
        return trial.agreement_pct >= min_agreement_pct - slack_pct(trial)

    usable = [trial for trial in trials if not trial.problem and agrees(trial)]
    if not usable:
        problems = "; ".join(
            f"{t.runtime} {t.precision}: {t.problem or f'{t.agreement_pct:.1f}% of rows agree'}"
            for t in trials
        )
        if not trials:
            raise JobError("model.runtime, model.precision: nothing runs that on this device")
        raise JobError(
            f"nothing that was tried agrees on {min_agreement_pct:g}% of the sampled rows "
            f"(gates.min_agreement_pct) with eager fp32 and whole decoding: {problems}"
        )
    return min(usable, key=lambda trial: seconds(trial, num_rows, allocation))


def seconds(trial: Trial, num_rows: int | None, allocation: Allocation) -> float:
    """Return how long a run would take; if its rows are unknown, only the rate counts."""
    if num_rows is None:
        return -trial.rows_per_s
    return trial.load_s + num_rows / allocation.max_actors / trial.rows_per_s


def expected_s(eager: Trial, num_rows: int | None, allocation: Allocation) -> float:
    """Return how long a run is expected to take in eager fp32; 0 if its rows are unknown."""
    if num_rows is None or not eager.rows_per_s:
        return 0.0
    return seconds(eager, num_rows, allocation)


def has_rows_to_measure(num_rows: int | None, num_actors: int, batch_rows: int) -> bool:
    """Tell whether what eager fp32 must predict to be measured is less than a tenth of a run.

    Args:
        num_rows: Rows of the run; None if unknown.
        num_actors: How many actors share them; one measures.
        batch_rows: Of one model call, of which one warms up and one is timed at least.
    """
    measured_rows = UNASKED_ROWS + 2 * batch_rows
    return num_rows is not None and SHARE * num_rows / num_actors >= measured_rows


def is_worth_trying(known: Trial | None, left_s: float, usual_s: float) -> bool:
    """Tell whether to try a way in the time that is left.

    What was given up is kept as far as it went (a converted model lies in the node cache), so the
    same time may do it at the next attempt; after some, only more time may.

    Args:
        known: What trying it gave before; None: it was never tried.
        left_s: The time that is left.
        usual_s: What trying another way took; 0 if unknown.
    """
    if known is None:
        return left_s > 0 and left_s >= usual_s
    if not known.was_given_up:
        return False
    return left_s > 0 and (known.attempts < MAX_ATTEMPTS or left_s >= MUCH_MORE * known.took_s)


def usual_s(ways: Sequence[Trial]) -> float:
    """Return the least that trying a way took; of none but eager fp32, what loading it took."""
    done = {(way.runtime, way.precision): way for way in ways if not way.problem}
    eager = done.pop((EAGER, FP32), None)
    return min((way.took_s for way in done.values()), default=eager.load_s if eager else 0.0)


def fastest_known(
    ways: Sequence[Trial], min_agreement_pct: float, num_rows: int | None, allocation: Allocation
) -> Trial | None:
    """Return the way at fp32 that a job gets which leaves it open.

    Eager, unless another one, with the rows that it predicts once more in eager fp32, ends earlier
    by `LEAST_GAIN_PCT`: numbers that differ in their last digits from those of last night are worth
    nothing less.

    Returns:
        None if eager fp32 was never measured here.
    """
    exact = [way for way in ways if way.precision == FP32]
    eager = next((way for way in exact if way.runtime == EAGER), None)
    if eager is None or not is_usable(eager, min_agreement_pct):
        return None
    best = choose(exact, min_agreement_pct, num_rows, allocation)
    if num_rows is None:
        is_faster = best.rows_per_s >= eager.rows_per_s * (1 + LEAST_GAIN_PCT / 100)
    else:
        best_s, eager_s = (seconds(way, num_rows, allocation) for way in (best, eager))
        checked_s = eager.load_s + NUM_REFERENCE_ROWS / eager.rows_per_s
        is_faster = (best_s + checked_s) * (1 + LEAST_GAIN_PCT / 100) <= eager_s
    return best if is_faster else eager


def time_left_s(ways: Sequence[Trial], min_agreement_pct: float, left_s: float) -> float:
    """Return how long a run may still look for a better way.

    No limit while nothing that was tried can be used: without any way the run would fail. A job may
    allow one way only, such as int8, whose calibration can take longer than the search has.
    """
    if not any(is_usable(way, min_agreement_pct) for way in ways):
        return math.inf
    return left_s


def is_usable(way: Trial, min_agreement_pct: float) -> bool:
    """Tell whether a way ran, and agrees with eager fp32 on enough rows."""
    return not way.problem and way.agreement_pct >= min_agreement_pct


def choose_batch(
    trials: Sequence[Trial], memory_mib: float, num_actors: int, slice_rows: Sequence[int] = ()
) -> Trial | None:
    """Take the batch size that makes most of the slices and fits the memory; of equal ones the
    smallest.

    Args:
        trials: One a batch size.
        memory_mib: What the actors of one node may take together.
        num_actors: How many there are on a node.
        slice_rows: Rows of the slices, or of some: what fills no batch is computed all the same
            if batches have one size. None counts as slices of whole batches.
    """
    fitting = [t for t in trials if not t.problem and t.peak_mib * num_actors <= memory_mib]

    def row_s(trial: Trial) -> float:
        rate = trial.rows_per_s * useful_share(trial, slice_rows)
        return 1 / rate if rate else math.inf

    by_size = sorted(fitting, key=lambda trial: (trial.batch_tokens, trial.batch_size))
    best_s = min(map(row_s, by_size), default=math.inf)
    return next((t for t in by_size if row_s(t) * (1 - SAME_PCT / 100) <= best_s), None)


def useful_share(trial: Trial, slice_rows: Sequence[int]) -> float:
    """Return which share of the rows that a way to run the model computes is no padding."""
    # Texts are measured with their padding, and any runtime that takes them takes any batch.
    if trial.batch_tokens or not runtime_of(trial.runtime).is_static:
        return 1.0
    return filled_share(slice_rows, trial.batch_size)


def filled_share(slice_rows: Sequence[int], batch_size: int) -> float:
    """Return which share of the rows of all batches are rows of a slice, not padding."""
    computed = sum(-(-rows // batch_size) * batch_size for rows in slice_rows)
    return sum(slice_rows) / computed if computed else 1.0


class Budget:
    """A tenth of what the run is expected to take, and some seconds at least if its job asks for
    measuring; unasked, a run below a minute has nothing."""

    def __init__(
        self,
        *,
        is_bounded: bool = True,
        is_asked: bool = True,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """Begin to count.

        Args:
            is_bounded: Whether a run waits for the answer; `pipeline tune` measures all.
            is_asked: The job has `auto`, or the command is `tune`.
        """
        self._clock, self._began = clock, clock()
        self.is_bounded, self.is_asked = is_bounded, is_asked
        self.total_s = (LEAST_BUDGET_S if is_asked else 0.0) if is_bounded else math.inf

    def expect(self, run_s: float) -> None:
        """Note how long the run is expected to take, now that it is known."""
        if not self.is_bounded:
            return
        if self.is_asked:
            self.total_s = max(LEAST_BUDGET_S, SHARE * run_s)
        else:
            self.total_s = SHARE * run_s if run_s >= LEAST_RUN_S else 0.0

    @property
    def left_s(self) -> float:
        """Return what is left of it; less than 0 if more was taken."""
        return self.total_s - (self._clock() - self._began)
