"""What every gate is, and the figures that it judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pipeline.core.causes import Cause
from pipeline.core.figures.histograms import Distribution
from pipeline.gates.history import Past
from pipeline.gates.results import GateResult
from pipeline.job.gates import Gates

Need = Literal["history", "reference_check", "golden", "carried"]
"""What a run does for a gate only: read earlier partitions; predict rows again by eager fp32;
predict golden rows; predict carried rows again."""


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
    num_compared: int = 0
    """Rows that eager fp32 predicted once more."""
    num_agreed: int = 0
    """Those of them that agreed."""
    awaits_comparison: bool = False
    """Rows were predicted by an actor that was to compare some, and had not done so."""
    golden_compared: int = 0
    """Golden rows, once per actor."""
    golden_agreed: int = 0
    golden_actors: int = 0
    distribution: Distribution = field(default_factory=Distribution)
    num_skipped: int = 0
    """Files below the source that are no input and should perhaps be."""
    num_tokenised: int = 0
    """Texts that were turned into tokens, by this run and by those that it resumes."""
    num_truncated: int = 0
    """Those of them that had too many tokens, and were cut."""
    num_written: int = 0
    """Texts that a model has written, by this run and by those that it resumes."""
    num_repeating: int = 0
    """Those of them that have no end, for they repeat themselves."""
    why_empty: str = ""
    """Why there is no input, if there is none."""
    is_limited: bool = False
    """Only the first rows were asked for (`run.limit_rows`)."""
    num_carried: int = 0
    """Rows whose predictions are those of earlier versions."""
    num_checked: int = 0
    """Such rows that were predicted again."""
    differing: Sequence[str] = ()
    """Those of them that differ: id, what was expected and what was found."""
    computed: Figures | None = None
    """Of the rows that this run computed, alone, if others are carried: see `computed_alone`."""
    is_sample: bool = False
    """These are the computed rows alone: some of the partition's, so chance moves their shares."""


class Gate(Protocol):
    """One check of a run's figures. Subclass it; it holds no state."""

    name: str
    needs: frozenset[Need] = frozenset()
    only_worsens: bool = False
    """More rows cannot turn its failure, so that a run may be refused before its end."""
    judges_computed: bool = False
    """It judges the computed rows alone as well, if others are carried."""

    def is_on(self, options: Gates) -> bool:
        """Tell whether the job wants it to judge; if not, nothing is done for its needs."""
        return True

    def judge(self, options: Gates, figures: Figures, past: Past) -> GateResult:
        """Judge a run. Pure: a limit that is reached exactly is kept.

        Args:
            options: The job's section.
            figures: What is staged.
            past: What was published before; empty unless it needs `history`.
        """
        ...
