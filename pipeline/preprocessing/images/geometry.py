"""The place of an image in the model input: pure functions of its size and the transform.

Coordinates are pixel edges: x = 0 is the left edge of an image, x = width_px the right one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.schema import GEOMETRY, HEIGHT_PX, WIDTH_PX
from pipeline.preprocessing.images.transform import MAX_ASPECT_RATIO, TransformSpec, sides

GEOMETRY_TYPE = pa.list_(pa.float32(), 4)
_SHRINK_TO = 2
"""The decoder shrinks to no less than this multiple of the resized side, so that the filter of the
resize still decides the pixels; Pillow's `thumbnail` uses the same multiple."""
_LEAST_MADE_PX = 1 << 24
"""A low limit on decoded images must not refuse the usual sizes of model input."""


class Placement(NamedTuple):
    """The place of the resized image in the model input, in whole pixels."""

    height_px: int
    """Height of the resized image."""
    width_px: int
    top_px: int
    """First row of the resized image in the model input; negative if rows above are cropped."""
    left_px: int


class Geometry(NamedTuple):
    """x of the model input = x of the original image * scale_x + offset_x; the same for y."""

    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float


def placement(spec: TransformSpec, width_px: int, height_px: int) -> Placement:
    """Return the place of an image of this size."""
    height, width = _resized(spec, width_px, height_px)
    if spec.size_px is None:
        return Placement(height, width, 0, 0)
    top = _centred(height, spec.height_px, spec.crop_start)
    return Placement(height, width, top, _centred(width, spec.width_px, spec.crop_start))


def made_px(spec: TransformSpec, width_px: int, height_px: int) -> int:
    """Return the pixels of the resized image or the model input, whichever is larger."""
    at = placement(spec, width_px, height_px)
    input_px = 0 if spec.size_px is None else spec.height_px * spec.width_px
    return max(at.height_px * at.width_px, input_px)


def least_made_px(spec: TransformSpec) -> int:
    """Return the least `made_px` of an image of any shape; 1 if images keep their sizes."""
    if spec.factory is not None or spec.resize == "none":
        return 1 if spec.size_px is None else spec.height_px * spec.width_px
    wanted = spec.size_px if spec.resize_px is None else spec.resize_px
    height_px, width_px = sides(wanted or 1)
    # Shapes between the model's own and the longest ones have more pixels.
    shapes = [(width_px, height_px), (1, 1), (MAX_ASPECT_RATIO, 1), (1, MAX_ASPECT_RATIO)]
    return min(made_px(spec, width, height) for width, height in shapes)


def most_made_px(max_image_px: int) -> int:
    """Return the limit of `made_px`, given the limit of decoded images."""
    return max(max_image_px, _LEAST_MADE_PX)


def geometry(spec: TransformSpec, width_px: int, height_px: int) -> Geometry:
    """Return how coordinates in an image of this size map to the model input."""
    at = placement(spec, width_px, height_px)
    return Geometry(at.width_px / width_px, at.height_px / height_px, at.left_px, at.top_px)


def shrink_factor(spec: TransformSpec, width_px: int, height_px: int) -> int:
    """Return the divisor that a decoder may use for a photo of this size: 1, 2, 4 or 8.

    The decoded photo has at least twice the resized size.
    """
    at = placement(spec, width_px, height_px)
    for factor in (8, 4, 2):
        height, width = height_px // factor, width_px // factor
        if spec.resize == "stretch":
            is_enough = height >= _SHRINK_TO * at.height_px and width >= _SHRINK_TO * at.width_px
        elif isinstance(spec.resize_px, int) and spec.resize == "shortest":
            is_enough = min(height, width) >= _SHRINK_TO * spec.resize_px
        else:  # one side decides, and the other is rounded
            is_enough = height >= _SHRINK_TO * at.height_px or width >= _SHRINK_TO * at.width_px
        if is_enough and spec.resize != "none":
            return factor
    return 1


