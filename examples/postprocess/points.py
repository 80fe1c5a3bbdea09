"""Lists of any length: the peaks of the heat map that a model which counts gives.

The job says `task: raw`, `outputs: [{name: heat, shape: [64, 64]}]` and
`postprocess: points:Points`. A row without a peak has an empty list; null is what failed.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

POINT = pa.struct([("x", pa.int32()), ("y", pa.int32()), ("score", pa.float32())])


class Points:
    """Column `points`: the peaks of a heat map above a threshold, in pixels of the map."""

    schema = pa.schema([("points", pa.list_(POINT))])

    def __init__(self, threshold: float = 0.5) -> None:
        """Take the score that a peak must exceed."""
        self.threshold = threshold

    def __call__(self, outputs: dict[str, np.ndarray]) -> dict[str, list]:
        """Return a list of points for each row."""
        return {"points": [self.peaks(heat) for heat in outputs["heat"]]}  # (N, H, W)

    def peaks(self, heat: np.ndarray) -> list[dict]:
        """Find the pixels that no neighbour exceeds."""
        padded = np.pad(heat, 1, constant_values=-np.inf)
        around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).max(axis=(2, 3))
        ys, xs = np.nonzero((heat >= around) & (heat > self.threshold))
        scores = heat[ys, xs]
        return [{"x": x, "y": y, "score": s} for x, y, s in zip(xs, ys, scores, strict=True)]
