"""Columns of the outputs that classes of transformers have: segments, depths, points.

The job says `task: raw`, and, for instance, `postprocess: of_library:Segments`; the outputs have
the names of the class's own, which `pipeline plan` shows with their shapes.
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
from PIL import Image

POINT = pa.struct([("x", pa.float32()), ("y", pa.float32()), ("score", pa.float32())])


def png(values: np.ndarray) -> bytes:
    """Encode a map of 8 or 16 bits."""
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


class Segments:
    """Of `...ForSemanticSegmentation`: a PNG of class ids, in pixels of the model's output."""

    schema = pa.schema([("segments", pa.binary())])

    def __call__(self, outputs: dict[str, np.ndarray]) -> dict[str, list]:
        """Return a value for each row."""
        ids = outputs["logits"].argmax(axis=1).astype(np.uint8)  # (N, labels, H, W) -> (N, H, W)
        return {"segments": [png(row) for row in ids]}


class Depth:
    """Of `...ForDepthEstimation`: a PNG of 8 bits, white the largest, and both ends in its unit."""

    schema = pa.schema([("depth", pa.binary()), ("least", pa.float32()), ("most", pa.float32())])

    def __call__(self, outputs: dict[str, np.ndarray]) -> dict[str, list]:
        """Return a value for each row of each column."""
        depth = outputs["predicted_depth"]  # (N, H, W)
        least, most = depth.min(axis=(1, 2)), depth.max(axis=(1, 2))
        levels = (depth - least[:, None, None]) / np.maximum(most - least, 1e-9)[:, None, None]
        maps = [png(row) for row in np.rint(levels * 255).astype(np.uint8)]
        return {"depth": maps, "least": least, "most": most}


class Points:
    """Of `...ForPoseEstimation`: the peak of each heat map, as shares of the model's image."""

    schema = pa.schema([("points", pa.list_(POINT))])

    def __call__(self, outputs: dict[str, np.ndarray]) -> dict[str, list]:
        """Return a list of points for each row."""
        maps = outputs["heatmaps"]  # (N, points, H, W)
        (height, width), flat = maps.shape[2:], maps.reshape(*maps.shape[:2], -1)
        ys, xs = np.divmod(flat.argmax(axis=2), width)
        columns = (xs / (width - 1), ys / (height - 1), flat.max(axis=2))
        return {"points": [[*map(dict, named(row))] for row in np.stack(columns, axis=-1)]}


def named(points: np.ndarray) -> list[zip]:
    """Name the numbers of points (P, 3)."""
    return [zip(("x", "y", "score"), point, strict=True) for point in points.tolist()]