def _resized(spec: TransformSpec, width_px: int, height_px: int) -> tuple[int, int]:
    """Return (height, width) after the resize."""
    wanted = spec.size_px if spec.resize_px is None else spec.resize_px
    if spec.resize == "none" or wanted is None:
        return height_px, width_px
    if spec.keeps_shape and isinstance(wanted, tuple):
        return _within(height_px, width_px, *wanted)
    if spec.resize == "shortest" and isinstance(wanted, int):  # as torchvision, rounded down
        long_px = int(wanted * max(height_px, width_px) / min(height_px, width_px))
        return (long_px, wanted) if width_px <= height_px else (wanted, long_px)
    height, width = sides(wanted)
    if spec.resize == "stretch":
        return height, width
    # As timm, and the letterbox of detectors: rounded to the nearest integer.
    ratios = height_px / height, width_px / width
    ratio = max(ratios) if spec.resize == "pad" else min(ratios)
    return max(1, round(height_px / ratio)), max(1, round(width_px / ratio))


def _within(height_px: int, width_px: int, shorter_px: int, longest_px: int) -> tuple[int, int]:
    """Return (height, width) with the shorter side given, unless the longer one becomes too long.

    As the detectors of transformers: `get_size_with_aspect_ratio`.
    """
    short, long = sorted((height_px, width_px))
    exact: float = shorter_px
    if long / short * shorter_px > longest_px:
        exact = longest_px * short / long
        shorter_px = max(1, round(exact))
    longer_px = long if short == shorter_px else int(exact * long / short)
    return (longer_px, shorter_px) if width_px < height_px else (shorter_px, longer_px)


def _centred(length_px: int, wanted_px: int, crop_start: str) -> int:
    """Return the offset of a centred image in the model input, as torchvision's CenterCrop.

    An odd padding has one pixel more on the right and below.
    """
    if length_px <= wanted_px:
        return (wanted_px - length_px) // 2
    rest_px = length_px - wanted_px
    return -(rest_px // 2 if crop_start == "floor" else round(rest_px / 2))


@dataclass
class Sizes:
    """The sizes of the images of a slice, and their places in the model input."""

    num_rows: int
    sizes_px: npt.NDArray[np.int32] = field(init=False)
    """(N, 2): width and height; 0 if unknown."""
    places: npt.NDArray[np.float32] = field(init=False)
    """(N, 4): scale_x, scale_y, offset_x, offset_y; scales are 0 if unknown."""

    def __post_init__(self) -> None:
        self.sizes_px = np.zeros((self.num_rows, 2), np.int32)
        self.places = np.zeros((self.num_rows, 4), np.float32)

    def put(
        self, row: int, spec: TransformSpec, size_px: tuple[int, int], decoded_px: tuple[int, int]
    ) -> None:
        """Note the size of an image.

        Args:
            row: Row number in the slice.
            spec: The transform.
            size_px: Width and height of the image.
            decoded_px: Width and height after decoding, smaller if the decoder has shrunk it.
        """
        self.sizes_px[row] = size_px
        if spec.factory is not None:  # only the user's code knows the place
            return
        (width_px, height_px), (decoded_width_px, decoded_height_px) = size_px, decoded_px
        placed = geometry(spec, decoded_width_px, decoded_height_px)
        self.places[row] = (
            placed.scale_x * decoded_width_px / width_px,
            placed.scale_y * decoded_height_px / height_px,
            placed.offset_x,
            placed.offset_y,
        )

    def columns(self) -> dict[str, pa.Array]:
        """Return `width_px`, `height_px` and GEOMETRY, null if unknown."""
        is_unknown, is_nowhere = self.sizes_px[:, 0] == 0, self.places[:, 0] == 0
        places = pa.FixedSizeListArray.from_arrays(
            pa.array(self.places.reshape(-1)), type=GEOMETRY_TYPE, mask=pa.array(is_nowhere)
        )
        return {
            WIDTH_PX: pa.array(self.sizes_px[:, 0], mask=is_unknown),
            HEIGHT_PX: pa.array(self.sizes_px[:, 1], mask=is_unknown),
            GEOMETRY: places,
        }
