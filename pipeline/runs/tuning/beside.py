"""Try another runtime while a run goes on in eager fp32, so that the next run may be faster.

For jobs that say neither runtime nor precision, on the CPUs of this machine. One process beside the
actors does all of it: it converts the model, predicts a sample with eager fp32 and with the other
runtime, and compares. It may use 6% of the processor time that the run is expected to take and half
of the memory that is free, both enforced by the kernel. What it converted stays in the node cache,
so that the next run goes on from there if the time was too short.
"""

from __future__ import annotations

import logging
import math
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.commit.staging import StagedSlice
from pipeline.core.errors import PipelineError
from pipeline.core.printable import clean_message
from pipeline.execution.tasks import TaskLost, are_done, give_up, remote, value_if_kept
from pipeline.inference.engines import open_engine
from pipeline.inference.engines.base import Engine
from pipeline.inference.runtimes import runtime_of
from pipeline.inference.runtimes.choice import usable_ways
from pipeline.models.agreement import AgreementLimits
from pipeline.models.spec import EAGER, FP32, PredictorConfig
from pipeline.models.tasks import make_task
from pipeline.planning.allocation import Allocation
from pipeline.preprocessing.model_input import is_varying
from pipeline.preprocessing.model_input import num_rows as count_rows
from pipeline.runs.tuning.choice import verdict
from pipeline.runs.tuning.profile import Profile, keep_profile, load_profile
from pipeline.runs.tuning.selection import candidates, is_worth_trying, usual_s
from pipeline.runs.tuning.trial import GIVEN_UP, Trial
from pipeline.runs.tuning.trials.context import TuningContext
from pipeline.runs.tuning.trials.runtime_trials import signed
from pipeline.runs.tuning.trials.workload import SAMPLE_ROWS, compared_rows, rows_to_sample
from pipeline.sources.rows import Reader
from pipeline.sources.units import Unit

log = logging.getLogger(__name__)

LEAST_CPU_S = 4.0
_SHARE = 0.06
"""Of the run's processor time; its start, and what the actors lose of their caches, come on top."""
_NUM_COMPARED, _MEASURE_S = 16, 1.5
_TOLD_AFTER_S = 0.3
"""Comparing rows of one shape tells the rates, too, if each way took so long."""
_SLOWER = 2.0
"""How much longer than its processor time a trial takes beside busy actors, at most."""
_LEAST_FREE_BYTES = 2 << 30
_PROBLEM_MAX_CHARS = 200


