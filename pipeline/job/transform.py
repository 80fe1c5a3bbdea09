"""The job file's section `transform`: how an image becomes model input."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ValidationInfo, field_validator

from pipeline.job.section import PositiveInt, Section

Triple = tuple[float, float, float]


_CHANNELS = ("red", "green", "blue")


class Transform(Section):
    """How a decoded image becomes model input; what is left out comes from the model."""

    size_px: PositiveInt | None = None
    """Side of the square centre crop that the model sees."""
    resize_px: PositiveInt | None = None
    """The shorter side is resized to this before the crop."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Resampling filter, with antialiasing."""
    mean: Triple | None = None
    """Channel means in [0, 1], subtracted on the device."""
    std: Triple | None = None
    """Channel standard deviations in [0, 1], divided by on the device."""
    shrink_on_load: bool | None = None
    """Let the JPEG decoder itself halve large photos, as often as twice `resize_px` is left: far
    faster, and other pixels. The run measures first whether its predictions agree (see `gates`)."""
    jpeg_decoder: Literal["cpu", "gpu"] | None = None
    """What decodes JPEGs; left out: `cpu`. `gpu`: the model's GPU, with nvJPEG; its pixels are a
    little different, which is measured as for `shrink_on_load`. What nvJPEG does not take (other
    formats, grey, CMYK, turned by EXIF, damaged) is decoded on the CPU as ever. Experimental:
    `gpu` has never run on a real GPU."""

    @field_validator("size_px", "resize_px", mode="before")
    @classmethod
    def _one_side(cls, size: Any) -> Any:
        if isinstance(size, list | tuple):
            raise ValueError("expected one whole number: only squares are supported")
        return size

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _of_three_channels(cls, values: Any) -> Any:
        if isinstance(values, list | tuple) and len(values) != len(_CHANNELS):
            numbers = "number" if len(values) == 1 else "numbers"
            raise ValueError(
                f"has {len(values)} {numbers}, needs 3 ({', '.join(_CHANNELS)}); models of other "
                "channels are not supported"
            )
        # What passed a function counts as Python, in which a strict tuple has to be one.
        return tuple(values) if isinstance(values, list) else values

    @field_validator("mean", "std")
    @classmethod
    def _from_0_to_1(cls, values: Triple | None, info: ValidationInfo) -> Triple | None:
        if values is not None and not all(0 <= value <= 1 for value in values):
            raise ValueError(f"{info.field_name} is on the scale 0 to 1: divide by 255")
        if values is not None and info.field_name == "std" and min(values) == 0:
            raise ValueError("std divides, so its values must be above 0")
        return values
