"""What a clip of sound becomes: the settings. The driver reads them, so nothing here imports torch.

The classes of feature extractors are those of the installed transformers; a model directory gives
their numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

from pipeline.core.errors import JobError

USUAL_MAX_S = 30.0
NORMALISED = "Wav2Vec2FeatureExtractor"
"""The extractor whose features are the samples themselves, normalised or not."""


@dataclass(frozen=True)
class AudioSettings:
    """How a clip becomes model input."""

    sample_rate_hz: int
    max_s: float
    extractor: str = ""
    """`NORMALISED`, a class of transformers whose features have one shape, whatever the length of
    the clip, or '': the samples as they are."""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Arguments of the extractor: JSON values."""
    shape: tuple[int, ...] = ()
    """Of the features of a clip; (): one number per sample, as many as the clip has."""

    @property
    def max_samples(self) -> int:
        """Return the most samples of a clip at the model's rate."""
        return int(self.max_s * self.sample_rate_hz)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; equal settings give equal JSON."""
        return {**asdict(self), "shape": [*self.shape]}


def require_decoders() -> None:
    """Refuse clips where the libraries of the extra are not installed.

    Raises:
        JobError: Names the extra.
    """
    for name in ("soundfile", "soxr"):
        if find_spec(name) is None:
            raise JobError(
                f"source: package {name} is missing; clips of sound need the extra: "
                "pip install 'batch-inference-pipeline[audio]'"
            )
