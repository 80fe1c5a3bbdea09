"""Where the model input of a slice's images is collected: one buffer, or an array per row."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline.core.arrays import images_to_arrow, sized_to_arrow
from pipeline.core.schema import IMAGE, IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX
from pipeline.preprocessing.images.transform import TransformSpec


class Pixels(Protocol):
    """The model input of N images; rows that were never put have none."""

    def put(self, row: int, image: torch.Tensor) -> int:
        """Copy the model input of a row, uint8 (C, H, W); return its bytes."""
        ...

    def columns(self) -> dict[str, pa.Array]:
        """Return the columns of `ImageInput.fields` that hold the images."""
        ...


class OneSize:
    """Images of one size, in one buffer."""

    def __init__(self, num_rows: int, shape: tuple[int, int, int]) -> None:
        """Take N, and (H, W, C) of each."""
        self.images = np.zeros((num_rows, *shape), np.uint8)

    def put(self, row: int, image: torch.Tensor) -> int:
        place: npt.NDArray[np.uint8] = self.images[row]
        np.copyto(place, image.permute(1, 2, 0).numpy())
        return place.nbytes

    def columns(self) -> dict[str, pa.Array]:
        return {IMAGE: images_to_arrow(self.images)}


class OwnSizes:
    """Images of different sizes."""

    def __init__(self, num_rows: int) -> None:
        self.images: list[npt.NDArray[np.uint8] | None] = [None] * num_rows

    def put(self, row: int, image: torch.Tensor) -> int:
        # Always a copy: the user's transform may return the same memory for the next image.
        found = np.array(image.permute(1, 2, 0).numpy(), order="C")
        self.images[row] = found
        return found.nbytes

    def columns(self) -> dict[str, pa.Array]:
        pixels, heights, widths = sized_to_arrow(self.images)
        return {IMAGE: pixels, IMAGE_HEIGHT_PX: heights, IMAGE_WIDTH_PX: widths}


def pixels_of(spec: TransformSpec, num_rows: int) -> OneSize | OwnSizes:
    """Return where the images of N rows go."""
    return OneSize(num_rows, spec.shape) if spec.has_one_size else OwnSizes(num_rows)
