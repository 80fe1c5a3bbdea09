"""Thumbnails of encoded images, with the checks of a run but without torch."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

# The import registers the plugin, as in decode.py.
from PIL import Image, WebPImagePlugin  # noqa: F401

from pipeline.preprocessing.images.image_checks import (
    TURNS,
    DecodeLimits,
    Undecodable,
    check_container,
    check_px,
    explain,
    identified,
    orientation_of,
)

_QUALITIES = (75, 50, 25, 10)
_FLIPS = {1: Image.Transpose.FLIP_TOP_BOTTOM, 2: Image.Transpose.FLIP_LEFT_RIGHT}
"""Dimension of (3, H, W) -> Pillow's name of its flip."""


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG, and the upright size of the original image."""

    jpeg: bytes
    width_px: int
    height_px: int


def make_thumbnail(data: bytes, limits: DecodeLimits, side_px: int, max_bytes: int) -> Thumbnail:
    """Decode an image and reduce it.

    Args:
        data: The encoded image.
        limits: Size limits, checked before decoding.
        side_px: The most pixels of its longer side.
        max_bytes: Quality is lowered as far as possible to stay below.

    Raises:
        Undecodable: The bytes are not a whole image of an accepted format within the limits.
    """
    format_name = identified(data, limits)
    try:
        return _make(format_name, data, limits, side_px, max_bytes)
    except Undecodable:
        raise
    except Exception as error:
        raise explain(error, format_name, data) from error


def _make(
    format_name: str, data: bytes, limits: DecodeLimits, side_px: int, max_bytes: int
) -> Thumbnail:
    check_container(format_name, data, limits)
    with Image.open(io.BytesIO(data), formats=(format_name,)) as image:
        check_px(*image.size, limits)
        if format_name == "PNG":
            image.verify()
    with Image.open(io.BytesIO(data), formats=(format_name,)) as image:
        size_px = image.size
        if format_name == "JPEG":
            image.draft("RGB", (2 * side_px, 2 * side_px))
        image.load()  # before the orientation, for which Pillow loads some images and hides errors
        size_px = size_px if format_name == "JPEG" else image.size  # loading turns a TIFF
        orientation = orientation_of(image)
        if image.mode.startswith("I;16"):
            small = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        else:
            small = image.convert("RGB")
    small.thumbnail((side_px, side_px))
    is_swapped, flips = TURNS.get(orientation, (False, ()))
    if is_swapped:
        small, size_px = small.transpose(Image.Transpose.TRANSPOSE), size_px[::-1]
    for dimension in flips:
        small = small.transpose(_FLIPS[dimension])
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= max_bytes:
            break
    return Thumbnail(buffer.getvalue(), *size_px)
