"""What an image processor's config says, as the transform of this package.

A config that asks for another way to resize gives no transform, but a text that says so: the job
can give the fields itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import JobError
from pipeline.models.directories.json_files import flag, read_object, shown
from pipeline.preprocessing.transform import TransformSpec

PROCESSOR = "preprocessor_config.json"
BOTH = "processor_config.json"
"""Newer releases put the processors of images and texts into one file."""
_FILTERS = {2: "bilinear", 3: "bicubic"}
"""Numbers of Pillow."""
_WARPED_FROM_PX = 384
"""ConvNeXt's processor does not crop from this size on."""
_RGB = 3


class _CannotDo(Exception):
    """The transform has no such step; the text says which."""


def read_transform(folder: Path, at: str = "") -> tuple[TransformSpec | None, str | None, str]:
    """Read the transform of a snapshot.

    Returns:
        The transform, or None with why there is none and what the job can give; and the file.

    Raises:
        JobError: The file is damaged.
    """
    where, values = _processor(folder, at)
    if not values:
        return None, f"no {PROCESSOR}: give the fields of transform", where
    try:
        return _spec(values, where), None, where
    except _CannotDo as error:
        return None, f"{where}: {error}", where


def _processor(folder: Path, at: str) -> tuple[str, Mapping[str, Any]]:
    both = read_object(folder, at + BOTH, optional=True).get("image_processor")
    if isinstance(both, dict):
        return at + BOTH, both
    return at + PROCESSOR, read_object(folder, at + PROCESSOR, optional=True)


def _spec(values: Mapping[str, Any], where: str) -> TransformSpec:
    factor = 1.0
    if flag(values, "do_rescale", where, True):
        factor = _number(values.get("rescale_factor", 1 / 255), "rescale_factor", where)
    mean, std = (0.0,) * _RGB, (1.0,) * _RGB
    if flag(values, "do_normalize", where, True):
        mean, std = channels(values, "image_mean", where), channels(values, "image_std", where)
    # Pixels are divided by 255 here; theirs are multiplied by the factor.
    scale = 255 * factor
    mean, std = _scaled(mean, scale), _scaled(std, scale)
    if not flag(values, "do_resize", where, True):
        raise _CannotDo(f"do_resize is false, so images have any size; {_give(224, mean, std)}")
    size_px, resize_px = _sizes(values, where, mean, std)
    resample = values.get("resample")
    if resample not in _FILTERS:
        raise _CannotDo(
            f"resample is {shown(resample)}, expected 2 (bilinear) or 3 (bicubic); "
            f"{_give(size_px, mean, std)}"
        )
    return make_spec(
        where,
        size_px=size_px,
        resize_px=resize_px,
        interpolation=_FILTERS[resample],
        mean=mean,
        std=std,
    )


def make_spec(where: str, **values: Any) -> TransformSpec:
    """Make the transform that a file describes.

    Raises:
        JobError: Its values cannot be.
    """
    try:
        return TransformSpec(**values)
    except ValueError as error:
        raise JobError(f"model.path: {where}: {error}") from None


def _sizes(
    values: Mapping[str, Any], where: str, mean: Sequence[float], std: Sequence[float]
) -> tuple[int, int]:
    """Return size_px and resize_px."""
    kind = str(values.get("image_processor_type") or values.get("feature_extractor_type") or "")
    size = values.get("size")
    shortest = size.get("shortest_edge") if isinstance(size, dict) else None
    if isinstance(size, int) and kind.startswith(("CLIP", "ConvNext", "ConvNeXt")):
        shortest = size
    crops = flag(values, "do_center_crop", where, False)
    if shortest is None or (isinstance(size, dict) and len(size) > 1):
        square = _square(size)
        raise _CannotDo(
            f"size {shown(size)} stretches images; {_give(square or 224, mean, std)} "
            "crops the centre instead"
        )
    shortest = _whole(shortest, "size", where)
    if kind.startswith(("ConvNext", "ConvNeXt")):
        if shortest >= _WARPED_FROM_PX:
            raise _CannotDo(
                f"size {shown(size)} stretches images from {_WARPED_FROM_PX} px on; "
                f"{_give(shortest, mean, std)} crops the centre instead"
            )
        ratio = _number(values.get("crop_pct", 224 / 256), "crop_pct", where)
        return shortest, int(shortest / ratio)
    crop = values.get("crop_size")
    if not crops:
        raise _CannotDo(
            f"do_center_crop is false, so images have any size; {_give(shortest, mean, std)}"
        )
    size_px = _square(crop)
    if size_px is None:
        raise _CannotDo(
            f"crop_size is {shown(crop)}, expected a square; {_give(shortest, mean, std)}"
        )
    if size_px > shortest:
        raise _CannotDo(
            f"crop_size {size_px} is larger than size {shortest}; {_give(shortest, mean, std)}"
        )
    return size_px, shortest


def _square(size: Any) -> int | None:
    if isinstance(size, dict):
        height, width = size.get("height"), size.get("width")
        return height if type(height) is int and height == width and height > 0 else None
    return size if type(size) is int and size > 0 else None


def _give(size_px: int, mean: Sequence[float], std: Sequence[float]) -> str:
    """Return the fields that a job can give instead."""
    return (
        f"give the fields of transform: size_px: {size_px}, resize_px: {size_px}, interpolation: "
        f"bilinear, mean: {_short(mean)}, std: {_short(std)}"
    )


def _short(values: Sequence[float]) -> list[float]:
    return [round(value, 6) for value in values]


def channels(values: Mapping[str, Any], key: str, where: str) -> tuple[float, float, float]:
    """Return one number per channel of an object.

    Raises:
        JobError: It is not three numbers.
    """
    found = values.get(key)
    found = [found] * _RGB if isinstance(found, int | float) else found
    if not isinstance(found, list) or len(found) != _RGB:
        raise JobError(f"model.path: {where}: {key} is {shown(found)}, expected three numbers")
    first, second, third = (_number(value, key, where, least=None) for value in found)
    return first, second, third


def _scaled(values: Sequence[float], scale: float) -> tuple[float, ...]:
    return tuple(value / scale for value in values) if scale != 1 else tuple(values)


def _number(value: Any, key: str, where: str, least: float | None = 0.0) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or (least is not None and value <= least):
        raise JobError(f"model.path: {where}: {key} is {shown(value)}, expected a number above 0")
    return float(value)


def _whole(value: Any, key: str, where: str) -> int:
    if type(value) is not int or not 0 < value < 1 << 16:
        raise JobError(f"model.path: {where}: {key} is {shown(value)}, expected a whole number")
    return value
