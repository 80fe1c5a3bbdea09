"""Masks of a segmentation model whose `forward` ends with `.argmax(dim=1)`, a map of class ids.

The job says `task: raw`, `outputs: [{name: mask, shape: [256, 256]}]`,
`postprocess: masks:Masks` and `postprocess_args: {class_id: 15}`.
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
from PIL import Image


class Masks:
    """Columns `mask`: a PNG of class ids; `counts`: the run lengths of one class.

    Run lengths are those of COCO, as `pycocotools` reads them: down the columns, zeros first.
    """

    schema = pa.schema([("mask", pa.binary()), ("counts", pa.list_(pa.int32()))])

    def __init__(self, class_id: int) -> None:
        """Take the class whose run lengths are written."""
        self.class_id = class_id

    def __call__(self, outputs: dict[str, np.ndarray]) -> dict[str, list]:
        """Return a value for each row of each column."""
        masks = outputs["mask"].astype(np.uint8)  # (N, H, W)
        return {
            "mask": [png(mask) for mask in masks],
            "counts": [run_lengths(mask == self.class_id) for mask in masks],
        }


def png(mask: np.ndarray) -> bytes:
    """Encode a map of class ids."""
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()


def run_lengths(mask: np.ndarray) -> np.ndarray:
    """Count zeros, ones, zeros and so on, down the columns."""
    pixels = mask.ravel(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(pixels, prepend=0))
    return np.diff([0, *changes, pixels.size])
