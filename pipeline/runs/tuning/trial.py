"""What trying one way to run a model gave."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.core.documents import known_fields

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
