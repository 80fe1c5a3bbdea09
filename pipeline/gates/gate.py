"""The protocol of gates, and the figures that they judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pipeline.core.failures import Cause
from pipeline.core.figures import SliceFigures
from pipeline.core.histograms import Distribution
from pipeline.gates.earlier_partitions import Past
from pipeline.gates.results import Finding
from pipeline.job.gates import Gates, Mode

Need = Literal["history", "reference_check", "golden", "carried"]
"""Work that a run does only for a gate: read earlier partitions; predict rows again in eager fp32;
predict golden rows; predict carried rows again."""


@dataclass(frozen=True)
class UnreadableShards:
    """Shards that could not be read to their end; the number of rows lost with them is unknown."""

    num_shards: int = 0
    num_bytes: int = 0
    """Bytes of these shards, each counted whole."""
    of_shards: int = 0
    of_bytes: int = 0
    """Of all shards of the plan."""
    example: str = ""
    """One of them, with the reason if it is known."""

    @property
    def worst_pct(self) -> float:
        """The larger of their shares of all shards and of all bytes, 0 to 100."""
        shares = (self.num_shards / max(1, self.of_shards), self.num_bytes / max(1, self.of_bytes))
        return 100.0 * max(shares)

    def describe(self, verb: str) -> str:
        """Count them in a clause; `verb` is what failed: opened, read."""
        bytes_pct = 100.0 * self.num_bytes / max(1, self.of_bytes)
        example = f", e.g. {self.example}" if self.example else ""
        return (
            f"{self.num_shards} of {self.of_shards} shards cannot be {verb}, {bytes_pct:.2f}% of "
            f"the bytes{example}"
        )


NONE_UNREADABLE = UnreadableShards()


@dataclass(frozen=True)
class Figures:
    """The figures of a run when it is judged."""

    num_planned: int
    """Rows of the plan."""
    num_predicted: int
    """Rows with a prediction."""
    num_quarantined: int
    """Rows with a reason, duplicate ids included."""
    num_shards: int
    """Input files."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Quarantined rows by reason."""
    causes: Sequence[Cause] = ()
    """The most frequent causes."""
    measured: SliceFigures = field(default_factory=SliceFigures)
    """Of all slices, including those that the run resumes."""
    distribution: Distribution = field(default_factory=Distribution)
    unreadable: UnreadableShards = NONE_UNREADABLE
    num_skipped: int = 0
    """Files below the source that are not input and perhaps should be."""
    why_empty: str = ""
    """Why there is no input; '' if there is some."""
    is_limited: bool = False
    """The job limits the rows (`run.limit_rows`)."""
    num_carried: int = 0
    """Rows whose predictions are those of earlier versions."""
    is_retry: bool = False
    """The carried rows are those of the version that is retried; none is predicted again."""
    num_checked: int = 0
    """Carried rows that were predicted again."""
    differing: Sequence[str] = ()
    """A line for each of them that differs: id, expected and predicted values."""
    computed: Distribution | None = None
    """Distribution of the predictions that this run computed, if others are carried."""
    num_computed: int = 0
    """Number of these predictions."""


class Gate(Protocol):
    """One check of a run's figures. Subclass it; a gate has no state."""

    name: str
    needs: frozenset[Need] = frozenset()
    only_worsens: bool = False
    """More rows cannot undo its failure, so a run may be refused before its end."""
    judges_computed: bool = False
    """If rows are carried, it judges only those that the run computed."""

    def mode(self, options: Gates) -> Mode:
        """Return the worst result that it may have; `off` means that it does not judge."""
        return "fail"

    def is_on(self, options: Gates) -> bool:
        """Tell whether it judges; if not, the run does nothing for its needs."""
        return self.mode(options) != "off"

    def judge(self, options: Gates, figures: Figures, past: Past) -> Finding:
        """Judge a run, whatever the mode. Pure; a value equal to its limit passes.

        Args:
            options: The section `gates` of the job.
            figures: The staged rows.
            past: Earlier publications; empty unless the gate needs `history`.
        """
        ...