class Beside:
    """What a run tries beside its work: one runtime after the other, the most promising first."""

    def __init__(self, tuning: TuningContext, profile: Profile) -> None:
        """Take what is known already; nothing begins."""
        self._tuning, self._profile = tuning, profile
        self._left_s = math.inf
        """Processor time that is left; infinite until the first slice says how long the run is."""
        self._task: Any = None
        self._way, self._given_s, self._is_over = "", 0.0, False
        self._said: list[str] = []

    def advance(self, staged: StagedSlice, elapsed_s: float, rows_left: int | None) -> None:
        """Begin what is worth its time, and take what is done.

        Args:
            staged: A slice that was committed now.
            elapsed_s: Since the run began.
            rows_left: Rows that are not committed; None if unknown.
        """
        if self._task is not None:
            self._take_if_done()
        if self._task is not None or self._is_over:
            return
        tuning, allocation = self._tuning, self._tuning.allocation
        prepared = tuning.model.input.stage_names if allocation.decodes_in_actors else ()
        rest_s = expected_left_s(staged, rows_left, tuning.plan.input_bytes, allocation, prepared)
        if math.isinf(self._left_s):
            self._left_s = _SHARE * (elapsed_s + rest_s) * tuning.node_cpus
        given_s = min(self._left_s, rest_s / _SLOWER)
        way = next(iter(open_ways(tuning, self._profile, given_s)), None)
        self._is_over = way is None or given_s < LEAST_CPU_S  # what is left only becomes less
        if way is not None and not self._is_over:
            self._begin(way, given_s)
        elif way is not None and not self._said:
            self._said = [f"too short to try {way}: its share is {given_s:.1f} s of processor time"]

    @property
    def text(self) -> str:
        """Return what became of all that was tried, for the report."""
        return "; ".join(self._said)

    def end(self) -> None:
        """Take what is done; the rest is given up."""
        if self._task is not None and not self._take_if_done():
            give_up(self._task)
            self._keep([self._given_up("the run ended before")])

    def _begin(self, way: str, given_s: float) -> None:
        from pipeline.planning.sampling import sample_units

        tuning = self._tuning
        size = rows_to_sample(tuning.model.input, tuning.plan.usual_slice_rows())
        if size == SAMPLE_ROWS:  # rows of one shape: those that are compared are enough
            size = _NUM_COMPARED
        units, seed = sample_units(tuning.plan, size)
        spec = replace(tuning.model.as_reference(), runtime=way)
        config = replace(tuning.config, spec=spec)
        task = remote(try_beside, num_cpus=0, max_retries=0, max_calls=1)
        self._way, self._given_s = way, given_s
        self._task = task.remote(config, tuning.reader, units, size, seed, tuning.limits, given_s)
        log.info("trying %s beside the run, for at most %.0f s of processor time", way, given_s)

    def _take_if_done(self) -> bool:
        """Keep what was found out; False if the trial goes on."""
        if not are_done([self._task], 0)[0]:
            return False
        try:
            self._keep(value_if_kept(self._task))
        except TaskLost as error:  # the kernel has ended it, or the runtime crashed
            self._keep([self._given_up(str(error))])
        return True

    def _given_up(self, why: str) -> Trial:
        before = self._profile.of(self._way, FP32)
        attempts = 1 + (before.attempts if before else 0)
        problem = f"{GIVEN_UP} after {self._given_s:.0f} s beside a run: {why}"
        trial = Trial(self._way, FP32, problem=problem)
        return replace(trial, took_s=self._given_s, attempts=attempts)

    def _keep(self, trials: Sequence[Trial]) -> None:
        found = [signed(trial, self._tuning.measured_by) for trial in trials]
        self._left_s -= found[-1].took_s
        self._task = None
        try:
            # Another run may have kept something meanwhile.
            self._profile = load_profile(self._tuning).with_ways(found)
            keep_profile(self._tuning, self._profile)
        except PipelineError as error:  # the predictions are well all the same
            log.warning("what was tried beside the run is not kept: %s", error)
        least_pct = self._tuning.job.gates.min_agreement_pct
        self._said.append(f"{found[-1].runtime} {verdict(self._profile, found[-1], least_pct)}")
        log.info("tried beside the run: %s", self._said[-1])


def open_ways(tuning: TuningContext, profile: Profile, given_s: float) -> list[str]:
    """List the runtimes to try at fp32: those whose form of a model is kept, so that a trial that
    was too short is not lost."""
    usable = {*usable_ways(tuning.model, is_on_gpu=False, is_here=True)}
    return [
        name
        for name, precision in candidates(tuning.model, is_on_gpu=False)
        if f"{name} {precision}" in usable
        and runtime_of(name).exports
        and is_worth_trying(profile.of(name, precision), given_s, usual_s(profile.ways))
    ]


