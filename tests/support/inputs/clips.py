"""Audio clips made by arithmetic."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import soundfile

RATE_HZ = 16_000


def tone(duration_s: float = 0.5, hz: float = 440.0, rate_hz: int = RATE_HZ) -> Any:
    """float32 (T,): a tone that swells, so that no two parts of it are alike."""
    seconds = np.arange(round(duration_s * rate_hz)) / rate_hz
    return (0.4 * np.sin(2 * np.pi * hz * seconds) * (0.2 + seconds / 4)).astype(np.float32)


def encoded(samples: Any, format_name: str = "WAV", rate_hz: int = RATE_HZ, **how: Any) -> bytes:
    """A file of samples (T,) or (T, channels); `how` are arguments of soundfile, as `subtype`."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=format_name, **how)
    return file.getvalue()
