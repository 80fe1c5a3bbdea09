"""Settings by which a clip becomes model input; read by the driver, so without torch.

Feature extractors are classes of the installed transformers; a model directory has their options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

from pipeline.core.errors import JobError

USUAL_MAX_S = 30.0
USUAL_LONG_S = 600.0
"""The same of models that read a clip in windows. Features of an hour take 200 MB, and five times
that while they are computed."""
NORMALISED = "Wav2Vec2FeatureExtractor"
"""The extractor whose features are the samples, normalised or not."""


@dataclass(frozen=True)
class AudioSettings:
    """How a clip becomes model input."""

    sample_rate_hz: int
    max_s: float
    extractor: str = ""
    """`NORMALISED`, another class of transformers whose features have a fixed shape, or '' for the
    plain samples."""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Arguments of the extractor: JSON values."""
    shape: tuple[int, ...] = ()
    """Shape of a clip's features; () for one number per sample."""
    window_s: float | None = None
    """Length of the clip that `shape` has room for, if a longer one has features of its own length
    on the last axis; None: there is no longer one."""

    @property
    def has_one_shape(self) -> bool:
        """Tell whether the features of all clips have `shape`."""
        return bool(self.shape) and self.window_s is None

    @property
    def max_samples(self) -> int:
        """The most samples of a clip at the model's rate."""
        return int(self.max_s * self.sample_rate_hz)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; equal settings give equal JSON."""
        values = {**asdict(self), "shape": [*self.shape]}
        if self.window_s is None:
            del values["window_s"]
        return values


def require_decoders() -> None:
    """Check that the libraries of the extra are installed.

    Raises:
        JobError: Names the extra.
    """
    for name in ("soundfile", "soxr"):
        if find_spec(name) is None:
            raise JobError(
                f"source: package {name} is missing; clips of sound need the extra: "
                "pip install 'batch-inference-pipeline[audio]'"
            )
