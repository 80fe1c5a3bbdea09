"""Counters of the stages: what each one did while it worked, and their sums.

They travel as JSON with every slice and in its footer, so that figures survive crashes. What counts
is a number by its name in an entry: entries of one name are added up, whatever they count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from pipeline.core.backoff import retries_taken
from pipeline.core.documents import known_fields
from pipeline.core.errors import PipelineError

LIST, READ, TRANSFER = "list", "read", "transfer"
PREDICT, WRITE, PUBLISH = "predict", "write", "publish"
TOKENIZE = "tokenize"
PREPARED = ("decode", "transform")
"""Stages that prepare images and clips; other inputs bring their own (`Input.stage_names`)."""


def stages_with(prepared: Sequence[str]) -> tuple[str, ...]:
    """Return all stages of a run in order, given those of its input."""
    return (LIST, READ, *prepared, TRANSFER, PREDICT, WRITE, PUBLISH)


STAGES = stages_with(PREPARED)
STARTUP_PARTS = ("ray_start", "workers", "imports", "model_load", "compile")
"""`workers`: until the process of an actor is there."""
LAUNCH = "launch"
"""Rows of batches that a GPU was given; busy seconds are the host's, which gathers and launches."""
PREFILL = "prefill"
"""Rows whose prompts a language model has read, and the busy seconds of that."""
Counters = dict[str, dict[str, float]]
"""JSON form of `SliceFigures`: its entry -> numbers by name."""


class Figure:
    """Numbers that add up: the fields of a data class, which are whole but for seconds."""

    def __add__(self, other: Self) -> Self:
        return type(self)(**{name: value + vars(other)[name] for name, value in vars(self).items()})

    def to_dict(self) -> dict[str, float]:
        """Return the JSON form."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> Self:
        """Read the JSON form; a field that is left out is zero, an unknown one is ignored.

        Raises:
            PipelineError: As `checked`.
        """
        return cls(**checked(known_fields(cls, values)))


@dataclass
class StageCounters(Figure):
    """What one stage did: the sum over any number of slices."""

    rows_in: int = 0
    rows_out: int = 0
    rows_quarantined: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    busy_s: float = 0.0
    retries: int = 0
    """Requests to a store that were repeated after a passing error."""


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return numbers by their names: seconds as they are, others as whole numbers.

    Raises:
        PipelineError: A value is not a finite number >= 0 (counts: whole).
    """
    for name, value in values.items():
        if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
            raise PipelineError(f"counter {name} = {value!r}: must be a finite number >= 0")
        if not name.endswith("_s") and value != int(value):
            raise PipelineError(f"counter {name} = {value!r}: must be a whole number")
    return {n: float(v) if n.endswith("_s") else int(v) for n, v in values.items()}


@contextmanager
def measure(counters: Counters, stage: str) -> Iterator[StageCounters]:
    """Time the body as busy seconds of a stage and add its counts, also when the body raises.

    Its retries are those of the process meanwhile.
    """
    counts = StageCounters()
    start_s, start_retries = time.perf_counter(), retries_taken()
    try:
        yield counts
    finally:
        counts.busy_s = time.perf_counter() - start_s
        counts.retries = retries_taken() - start_retries
        add(counters, stage, counts)


def add(counters: Counters, entry: str, more: Figure | Mapping[str, float]) -> None:
    """Add numbers into an entry of counters, in place."""
    values = more.to_dict() if isinstance(more, Figure) else more
    before = counters.setdefault(entry, {})
    for name, value in values.items():
        before[name] = before.get(name, 0) + value


def merge(a: Counters, b: Counters) -> Counters:
    """Return the sum of two sets of counters; neither is changed."""
    merged: Counters = {}
    for counters in (a, b):
        for entry, values in counters.items():
            add(merged, entry, values)
    return merged
