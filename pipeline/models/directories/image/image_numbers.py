"""Numbers of image processors, as JSON files hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.core.errors import JobError
from pipeline.models.directories.json_files import preview

_MAX_PX = 1 << 16
_MAX_NUMBER = 1e12
"""Of means, deviations and factors, which are multiplied with each other: none becomes infinite."""
_LEAST_RATIO = 0.01
_WORDS = {1: "one number", 3: "three numbers"}


def channels(values: Mapping[str, Any], key: str, where: str, count: int = 3) -> tuple[float, ...]:
    """Return one number per channel of an object; a single number is that of all channels.

    Raises:
        JobError: It is not so many numbers.
    """
    found = values.get(key)
    found = [found] * count if isinstance(found, int | float) else found
    if not isinstance(found, list) or len(found) != count:
        raise JobError(
            f"model.path: {where}: {key} is {preview(found)}, expected {_WORDS.get(count, count)}"
        )
    return tuple(number(value, key, where, least=None) for value in found)


def scaled(values: Sequence[float], scale: float) -> tuple[float, ...]:
    """Return values divided by a number."""
    return tuple(value / scale for value in values) if scale != 1 else tuple(values)


def number(value: Any, key: str, where: str, least: float | None = 0.0) -> float:
    """Return a number above `least`; None: any.

    Raises:
        JobError: It is something else.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= _MAX_NUMBER or (least is not None and value <= least):
        raise JobError(f"model.path: {where}: {key} is {preview(value)}, expected a number above 0")
    return float(value)


def crop_ratio(value: Any, where: str) -> float:
    """Return the share of an image's side that a crop keeps, `crop_pct`.

    Raises:
        JobError: It is no number, or one that makes a size without bounds.
    """
    found = number(value, "crop_pct", where)
    if not _LEAST_RATIO <= found <= 1 / _LEAST_RATIO:
        raise JobError(
            f"model.path: {where}: crop_pct is {preview(value)}, expected {_LEAST_RATIO} to "
            f"{1 / _LEAST_RATIO:g}"
        )
    return found


def whole_px(value: Any, key: str, where: str) -> int:
    """Return a number of pixels.

    Raises:
        JobError: It is something else.
    """
    if type(value) is not int or not 0 < value < _MAX_PX:
        raise JobError(f"model.path: {where}: {key} is {preview(value)}, expected a whole number")
    return value


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
