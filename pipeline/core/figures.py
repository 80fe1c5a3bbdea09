"""Figures of slices: counts, times and comparisons of each stage, which add up over slices.

They travel as JSON (`Counters`) with every slice and in the footer of its part, so that they
survive crashes. Each stage and each figure is an entry; numbers of one name in an entry add up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Self

from pipeline.core.backoff import retries_taken
from pipeline.core.documents import known_fields
from pipeline.core.errors import PipelineError
from pipeline.core.printable import num_of

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
    """Numbers that add up: the fields of a dataclass, integers except for seconds."""

    def __add__(self, other: Self) -> Self:
        return type(self)(**{name: value + vars(other)[name] for name, value in vars(self).items()})

    def to_dict(self) -> dict[str, float]:
        """Return the JSON form."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> Self:
        """Read the JSON form; a missing field is zero, an unknown one is ignored.

        Raises:
            PipelineError: As `checked`.
        """
        return cls(**checked(known_fields(cls, values)))


@dataclass
class StageCounters(Figure):
    """The counts of one stage over any number of slices."""

    rows_in: int = 0
    rows_out: int = 0
    rows_quarantined: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    busy_s: float = 0.0
    retries: int = 0
    """Requests to a store that were repeated after a transient error."""


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return numbers by their names: seconds as floats, others as integers.

    Raises:
        PipelineError: A value is not a finite number >= 0, or a count is not an integer.
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

    Retries of the process during the body count as retries of the stage.
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
    """Add numbers to an entry of counters, in place."""
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


@dataclass(frozen=True)
class Comparison(Figure):
    """Rows that were predicted a second time, to compare the predictions."""

    num_rows: int = 0
    num_agreed: int = 0
    busy_s: float = 0.0


@dataclass(frozen=True)
class Tokenised(Figure):
    """Rows that were tokenised."""

    num_rows: int = 0
    num_truncated: int = 0
    """Rows cut to the limit of tokens."""


@dataclass(frozen=True)
class Tokens(Figure):
    """Tokens of the predicted rows."""

    num_tokens: int = 0
    num_padded: int = 0
    """Tokens that the model got, padding included."""


@dataclass(frozen=True)
class Generated(Figure):
    """Texts that a model has generated."""

    num_rows: int = 0
    num_long: int = 0
    """Texts that reached the limit of tokens without an end."""
    num_repeating: int = 0
    """Those of them that end in a few tokens repeated over and over."""
    num_tokens: int = 0
    busy_s: float = 0.0
    """Without the time for the prompts."""


@dataclass(frozen=True)
class Steps(Figure):
    """Steps of a generating model; each step adds a token to every row of its batch."""

    num_steps: int = 0
    num_places: int = 0
    """The rows of all steps, including rows that had ended but were still in the batch."""


@dataclass(frozen=True)
class LookedUp(Figure):
    """Rows that were looked up by their content in earlier versions."""

    num_rows: int = 0
    num_known: int = 0
    """Whose predictions are taken over; others are known and computed, to be compared."""
    num_failed: int = 0
    """Computed because a look-up failed: they may have been known."""
    busy_s: float = 0.0
    """With hashing them; part of what the stage `read` took."""


@dataclass(frozen=True)
class Isolated(Figure):
    """Rows that were worked on in a child process after workers crashed on their slice."""

    num_rows: int = 0
    num_quarantined: int = 0
    """Rows that ended the process that worked on them."""
    dead_processes: int = 0
    """Workers and children."""
    busy_s: float = 0.0


_FIGURES: dict[str, type[Figure]] = {
    **dict.fromkeys(("reference_check", "golden"), Comparison),
    "tokenised": Tokenised,
    "tokens": Tokens,
    "generated": Generated,
    "steps": Steps,
    "looked_up": LookedUp,
    "isolated": Isolated,
}
_COUNTS = ("output_lengths", "devices", "advice")
"""Figures that are numbers by name."""
FIGURE_NAMES = (*_FIGURES, *_COUNTS)
"""Entries that no stage can have for its name."""


@dataclass(frozen=True)
class SliceFigures:
    """What was measured; None: it was not."""

    stages: Mapping[str, StageCounters] = field(default_factory=dict)
    """Stage, part of the start-up, or `LAUNCH` -> what it did."""
    reference_check: Comparison | None = None
    """Of some rows with eager fp32."""
    golden: Comparison | None = None
    """Of the golden rows, before the first slice of an actor."""
    golden_actors: int = 0
    """How many slices were an actor's first, with golden rows."""
    tokenised: Tokenised | None = None
    tokens: Tokens | None = None
    generated: Generated | None = None
    steps: Steps | None = None
    looked_up: LookedUp | None = None
    isolated: Isolated | None = None
    output_lengths: Mapping[str, int] = field(default_factory=dict)
    """Tokens of an output, in steps of up to 3% -> texts that a model has written."""
    devices: Mapping[str, int] = field(default_factory=dict)
    """Device -> rows that it predicted."""
    advice: Mapping[str, int] = field(default_factory=dict)
    """What a reader or an actor has to say of what it works with, in a line -> rows that it counts
    with it, or 0."""

    def __add__(self, other: SliceFigures) -> SliceFigures:
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return SliceFigures(**{name: _sum(*pair) for name, pair in pairs.items()})

    @property
    def advice_lines(self) -> list[str]:
        """Return the lines of advice, with the rows of those that count some."""
        lines = self.advice.items()
        return [f"{line}: {num_of(rows, 'row')}" if rows else line for line, rows in lines]

    def stage(self, name: str) -> StageCounters:
        """Return what a stage did; nothing, if it was not measured."""
        return self.stages.get(name, StageCounters())

    def add_to(self, counters: Counters) -> None:
        """Add these figures into their JSON form, in place."""
        for stage, did in self.stages.items():
            add(counters, stage, did)
        for name in FIGURE_NAMES:
            if figure := getattr(self, name):
                add(counters, name, figure)

    @classmethod
    def from_json(cls, counters: Counters) -> SliceFigures:
        """Read the JSON form of one slice.

        Raises:
            PipelineError: As `checked`.
        """
        left = dict(counters)
        figures: dict[str, Any] = {
            name: figure_type.from_dict(left.pop(name))
            for name, figure_type in _FIGURES.items()
            if name in left
        }
        for name in _COUNTS:
            figures[name] = {text: int(n) for text, n in checked(left.pop(name, {})).items()}
        stages = {name: StageCounters.from_dict(values) for name, values in left.items()}
        return cls(stages=stages, golden_actors=int("golden" in figures), **figures)


def _sum(one: Any, other: Any) -> Any:
    """Add two figures, or mappings of figures, of which either may be missing."""
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, Mapping):
        names = [*one, *(name for name in other if name not in one)]
        return {name: _sum(one.get(name), other.get(name)) for name in names}
    return one + other
