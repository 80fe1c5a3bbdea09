"""The words of image transforms, in the job file and in a TransformSpec."""

from __future__ import annotations

from collections.abc import Mapping

RESIZES = ("shortest", "stretch", "pad", "none")
INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "lanczos")
CROP_STARTS = ("round", "floor")
CHANNELS: Mapping[str, int] = {"rgb": 3, "gray": 1}
"""Name of the channels -> how many."""

ONLY_WITH: Mapping[str, tuple[str, ...]] = {
    "resize_px": ("shortest", "stretch", "pad"),
    "interpolation": ("shortest", "stretch", "pad"),
    "shrink_on_load": ("shortest", "stretch", "pad"),
    "pad_value": ("pad", "none"),
}
"""Field -> the kinds of `resize` with which it has an effect; the other fields always have one."""

REPLACED_BY_FACTORY = (
    *("resize", "resize_px", "interpolation", "pad_value", "channels", "shrink_on_load"),
)
"""Fields that have no effect with a `factory`, which does with a decoded image what they say."""
MAX_CHANNELS = 4
"""Most channels of what a factory returns."""
