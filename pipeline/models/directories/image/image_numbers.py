"""Numbers of image processors, as JSON files hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.models.directories.json_files import checked

_MAX_PX = 1 << 16
MAX_NUMBER = 1e12
"""Of means, deviations and factors, which are multiplied with each other: none becomes infinite."""
_LEAST_RATIO = 0.01


def channels(values: Mapping[str, Any], key: str, where: str, count: int = 3) -> tuple[float, ...]:
    """Return one number per channel of an object; a single number is that of all channels.

    Raises:
        JobError: It is not so many numbers.
    """
    found = values.get(key)
    found = [found] * count if isinstance(found, int | float) else found
    listed = checked(found, key, where, list, min_length=count, max_length=count)
    return tuple(checked(each, key, where, float, ge=-MAX_NUMBER, le=MAX_NUMBER) for each in listed)


def scaled(values: Sequence[float], scale: float) -> tuple[float, ...]:
    """Return values divided by a number."""
    return tuple(value / scale for value in values) if scale != 1 else tuple(values)


def crop_ratio(value: Any, where: str) -> float:
    """Return the share of an image's side that a crop keeps, `crop_pct`.

    Raises:
        JobError: It is no number, or one that makes a size without bounds.
    """
    found: float = checked(value, "crop_pct", where, float, ge=_LEAST_RATIO, le=1 / _LEAST_RATIO)
    return found


def whole_px(value: Any, key: str, where: str) -> int:
    """Return a number of pixels.

    Raises:
        JobError: It is something else.
    """
    found: int = checked(value, key, where, int, gt=0, lt=_MAX_PX)
    return found


def pair(size: Any) -> tuple[int, int] | None:
    """Return (height, width) of a size: a number, two, or an object; None if it is none."""
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")]
    elif type(size) is int:
        size = [size, size]
    if not isinstance(size, list | tuple) or len(size) != 2:
        return None
    if not all(type(side) is int and 0 < side < _MAX_PX for side in size):
        return None
    return size[0], size[1]
