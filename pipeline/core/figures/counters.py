"""Counters of the stages: what each one did while it worked, and their sums.

They travel as JSON with every slice and in its footer, so that figures survive crashes.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass

from pipeline.core.backoff import retries_taken
from pipeline.core.documents import known_fields
from pipeline.core.errors import PipelineError

PREPARED = ("decode", "transform")
"""How images are prepared; other inputs bring stages of their own (`Input.stage_names`)."""


def stages_with(prepared: Sequence[str]) -> tuple[str, ...]:
    """Return all stages of a run in order, given those of its input."""
    return ("list", "read", *prepared, "transfer", "predict", "write", "publish")


STAGES = stages_with(PREPARED)
STARTUP_PARTS = ("ray_start", "workers", "imports", "model_load", "compile")
"""`workers`: until the process of an actor is there."""
LAUNCH = "launch"
"""Rows of batches that a GPU was given; busy seconds are the host's, which gathers and launches."""
PREFILL = "prefill"
"""Rows whose prompts a language model has read, and the busy seconds of that."""
Counters = dict[str, dict[str, float]]
"""JSON form of `SliceFigures`: its entry -> fields of `StageCounters`."""


@dataclass(frozen=True)
class StageCounters:
    """What one stage did: the sum over any number of slices."""

    rows_in: int = 0
    rows_out: int = 0
    rows_quarantined: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    busy_s: float = 0.0
    retries: int = 0
    """Requests to a store that were repeated after a passing error."""

    def __add__(self, other: StageCounters) -> StageCounters:
        return StageCounters(*map(operator.add, astuple(self), astuple(other)))

    def to_dict(self) -> dict[str, float]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> StageCounters:
        """Read the JSON form; a field that is left out is zero, an unknown one is ignored.

        Raises:
            PipelineError: A value is not a finite number >= 0 (counts: whole).
        """
        values = known_fields(cls, values)
        for name, value in values.items():
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise PipelineError(f"counter {name} = {value!r}: must be a finite number >= 0")
            if name != "busy_s" and value != int(value):
                raise PipelineError(f"counter {name} = {value!r}: must be a whole number")
        counts = {name: int(value) for name, value in values.items() if name != "busy_s"}
        return cls(**counts, busy_s=float(values.get("busy_s", 0.0)))


@dataclass
class Measurement:
    """The counts a stage fills in while `measure` times it."""

    rows_in: int = 0
    rows_out: int = 0
    rows_quarantined: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


@contextmanager
def measure(counters: Counters, stage: str) -> Iterator[Measurement]:
    """Time the body as busy seconds of a stage and add its counts, also when the body raises.

    Its retries are those of the process meanwhile.
    """
    counts = Measurement()
    start_s, start_retries = time.perf_counter(), retries_taken()
    try:
        yield counts
    finally:
        busy_s = time.perf_counter() - start_s
        retries = retries_taken() - start_retries
        add(counters, stage, StageCounters(**asdict(counts), busy_s=busy_s, retries=retries))


def add(counters: Counters, stage: str, more: StageCounters) -> None:
    """Add what a stage did into counters, in place."""
    counters[stage] = (StageCounters.from_dict(counters.get(stage, {})) + more).to_dict()


def merge(a: Counters, b: Counters) -> Counters:
    """Return the sum of two sets of counters; neither is changed."""
    merged: Counters = {}
    for counters in (a, b):
        for stage, values in counters.items():
            add(merged, stage, StageCounters.from_dict(values))
    return merged
