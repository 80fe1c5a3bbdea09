"""Trials of ways to run a model, and the one that a run takes. Pure, but for the budget's clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any

from pipeline.core.documents import known_fields
from pipeline.core.errors import JobError
from pipeline.inference.runtimes import all_runtimes, runtime_of
from pipeline.inference.runtimes.int8 import INT8
from pipeline.inference.runtimes.runtime import Device
from pipeline.job.model import AUTO
from pipeline.models.spec import EAGER, FP32, ModelSpec
from pipeline.models.tasks import task_class
from pipeline.planning.allocation import Allocation
from pipeline.preprocessing.images.reference_pixels import NUM_REFERENCE_ROWS
from pipeline.preprocessing.model_input import BatchLimits, is_varying

SAME_PCT = 3.0
"""Rates that differ by less count as equal: the smaller batch is taken."""
STEP = 4
"""A batch is compared with one that is larger by this factor, and one that is smaller by it."""
SHARE = 0.1
"""The share of the expected run that may be spent on measuring."""
LEAST_BUDGET_S = 5.0
"""The least time for measuring if the job asks for it."""
LEAST_RUN_S = 60.0
"""Shorter runs measure only if the job asks for it."""
UNASKED_ROWS = 32
"""Rows that a trial compares with eager fp32 if the job does not ask for it."""
MAX_ATTEMPTS = 3
"""A trial that was given up may succeed at the next attempt, because its converted model stays in
the node cache; after this many attempts only `pipeline tune` tries again."""
LEAST_GAIN_PCT = 10.0

Way = tuple[str, str]
"""A runtime and a precision."""
GIVEN_UP = "given up"


@dataclass(frozen=True)
class Trial:
    """The result of trying one way to run a model."""

    runtime: str
    precision: str
    rows_per_s: float = 0.0
    """Of one actor, the model only."""
    load_s: float = 0.0
    """Seconds until the first actor of a node is ready; without exporting the model, which the node
    cache keeps."""
    agreement_pct: float = 0.0
    """Share of the sampled rows that agree with eager fp32."""
    is_confirmed: bool = False
    """Whether that share is of the larger sample, on which the chosen way is compared."""
    worst: float = 0.0
    """Largest difference of scores, smallest cosine, or largest relative error."""
    artefact_sha256: str = ""
    """Precision int8: the calibrated model that was tried."""
    num_compared: int = 0
    """Rows of that sample."""
    problem: str = ""
    """Why it cannot be used; '' if it can."""
    took_s: float = 0.0
    """Seconds of the trial; if it was given up, its time limit."""
    attempts: int = 0
    """Number of trials that were given up."""
    measured_by: str = ""
    """The run that measured it, or `tune`."""
    measured_at: str = ""
    """The date, UTC."""
    batch_size: int = 0
    """The most rows of one model call; 0 for the plan's."""
    batch_tokens: int = 0
    """The most tokens of one model call; 0 for the plan's, or if rows have none."""
    batches: list[tuple[int, float]] = field(default_factory=list)
    """Rows, or tokens, of a batch and its rows/s (0 if it failed), if several were measured."""

    @property
    def was_given_up(self) -> bool:
        """Tell whether a longer run might have used it."""
        return self.problem.startswith(GIVEN_UP)

    def to_dict(self) -> dict[str, Any]:
        """Return the form that is stored and shown."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Trial:
        """Undo `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        known = known_fields(cls, document)
        return cls(**{**known, "batches": [(size, rate) for size, rate in known["batches"]]})


def candidates(model: ModelSpec, *, is_on_gpu: bool, is_command: bool = False) -> list[Way]:
    """List the runtimes and precisions that the job leaves open, the most promising first.

    int8 is last, because it is calibrated; .onnx files, which run as they are, have none.

    Args:
        model: As in the job, with `auto` for open choices.
        is_on_gpu: Actors have GPUs.
        is_command: `pipeline tune` asks, which has the minutes for timing kernels.
    """
    is_file = model.directory is not None and model.directory.is_file
    runtimes = all_runtimes() if model.runtime == AUTO else [runtime_of(model.runtime)]
    able = task_class(model.task.kind).runtimes
    device: Device = "gpu" if is_on_gpu else "cpu"
    if able is not None:
        runtimes = [runtime for runtime in runtimes if runtime.name in able]
    if model.runtime == AUTO and is_varying(model.input):
        runtimes = [
            runtime
            for runtime in runtimes
            if runtime.takes_varying and device in runtime.tries_varying
        ]
    elif model.runtime == AUTO and not is_command:
        runtimes = [runtime for runtime in runtimes if device not in runtime.autotunes]
    ways = [
        (runtime.name, precision)
        for runtime in runtimes
        for precision, devices in runtime.precisions.items()
        if model.precision in (AUTO, precision)
        and device in devices
        and (precision != INT8 or not is_file)
    ]
    return sorted(ways, key=lambda way: way[1] == INT8)


def as_tried(model: ModelSpec, trial: Trial) -> ModelSpec:
    """Return the model with the runtime and precision of a trial."""
    sha256 = trial.artefact_sha256 or None
    return replace(model, runtime=trial.runtime, precision=trial.precision, artefact_sha256=sha256)


def batches_beside(
    usual: BatchLimits, slice_rows: Sequence[int], *, counts_tokens: bool
) -> list[BatchLimits]:
    """Return the batches to compare with the usual one: a smaller and a larger one.

    Args:
        usual: The batch of a run without measurements.
        slice_rows: Rows of some slices of the run; no batch is larger.
        counts_tokens: Batches are filled by tokens.
    """
    if counts_tokens:
        sizes = (usual.tokens // STEP, usual.tokens * STEP)
        return [usual._replace(tokens=tokens) for tokens in sizes if tokens]
    largest = min(usual.rows * STEP, max(slice_rows, default=usual.rows * STEP))
    return [usual._replace(rows=n) for n in (usual.rows // STEP, largest) if n and n != usual.rows]


def best_batch(rates: Mapping[int, float]) -> int:
    """Return the smallest of the batches, given as size -> rows/s, that is as fast as any."""
    enough = max(rates.values()) * (1 - SAME_PCT / 100)
    return min(size for size, rate in rates.items() if rate >= enough)


def _strict(_: Trial) -> float:
    return 0.0


def choose(
    trials: Sequence[Trial],
    min_agreement_pct: float,
    num_rows: int | None,
    allocation: Allocation,
    slack_pct: Callable[[Trial], float] = _strict,
) -> Trial:
    """Return the way that ends first, including start-up, among those that agree.

    Args:
        min_agreement_pct: The least share of agreeing rows.
        num_rows: Rows of the run; None if unknown, so that only the rate counts.
        allocation: Its actors share the rows.
        slack_pct: How much less a trial may agree if it will be compared on more rows.

    Raises:
        JobError: No way that was tried can be used.
    """
    usable = [trial for trial in trials if is_usable(trial, min_agreement_pct - slack_pct(trial))]
    if not trials:
        raise JobError("model.runtime, model.precision: no runtime supports them on this device")
    if not usable:
        problems = "; ".join(
            f"{t.runtime} {t.precision}: {t.problem or f'{t.agreement_pct:.1f}% of rows agree'}"
            for t in trials
        )
        raise JobError(
            f"no way that was tried agrees on {min_agreement_pct:g}% of the sampled rows "
            f"(gates.min_agreement_pct) with eager fp32 and whole decoding: {problems}"
        )
    return min(usable, key=lambda trial: seconds(trial, num_rows, allocation))


def seconds(trial: Trial, num_rows: int | None, allocation: Allocation) -> float:
    """Return the seconds of a run; if its rows are unknown, the negative rate, for comparisons."""
    if num_rows is None:
        return -trial.rows_per_s
    return trial.load_s + num_rows / allocation.max_actors / trial.rows_per_s


def expected_s(eager: Trial, num_rows: int | None, allocation: Allocation) -> float:
    """Return the expected seconds of a run in eager fp32; 0 if its rows are unknown."""
    if num_rows is None or not eager.rows_per_s:
        return 0.0
    return seconds(eager, num_rows, allocation)


def has_rows_to_measure(num_rows: int | None, num_actors: int, batch_rows: int) -> bool:
    """Tell whether measuring eager fp32 predicts less than a tenth of the run's rows.

    Args:
        num_rows: Rows of the run; None if unknown.
        num_actors: The actors that share them; one measures.
        batch_rows: Rows of a model call; one call warms up, and at least one is timed.
    """
    measured_rows = UNASKED_ROWS + 2 * batch_rows
    return num_rows is not None and SHARE * num_rows / num_actors >= measured_rows


def is_worth_trying(known: Trial | None, left_s: float) -> bool:
    """Tell whether to try a way in the remaining time; `known` is its earlier trial."""
    if left_s <= 0:
        return False
    return known is None or (known.was_given_up and known.attempts < MAX_ATTEMPTS)


def fastest_known(
    ways: Sequence[Trial], min_agreement_pct: float, num_rows: int | None, allocation: Allocation
) -> Trial | None:
    """Return the way at fp32 for a job that leaves it open; None if eager fp32 was never measured.

    That is eager, unless another way ends earlier by `LEAST_GAIN_PCT`, including the rows that are
    predicted again in eager fp32: for less it is not worth that the last digits differ from those
    of the night before.
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


def is_usable(way: Trial, min_agreement_pct: float) -> bool:
    """Tell whether a way ran, and agrees with eager fp32 on enough rows."""
    return not way.problem and way.agreement_pct >= min_agreement_pct


class Budget:
    """The time for measuring: a tenth of the expected run.

    It is at least some seconds if the job asks for measuring; otherwise a run of less than a minute
    has none.
    """

    def __init__(
        self,
        *,
        is_bounded: bool = True,
        is_asked: bool = True,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """Begin to count.

        Args:
            is_bounded: A run waits for the result; False for `pipeline tune`, which measures all.
            is_asked: The job has `auto`, or the command is `tune`.
        """
        self._clock, self._began = clock, clock()
        self.is_bounded, self.is_asked = is_bounded, is_asked
        self.total_s = (LEAST_BUDGET_S if is_asked else 0.0) if is_bounded else math.inf

    def expect(self, run_s: float) -> None:
        """Set the expected seconds of the run."""
        if not self.is_bounded:
            return
        if self.is_asked:
            self.total_s = max(LEAST_BUDGET_S, SHARE * run_s)
        else:
            self.total_s = SHARE * run_s if run_s >= LEAST_RUN_S else 0.0

    @property
    def left_s(self) -> float:
        """Return the remaining seconds; negative if overdrawn."""
        return self.total_s - (self._clock() - self._began)

    def left_with(self, ways: Sequence[Trial], min_agreement_pct: float) -> float:
        """Return the seconds in which a run may still look for a better way than these.

        Infinite if none of them can be used: without any way the run would fail. A job may allow
        one way only, such as int8, whose calibration can take longer than the budget.
        """
        return self.left_s if any(is_usable(w, min_agreement_pct) for w in ways) else math.inf
