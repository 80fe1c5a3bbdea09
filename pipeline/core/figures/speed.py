"""How fast a run was, as the manifest keeps it for comparisons with later runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.core.documents import known_fields


@dataclass(frozen=True)
class Speed:
    """The stream of one run: what it reached, for how long, and on what."""

    rows_per_s: float
    """Rows computed over `streaming_s`."""
    streaming_s: float
    """From the first read to the last write."""
    model: str
    """Name, runtime and precision."""
    hardware: str
    """Nodes, CPUs and GPUs."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Speed | None:
        """Return what `to_dict` gave; None for {}, which stands for a run that computed nothing."""
        return cls(**known_fields(cls, document)) if document else None

    def is_like(self, other: Speed) -> bool:
        """Tell whether the same model ran on the same hardware."""
        return (self.model, self.hardware) == (other.model, other.hardware)
