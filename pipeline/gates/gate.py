"""What every gate is, and the figures that it judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pipeline.core.failures import Cause
from pipeline.core.figures import SliceFigures
from pipeline.core.histograms import Distribution
from pipeline.gates.history import Past
from pipeline.gates.results import Finding
from pipeline.job.gates import Gates, Mode

Need = Literal["history", "reference_check", "golden", "carried"]
"""What a run does for a gate only: read earlier partitions; predict rows again by eager fp32;
predict golden rows; predict carried rows again."""


@dataclass(frozen=True)
class UnreadableShards:
    """Shards that could not be read to their end: how many rows are lost with them is unknown."""

    num_shards: int = 0
    num_bytes: int = 0
    """Of these shards, whole."""
    of_shards: int = 0
    of_bytes: int = 0
    """Of all shards of the plan."""
    example: str = ""
    """One of them, and why if that is known."""

    @property
    def worst_pct(self) -> float:
        """Return their share of the shards or of the bytes, whichever is larger (0 to 100)."""
        shares = (self.num_shards / max(1, self.of_shards), self.num_bytes / max(1, self.of_bytes))
        return 100.0 * max(shares)

    def describe(self, verb: str) -> str:
        """Say how many there are, in a clause; `verb` is what cannot be done: opened, read."""
        bytes_pct = 100.0 * self.num_bytes / max(1, self.of_bytes)
        example = f", e.g. {self.example}" if self.example else ""
        return (
            f"{self.num_shards} of {self.of_shards} shards cannot be {verb}, {bytes_pct:.2f}% of "
            f"the bytes{example}"
        )


NONE_UNREADABLE = UnreadableShards()


@dataclass(frozen=True)
class Figures:
    """What a run knows of its rows when it is judged."""

    num_planned: int
    """Rows of the plan."""
    num_predicted: int
    """Rows with a prediction."""
    num_quarantined: int
    """Rows with a reason (duplicate ids included)."""
    num_shards: int
    """Input files."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Quarantined rows by reason."""
    causes: Sequence[Cause] = ()
    """Why most of them are there."""
    measured: SliceFigures = field(default_factory=SliceFigures)
    """Of all slices, those that the run resumes included."""
    distribution: Distribution = field(default_factory=Distribution)
    unreadable: UnreadableShards = NONE_UNREADABLE
    num_skipped: int = 0
    """Files below the source that are no input and should perhaps be."""
    why_empty: str = ""
    """Why there is no input, if there is none."""
    is_limited: bool = False
    """Only the first rows were asked for (`run.limit_rows`)."""
    num_carried: int = 0
    """Rows whose predictions are those of earlier versions."""
    is_retry: bool = False
    """They are those of the version that is retried, and none is predicted again."""
    num_checked: int = 0
    """Such rows that were predicted again."""
    differing: Sequence[str] = ()
    """Those of them that differ: id, what was expected and what was found."""
    computed: Distribution | None = None
    """Of the predictions that this run computed, if others are carried."""
    num_computed: int = 0
    """These predictions."""


class Gate(Protocol):
    """One check of a run's figures. Subclass it; it holds no state."""

    name: str
    needs: frozenset[Need] = frozenset()
    only_worsens: bool = False
    """More rows cannot turn its failure, so that a run may be refused before its end."""
    judges_computed: bool = False
    """Where rows are carried, it judges those that the run computed instead of all."""

    def mode(self, options: Gates) -> Mode:
        """Return the worst result that it may have; `off`: it does not judge."""
        return "fail"

    def is_on(self, options: Gates) -> bool:
        """Tell whether the job wants it to judge; if not, nothing is done for its needs."""
        return self.mode(options) != "off"

    def judge(self, options: Gates, figures: Figures, past: Past) -> Finding:
        """Judge a run, whatever the mode. Pure: a limit that is reached exactly is kept.

        Args:
            options: The job's section.
            figures: What is staged.
            past: What was published before; empty unless it needs `history`.
        """
        ...
