"""From pixels of the model input back to those of the original image."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.arrays import as_array
from pipeline.core.schema import GEOMETRY, HEIGHT_PX, WIDTH_PX

Values = npt.NDArray[Any]


def to_original(points: Values, rows: pa.Table, places: Values) -> Values:
    """Undo resize, crop and padding.

    Args:
        points: (E, ..., 2): x and y in pixels of the model input; x = 0 is its left edge.
        rows: N prepared rows.
        places: (E,) the row of each, not null there.

    Returns:
        float64 (E, ..., 2), in pixels of the decoded image; may lie outside of it.
    """
    column = as_array(rows.column(GEOMETRY))
    flat = column.values.slice(column.offset * 4, len(column) * 4)
    geometry = flat.to_numpy(zero_copy_only=False).reshape(-1, 4).astype(np.float64)[places]
    scale, offset = (
        part.reshape(len(places), *[1] * (points.ndim - 2), 2)
        for part in (geometry[:, :2], geometry[:, 2:])
    )
    return np.asarray((points.astype(np.float64) - offset) / scale)


def sizes_of(rows: pa.Table, places: Values) -> Values:
    """Return width and height of the original image, float64 (E, 2), of rows `places`, (E,)."""
    sizes = [
        as_array(rows.column(name)).fill_null(0).to_numpy(zero_copy_only=False)[places]
        for name in (WIDTH_PX, HEIGHT_PX)
    ]
    return np.stack(sizes, axis=1).astype(np.float64)
