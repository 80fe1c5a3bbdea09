"""What trying one way to run a model gave."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Trial:
    """What one way to run the model gave."""

    runtime: str
    precision: str
    rows_per_s: float = 0.0
    """Of one actor alone, the model only."""
    load_s: float = 0.0
    """Until it was ready, compiling included."""
    agreement_pct: float = 0.0
    """Share of the sampled rows that agree with eager fp32."""
    worst: float = 0.0
    """Largest difference of scores, smallest cosine, or largest relative error."""
    artefact_sha256: str = ""
    """Precision int8: the calibrated model that was tried."""
    problem: str = ""
    """Why it cannot be used; '' if it can."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
