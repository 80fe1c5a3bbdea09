"""Sections `transform`, `text` and `audio` of the job file: how a row becomes model input.

`TransformSpec` checks the fields of `transform` together with those of the model.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from pipeline.job.section import PositiveInt, Section

Pair = tuple[int, int]


class Transform(Section):
    """How a decoded image becomes model input. Fields that are not set come from the model."""

    size_px: PositiveInt | Pair | None = None
    """Size of the model input: the side of a square, or `[height, width]`."""
    resize: Literal["shortest", "stretch", "pad", "none"] | None = None
    """How an image is brought to that size. Default: what the model specifies, otherwise
    `shortest`. `shortest`: resize the shorter side to `resize_px`, then crop the centre. `stretch`:
    resize both sides, regardless of aspect ratio. `pad` (letterbox): resize until the image just
    fits, and fill the rest with `pad_value`. `none`: do not resize; crop the centre, and surround
    smaller images with `pad_value`."""
    resize_px: PositiveInt | Pair | None = None
    """`shortest`: length of the shorter side before the crop; `[height, width]`: the size that the
    image must cover. `stretch`, `pad`: the size to resize to if it is not `size_px`; the image is
    then cropped or padded to `size_px`."""
    pad_value: int | tuple[int, ...] | None = None
    """`pad`, `none`: value of the padding, 0 to 255, for all channels or as a list with one per
    channel. Default: 0, black."""
    interpolation: (
        Literal["nearest", "nearest-exact", "bilinear", "bilinear-plain", "bicubic", "lanczos"]
        | None
    ) = None
    """Resampling filter: torchvision's, with antialiasing; `lanczos` is Pillow's. `nearest-exact`
    is what Pillow calls nearest; `bilinear-plain` has no antialiasing, as OpenCV's linear."""
    channels: Literal["rgb", "bgr", "gray"] | None = None
    """Colour channels of the model input, in their order. Default: what the model specifies,
    otherwise `rgb`. `gray`: one channel, as in Pillow's mode `L`."""
    factory: str | None = None
    """`package.module:callable` that returns your own transform, torchvision v2 included; its
    prefix must be allowed. The transform takes a decoded image, a uint8 tensor (3, height, width),
    and returns a uint8 tensor (channels, height, width) of `size_px`; without `size_px`, of the
    model's size, or of any size if the model specifies none. Of the other fields, only `size_px`,
    `mean` and `std` have an effect."""
    args: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of `factory`: numbers, strings, booleans, lists, mappings."""
    mean: tuple[float, ...] | None = None
    """Means in [0, 1], one per channel, subtracted on the device."""
    std: tuple[float, ...] | None = None
    """Standard deviations in [0, 1], one per channel, by which the device divides."""
    shrink_on_load: bool | None = None
    """Let the JPEG decoder halve large photos while they stay at least twice the resized size: much
    faster, but with different pixels. The run first measures whether its predictions agree (see
    `gates`)."""

    @property
    def may_vary(self) -> bool:
        """Tell whether the model may see images of different sizes."""
        return self.size_px is None and (self.factory is not None or self.resize == "none")

    @field_validator("size_px", "resize_px", mode="before")
    @classmethod
    def _one_or_two_sides(cls, size: Any) -> Any:
        is_pair = isinstance(size, list | tuple) and len(size) == 2
        sides = [*size] if is_pair else [size]
        if size is not None and not all(type(side) is int and side > 0 for side in sides):
            raise ValueError("expected a positive integer, or two: [height, width]")
        # After a "before" validator, strict pydantic no longer turns lists into tuples.
        return tuple(size) if is_pair else size

    @field_validator("pad_value", mode="before")
    @classmethod
    def _bytes(cls, value: Any) -> Any:
        values = value if isinstance(value, list | tuple) else [value]
        if value is not None and not all(type(v) is int and 0 <= v <= 255 for v in values):
            raise ValueError("expected an integer from 0 to 255, or one per channel")
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
            raise ValueError(f"{info.field_name} must be between 0 and 1: divide by 255")
        if values is not None and info.field_name == "std" and min(values, default=1) == 0:
            raise ValueError("std is a divisor: its values must be above 0")
        return values

    @model_validator(mode="after")
    def _args_of_factory(self) -> Transform:
        if self.args and self.factory is None:
            raise ValueError("args has no effect without factory")
        return self


class Windows(Section):
    """How a long text is cut."""

    tokens: PositiveInt
    """The most tokens of a window, with the special tokens that the tokenizer adds to each."""
    overlap: Annotated[int, Field(ge=0)] = 0
    """Tokens of the text that a window shares with the next."""


class Text(Section):
    """How texts become tokens. Fields that are not set come from the model directory."""

    max_tokens: PositiveInt | None = None
    """A row with more tokens, including special ones, is cut to this and marked as `truncated`.
    Default: what the model directory specifies."""
    prefix: str | None = Field(default=None, max_length=10_000)
    """Text before each input, such as `"query: "`. Default: the default prompt of the directory;
    `""` disables it."""
    tokenizer: str | None = None
    """URI of a `tokenizer.json`. Default: that of the model directory."""
    windows: Windows | None = None
    """Cuts longer texts into windows, instead of truncating them; the row stays one row. Tasks
    `embed`, `classify`, `multilabel` and `tokens`; see [windows](windows.md)."""


class Audio(Section):
    """How audio clips become model input. Fields that are not set come from the model directory."""

    sample_rate_hz: PositiveInt | None = None
    """Samples per second of the model input; other clips are resampled. For your own models: a
    model directory specifies its rate, and accepts no other."""
    max_s: Annotated[float, Field(gt=0, le=3600)] | None = None
    """A longer clip is quarantined as `too_large`, before it is decoded if its header gives the
    length; clips are never cut. Default: 30, or the model's maximum if that is less; 600 if
    [Whisper writes](README.md#generated-texts), which reads longer clips in windows."""
