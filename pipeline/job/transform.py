"""The job file's sections `transform`, `text` and `audio`: how a row becomes model input.

Whether fields of `transform` go together is known with those of the model: `TransformSpec`
tells.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from pipeline.job.section import PositiveInt, Section

Pair = tuple[int, int]


class Transform(Section):
    """How a decoded image becomes model input; what is left out comes from the model."""

    size_px: PositiveInt | Pair | None = None
    """What the model sees: the side of a square, or `[height, width]`."""
    resize: Literal["shortest", "stretch", "pad", "none"] | None = None
    """How an image comes to that size; left out: what the model says, otherwise `shortest`.
    `shortest`: the shorter side is resized to `resize_px`, and the centre cropped. `stretch`: both
    sides are resized, whatever the aspect ratio. `pad` (a letterbox): the image is resized until it
    just fits, and `pad_value` is around it. `none`: nothing is resized; the centre is cropped, and
    `pad_value` is around smaller images."""
    resize_px: PositiveInt | Pair | None = None
    """`shortest`: what the shorter side is resized to before the crop; `[height, width]`: what the
    image covers. `stretch`, `pad`: what it is resized to if that is not `size_px`, to which it is
    then cropped or filled up."""
    pad_value: int | tuple[int, ...] | None = None
    """`pad`, `none`: what is around the image, 0 to 255, for all channels or a list with one for
    each; left out: 0, black."""
    interpolation: Literal["nearest", "nearest-exact", "bilinear", "bicubic", "lanczos"] | None = (
        None
    )
    """Resampling filter: torchvision's, with antialiasing; `lanczos` is Pillow's. `nearest-exact`
    is what Pillow calls nearest."""
    channels: Literal["rgb", "gray"] | None = None
    """What the model sees of colours; left out: what the model says, otherwise `rgb`. `gray`: one
    channel, as Pillow converts to mode `L`."""
    factory: str | None = None
    """`package.module:callable` returning your own transform, torchvision v2 included; its prefix
    must be allowed. It is called with a decoded image, a uint8 tensor (3, height, width), and
    returns a uint8 tensor (channels, height, width) of `size_px`; without `size_px`, of the model's
    size, or of any size if the model says none. Besides `size_px`, `mean` and `std` no other field
    has an effect."""
    args: dict[str, JsonValue] = Field(default_factory=dict)
    """Arguments of `factory`, by name: numbers, text, true and false, lists, mappings."""
    mean: tuple[float, ...] | None = None
    """Means in [0, 1], one per channel, subtracted on the device."""
    std: tuple[float, ...] | None = None
    """Standard deviations in [0, 1], one per channel, divided by on the device."""
    shrink_on_load: bool | None = None
    """Let the JPEG decoder itself halve large photos, as often as twice the resized size is left:
    far faster, and other pixels. The run measures first whether its predictions agree (see
    `gates`)."""

    @property
    def may_vary(self) -> bool:
        """Tell whether the model may see images of different sizes; else the model says one."""
        return self.size_px is None and (self.factory is not None or self.resize == "none")

    @field_validator("size_px", "resize_px", mode="before")
    @classmethod
    def _one_or_two_sides(cls, size: Any) -> Any:
        is_pair = isinstance(size, list | tuple) and len(size) == 2
        sides = [*size] if is_pair else [size]
        if size is not None and not all(type(side) is int and side > 0 for side in sides):
            raise ValueError("expected a whole number above 0, or two: [height, width]")
        # What passed a function counts as Python, in which a strict tuple has to be one.
        return tuple(size) if is_pair else size

    @field_validator("pad_value", mode="before")
    @classmethod
    def _bytes(cls, value: Any) -> Any:
        values = value if isinstance(value, list | tuple) else [value]
        if value is not None and not all(type(v) is int and 0 <= v <= 255 for v in values):
            raise ValueError("expected a whole number from 0 to 255, or one per channel")
        return tuple(value) if isinstance(value, list) else value

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _per_channel(cls, values: Any) -> Any:
        return tuple(values) if isinstance(values, list) else values

    @field_validator("mean", "std")
    @classmethod
    def _from_0_to_1(
        cls, values: tuple[float, ...] | None, info: ValidationInfo
    ) -> tuple[float, ...] | None:
        if values is not None and not all(0 <= value <= 1 for value in values):
            raise ValueError(f"{info.field_name} is on the scale 0 to 1: divide by 255")
        if values is not None and info.field_name == "std" and min(values, default=1) == 0:
            raise ValueError("std divides, so its values must be above 0")
        return values

    @model_validator(mode="after")
    def _args_of_factory(self) -> Transform:
        if self.args and self.factory is None:
            raise ValueError("args has no effect without factory")
        return self


class Text(Section):
    """How texts become tokens; what is left out comes from the model directory."""

    max_tokens: PositiveInt | None = None
    """A row with more tokens, special ones included, is cut to this and marked as `truncated`;
    left out: what the model directory says."""
    prefix: str | None = Field(default=None, max_length=10_000)
    """Put before each text, as in `"query: "`; left out: the default prompt of the directory, which
    `""` leaves out."""
    tokenizer: str | None = None
    """URI of a `tokenizer.json`; left out: the one in the model directory."""


class Audio(Section):
    """How clips of sound become model input; what is left out comes from the model directory."""

    sample_rate_hz: PositiveInt | None = None
    """Samples per second that the model hears; clips of another rate are resampled. For models of
    your own: a model directory says its rate, and takes no other."""
    max_s: Annotated[float, Field(gt=0, le=3600)] | None = None
    """A longer clip is quarantined as `too_large`, before it is decoded if its header says so; none
    is cut. Left out: 30, or what the model hears at most if that is less."""
