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
"""Rates that differ by less are the same: the smaller batch is taken."""
STEP = 4
"""A batch is compared with one of so many times its size, and with one of that part of it."""
SHARE = 0.1
"""Of the expected run, for measuring."""
LEAST_BUDGET_S = 5.0
"""What a run measures for at least whose job asks for it."""
LEAST_RUN_S = 60.0
"""Shorter runs measure nothing unasked."""
UNASKED_ROWS = 32
"""Rows that an unasked trial compares with eager fp32."""
MAX_ATTEMPTS = 3
"""What was given up is kept as far as it went (a converted model lies in the node cache), so a run
of the same length may do it at the next attempt; after so many, only `pipeline tune` tries it."""
LEAST_GAIN_PCT = 10.0

Way = tuple[str, str]
"""A runtime and a precision."""
GIVEN_UP = "given up"


@dataclass(frozen=True)
class Trial:
    """What one way to run the model gave."""

    runtime: str
    precision: str
    rows_per_s: float = 0.0
    """Of one actor, the model only."""
    load_s: float = 0.0
    """Until an actor is ready: the first one of a node, unless its runtime exports the model, which
    the node cache keeps."""
    agreement_pct: float = 0.0
    """Share of the sampled rows that agree with eager fp32."""
    is_confirmed: bool = False
    """Whether that share is of the larger sample, on which what is chosen is compared."""
    worst: float = 0.0
    """Largest difference of scores, smallest cosine, or largest relative error."""
    artefact_sha256: str = ""
    """Precision int8: the calibrated model that was tried."""
    num_compared: int = 0
    """Rows of that sample."""
    problem: str = ""
    """Why it cannot be used; '' if it can."""
    took_s: float = 0.0
    """What trying it took; what it had if it was given up."""
    attempts: int = 0
    """How often it was given up."""
    measured_by: str = ""
    """The run that measured it, or `tune`."""
    measured_at: str = ""
    """The date, UTC."""
    batch_size: int = 0
    """The most rows of one model call; 0 if the plan's was used."""
    batch_tokens: int = 0
    """The most tokens of one model call; 0 if the plan's was used, or rows have none."""
    batches: list[tuple[int, float]] = field(default_factory=list)
    """Rows, or tokens, of a batch and its rows/s, if several were measured; 0: it failed."""

    @property
    def was_given_up(self) -> bool:
        """Tell whether it might have been used by a longer run."""
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
    """List the runtimes and precisions that the job leaves open, those first that promise most for
    the time that they take: int8 is last, as it is calibrated, and not for .onnx files, which run
    as they are.

    Args:
        model: As the job has it, with `auto` for what it leaves open.
        is_on_gpu: Actors have GPUs.
        is_command: `pipeline tune` asks, which has the minutes that timing kernels takes.
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
    """Return a model as it was tried."""
    sha256 = trial.artefact_sha256 or None
    return replace(model, runtime=trial.runtime, precision=trial.precision, artefact_sha256=sha256)


def batches_beside(
    usual: BatchLimits, slice_rows: Sequence[int], *, counts_tokens: bool
) -> list[BatchLimits]:
    """Return the batches that are compared with the usual one: a smaller and a larger one.

    Args:
        usual: What a run takes that knows nothing.
        slice_rows: Rows of the slices of a run, or of some: no batch is larger than they are.
        counts_tokens: Batches are filled by tokens.
    """
    if counts_tokens:
        sizes = (usual.tokens // STEP, usual.tokens * STEP)
        return [usual._replace(tokens=tokens) for tokens in sizes if tokens]
    largest = min(usual.rows * STEP, max(slice_rows, default=usual.rows * STEP))
    return [usual._replace(rows=n) for n in (usual.rows // STEP, largest) if n and n != usual.rows]


def best_batch(rates: Mapping[int, float]) -> int:
    """Return the smallest of the batches, size -> rows/s, that is as fast as any."""
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
    """Take what ends first, starting up included, among what agrees.

    Args:
        min_agreement_pct: What agrees less is left out.
        num_rows: Rows of the run; None if unknown: only the rate counts.
        allocation: How many actors share the rows.
        slack_pct: By how much less a trial may agree: what is compared again on more rows.

    Raises:
        JobError: Nothing that was tried can be used.
    """
    usable = [trial for trial in trials if is_usable(trial, min_agreement_pct - slack_pct(trial))]
    if not trials:
        raise JobError("model.runtime, model.precision: nothing runs that on this device")
    if not usable:
        problems = "; ".join(
            f"{t.runtime} {t.precision}: {t.problem or f'{t.agreement_pct:.1f}% of rows agree'}"
            for t in trials
        )
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


def is_worth_trying(known: Trial | None, left_s: float) -> bool:
    """Tell whether to try a way in the time that is left; `known` is what trying it gave before."""
    if left_s <= 0:
        return False
    return known is None or (known.was_given_up and known.attempts < MAX_ATTEMPTS)


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


def is_usable(way: Trial, min_agreement_pct: float) -> bool:
    """Tell whether a way ran, and agrees with eager fp32 on enough rows."""
    return not way.problem and way.agreement_pct >= min_agreement_pct


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

    def left_with(self, ways: Sequence[Trial], min_agreement_pct: float) -> float:
        """Return how long a run may still look for a better way than these.

        No limit while none of them can be used: without any way the run would fail. A job may allow
        one way only, such as int8, whose calibration can take longer than the search has.
        """
        return self.left_s if any(is_usable(w, min_agreement_pct) for w in ways) else math.inf