def expected_left_s(
    staged: StagedSlice,
    rows_left: int | None,
    input_bytes: int,
    allocation: Allocation,
    prepared: Sequence[str],
) -> float:
    """Return how long the rest of a run is expected to take; rather too short.

    Args:
        staged: The first slice, with the seconds that the stages were busy with it.
        rows_left: Rows that are not committed; None: by the bytes of the input.
        input_bytes: Of all shards.
        allocation: How many actors there are, each of which has such a slice under way.
        prepared: Stages that the actors do before they predict.
    """
    figures, num_rows = staged.figures, staged.num_rows
    if not num_rows:
        return 0.0
    if rows_left is None:
        row_bytes = figures.stage("read").bytes_in / num_rows
        rows_left = int(input_bytes / row_bytes) - num_rows if row_bytes else 0
    stages = (*prepared, "transfer", "predict")
    busy_s = sum(figures.stage(name).busy_s for name in stages)
    rest = max(0, rows_left - (allocation.max_actors - 1) * num_rows)
    return rest * busy_s / num_rows / allocation.max_actors


def try_beside(
    config: PredictorConfig,
    reader: Reader,
    units: Sequence[Unit],
    num_rows: int,
    seed: int,
    limits: AgreementLimits,
    cpu_s: float,
) -> list[Trial]:
    """Measure eager fp32 and another runtime by processor time, in a process of its own.

    Args:
        config: Of the other runtime.
        units: What it is read from.
        num_rows: Its rows.
        seed: Which rows these are.
        limits: How far a row may be from eager fp32.
        cpu_s: Seconds of processor time after which the kernel ends this process; it counts whole
            ones, so it may be up to one less.

    Returns:
        What eager fp32 gave, and what the other one did.
    """
    began = time.process_time()
    _limit(began + cpu_s)
    from pipeline.planning.sampling import sample_rows
    from pipeline.runs.tuning.trials.measure import Workload, preprocess_rows

    spec = config.spec
    eager, trial = Trial(EAGER, FP32, agreement_pct=100.0), Trial(spec.runtime, spec.precision)

    def cpu_s_since(then: float) -> float:
        return (time.process_time() - then) / config.num_threads

    try:
        open_engine(config)  # converts the model, first of all: that is kept
        sample = preprocess_rows(reader, sample_rows(reader, units, num_rows, seed), spec.input)
        work, loads, predictors = Workload(config, sample), list[float](), list[Engine]()
        for each in (spec.as_reference(), spec):
            then = time.process_time()
            predictors.append(open_engine(replace(config, spec=each)))
            work.warm_up(predictors[-1])
            loads.append(cpu_s_since(then))
        compared = compared_rows(count_rows(sample), _NUM_COMPARED)

        def clock() -> float:
            return cpu_s_since(0.0)

        (reference, found), spent, size = work.compare_in_turns(predictors, compared, clock)
        rates = [size / max(seconds, 1e-9) for seconds in spent]
        if is_varying(spec.input) or min(spent) < _TOLD_AFTER_S:
            rates = work.measure_both(predictors, clock, _MEASURE_S)
    except Exception as error:  # noqa: BLE001  # a runtime may raise anything
        problem = clean_message(f"{type(error).__name__}: {error}", _PROBLEM_MAX_CHARS)
        return [replace(trial, problem=problem, took_s=time.process_time() - began)]
    agreement = make_task(spec.task).compare(reference, found, limits)
    return [
        replace(eager, rows_per_s=round(rates[0], 1), load_s=round(loads[0], 2)),
        replace(
            trial,
            rows_per_s=round(rates[1], 1),
            load_s=round(loads[1], 2),
            agreement_pct=agreement.pct,
            worst=agreement.worst,
            num_compared=len(range(count_rows(sample))[compared]),
            took_s=round(time.process_time() - began, 2),
        ),
    ]


def _limit(cpu_s: float) -> None:
    """Let the kernel end this process after some processor time, hold it to half of the memory that
    is free, and end it before others if memory runs out.

    Raises:
        MemoryError: There is too little.
    """
    import psutil

    seconds = int(cpu_s)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    Path("/proc/self/oom_score_adj").write_text("1000")
    free = psutil.virtual_memory().available
    if free < _LEAST_FREE_BYTES:
        raise MemoryError(f"only {free >> 20} MiB are free")
    used = psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (used + free // 2,) * 2)
