"""What was measured of a slice, or of any number of them, as one typed value.

With a slice and in its footer it travels as JSON (`Counters`), where each figure has the fields of
`StageCounters`: only this file knows which of them holds what.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from pipeline.core.figures.counters import Counters, StageCounters, add
from pipeline.core.printable import num_of


@dataclass(frozen=True)
class _Figure:
    """Numbers that add up; `COUNTERS` names the fields of `StageCounters` that hold them."""

    COUNTERS: ClassVar[tuple[str, ...]] = ("rows_in", "rows_out")

    def __add__(self, other: Self) -> Self:
        return type(self)(*map(operator.add, astuple(self), astuple(other)))

    @classmethod
    def of(cls, did: StageCounters) -> Self:
        return cls(*(getattr(did, name) for name in cls.COUNTERS))

    def as_counters(self) -> StageCounters:
        return StageCounters(**dict(zip(self.COUNTERS, astuple(self), strict=True)))


@dataclass(frozen=True)
class Comparison(_Figure):
    """Rows that were predicted once more, to compare the predictions."""

    COUNTERS: ClassVar = ("rows_in", "rows_out", "busy_s")
    num_rows: int = 0
    num_agreed: int = 0
    busy_s: float = 0.0


@dataclass(frozen=True)
class Tokenised(_Figure):
    """Rows that were turned into tokens."""

    num_rows: int = 0
    num_truncated: int = 0
    """Cut to the most tokens."""


@dataclass(frozen=True)
class Tokens(_Figure):
    """Tokens of the predicted rows."""

    num_tokens: int = 0
    num_padded: int = 0
    """What the model got, with padding."""


@dataclass(frozen=True)
class Generated(_Figure):
    """Texts that a model has written."""

    COUNTERS: ClassVar = ("rows_in", "rows_out", "rows_quarantined", "bytes_out", "busy_s")
    num_rows: int = 0
    num_long: int = 0
    """They have the most tokens, and no end."""
    num_repeating: int = 0
    """Of these, they end in the same few tokens again and again."""
    num_tokens: int = 0
    busy_s: float = 0.0
    """Without what the prompts took."""


@dataclass(frozen=True)
class Steps(_Figure):
    """Steps of a model that writes, each of which adds a token to every row of its batch."""

    num_steps: int = 0
    num_places: int = 0
    """Sum of the rows of each step, with those that had ended and were still in the batch."""


@dataclass(frozen=True)
class LookedUp(_Figure):
    """Rows that were looked up by their content in earlier versions."""

    COUNTERS: ClassVar = ("rows_in", "rows_out", "rows_quarantined", "busy_s")
    num_rows: int = 0
    num_known: int = 0
    """Whose predictions are taken over; others are known and computed, to be compared."""
    num_failed: int = 0
    """Computed because a look-up failed: they may have been known."""
    busy_s: float = 0.0
    """With hashing them; part of what the stage `read` took."""


@dataclass(frozen=True)
class Isolated(_Figure):
    """Rows that were worked on in a child process after workers crashed on their slice."""

    COUNTERS: ClassVar = ("rows_in", "rows_quarantined", "retries", "busy_s")
    num_rows: int = 0
    num_quarantined: int = 0
    """Rows that ended the process that worked on them."""
    dead_processes: int = 0
    """Workers and children."""
    busy_s: float = 0.0

    def as_counters(self) -> StageCounters:
        return replace(super().as_counters(), rows_out=self.num_rows - self.num_quarantined)


_SINGLE: dict[str, tuple[str, type[_Figure]]] = {
    "reference_check": ("reference_check", Comparison),
    "golden": ("golden", Comparison),
    "tokenised": ("truncated", Tokenised),
    "tokens": ("tokens", Tokens),
    "generated": ("generated", Generated),
    "steps": ("steps", Steps),
    "looked_up": ("look_up", LookedUp),
    "isolated": ("isolated", Isolated),
}
"""Field -> its entry in the JSON form, and its type."""
_NAMED = {
    "output_lengths": "output_length",
    "devices": "device",
    "advice": "advice",
}
"""Field -> its entries in the JSON form; what is counted stands behind a `.`."""
FIGURE_NAMES = frozenset((*(entry for entry, _ in _SINGLE.values()), *_NAMED.values()))
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
    def advice_told(self) -> list[str]:
        """Return the lines of advice, with the rows of those that count some."""
        told = self.advice.items()
        return [f"{line}: {num_of(rows, 'row')}" if rows else line for line, rows in told]

    def stage(self, name: str) -> StageCounters:
        """Return what a stage did; nothing, if it was not measured."""
        return self.stages.get(name, StageCounters())

    def add_to(self, counters: Counters) -> None:
        """Add these figures into their JSON form, in place."""
        for entry, did in self._entries():
            add(counters, entry, did)

    def _entries(self) -> Iterator[tuple[str, StageCounters]]:
        yield from self.stages.items()
        for name, (entry, _) in _SINGLE.items():
            if (figure := getattr(self, name)) is not None:
                yield entry, figure.as_counters()
        for name, entry in _NAMED.items():
            for text, num_rows in getattr(self, name).items():
                yield f"{entry}.{text}", StageCounters(num_rows, num_rows)

    @classmethod
    def from_json(cls, counters: Counters) -> SliceFigures:
        """Read the JSON form of one slice.

        Raises:
            PipelineError: As `StageCounters.from_dict`.
        """
        did = {n: StageCounters.from_dict(v) for n, v in counters.items()}
        found: dict[str, Any] = {
            name: kind.of(did.pop(entry)) for name, (entry, kind) in _SINGLE.items() if entry in did
        }
        for name, entry in _NAMED.items():
            keys = [key for key in did if key.partition(".")[0] == entry]
            found[name] = {key.partition(".")[2]: did.pop(key).rows_out for key in keys}
        return cls(stages=did, golden_actors=int("golden" in found), **found)


def _sum(one: Any, other: Any) -> Any:
    """Add two figures, or mappings of figures, of which either may be missing."""
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, Mapping):
        names = [*one, *(name for name in other if name not in one)]
        return {name: _sum(one.get(name), other.get(name)) for name in names}
    return one + other
