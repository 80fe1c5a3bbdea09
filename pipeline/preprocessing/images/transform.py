"""Settings of the transform from a decoded image to model input; `resizing.py` applies them.

The driver reads a TransformSpec, too, so nothing here imports torch. Normalisation happens later,
on the model's device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from pipeline.core.failures import RowError

RESIZES = ("shortest", "stretch", "pad", "none")
INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bilinear-plain", "bicubic", "lanczos")
CROP_STARTS = ("round", "floor")
CHANNELS: Mapping[str, int] = {"rgb": 3, "bgr": 3, "gray": 1}
"""Name of the channels -> their number."""

ONLY_WITH: Mapping[str, tuple[str, ...]] = {
    "resize_px": ("shortest", "stretch", "pad"),
    "interpolation": ("shortest", "stretch", "pad"),
    "shrink_on_load": ("shortest", "stretch", "pad"),
    "pad_value": ("pad", "none"),
}
"""Field -> values of `resize` with which it has an effect; other fields always have one."""

REPLACED_BY_FACTORY = (
    *("resize", "resize_px", "interpolation", "pad_value", "channels", "shrink_on_load"),
)
"""Fields without effect if there is a `factory`, which does their work."""
MAX_CHANNELS = 4
"""Most channels of a factory's result."""


Size = int | tuple[int, int]
"""Pixels: the side of a square, or (height, width)."""

# The whole image is resized before the crop, as resampling only the cropped window changes pixels.
# A strip of 1 x 5000 px at resize_px 256 would take 1 GB for a crop of a five-thousandth of it; at
# this ratio it is 10 MB.
MAX_ASPECT_RATIO = 50


class Untransformable(RowError):
    """This image cannot be transformed to model input."""


@dataclass(frozen=True)
class TransformSpec:
    """How a decoded image becomes model input."""

    size_px: Size | None
    """Size of the model input: a side, or (height, width). None: images keep their sizes."""
    resize_px: Size | None
    """Target of the resize; None: size_px, or no resize."""
    interpolation: str | None
    """One of INTERPOLATIONS; None if there is no resize."""
    mean: tuple[float, ...]
    """Channel means in [0, 1], subtracted on the device."""
    std: tuple[float, ...]
    """Channel standard deviations in [0, 1], divided by on the device."""
    shrink_on_load: bool = False
    """Whether the JPEG decoder may halve large photos, down to twice the resized size."""
    resize: str = "shortest"
    """One of RESIZES.

    `shortest`: the aspect ratio is kept, and the shorter side becomes resize_px. `stretch`: both
    sides become resize_px. `pad`: the aspect ratio is kept, and the image fits into resize_px.
    `none`: no resize. Then the centre is cropped to size_px; with `pad` and `none` a smaller image
    is padded. `shortest` without size_px crops nothing: resize_px is the shorter side, or the
    shorter side and the limit of the longer one.
    """
    pad_value: int | tuple[int, ...] = 0
    """Value of the padding with `pad` and `none`: 0 to 255, for all channels or per channel."""
    channels: str = "rgb"
    """`rgb`; `bgr`: the same, blue first; `gray`: one channel, converted before the resize as
    Pillow's mode L."""
    crop_start: str = "round"
    """Rounding of the crop's start if an odd number of pixels is left: `round`, half to even, as
    torchvision, or `floor`, as transformers. Jobs do not set it."""
    factory: str | None = None
    """`package.module:callable` of the user's own transform, which replaces all but size_px, mean
    and std; None if there is none."""
    args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Arguments of the factory by name: JSON values."""
    code_sha256: str = ""
    """Digest of the source code of the factory's module."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size_px", _as_size(self.size_px))
        resize_px = self.resize_px
        if self.keeps_shape and isinstance(resize_px, list | tuple):
            object.__setattr__(self, "resize_px", tuple(resize_px))
        else:
            object.__setattr__(self, "resize_px", _as_size(resize_px))
        for problem in _problems(self):
            raise ValueError(problem)

    @property
    def has_one_size(self) -> bool:
        """Tell whether all images become one size."""
        return self.size_px is not None

    @property
    def keeps_shape(self) -> bool:
        """Tell whether images are resized and not cropped: `shortest` without size_px."""
        return self.resize == "shortest" and self.size_px is None and self.resize_px is not None

    @property
    def height_px(self) -> int:
        """Height of the model input; raises ValueError if images keep their sizes."""
        return self._sides[0]

    @property
    def width_px(self) -> int:
        """Width of the model input; raises ValueError if images keep their sizes."""
        return self._sides[1]

    @property
    def num_channels(self) -> int:
        """Channels of the model input."""
        return CHANNELS[self.channels] if self.factory is None else len(self.mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the model input; raises ValueError if images keep their sizes."""
        return self.height_px, self.width_px, self.num_channels

    @property
    def _sides(self) -> tuple[int, int]:
        if self.size_px is None:
            raise ValueError("images keep their sizes, so the model input has no fixed size")
        return sides(self.size_px)

    def exact(self) -> TransformSpec:
        """Return the same transform, with JPEGs decoded at full size."""
        return replace(self, shrink_on_load=False)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values without defaults; equal specs give equal JSON."""
        usual = _usual_values()
        values = {f.name: _as_json(getattr(self, f.name)) for f in fields(self)}
        values |= {name: [float(value) for value in values[name]] for name in ("mean", "std")}
        return {name: value for name, value in values.items() if value != usual[name]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TransformSpec:
        """Return the spec that `to_dict` described, also after a round trip through JSON."""
        mean = tuple(float(value) for value in values["mean"])
        std = tuple(float(value) for value in values["std"])
        pad = values.get("pad_value", 0)
        pad = tuple(pad) if isinstance(pad, list) else pad
        changed = {"mean": mean, "std": std, "pad_value": pad}
        return cls(**{"resize_px": None, "interpolation": None, **values, **changed})


def _usual_values() -> dict[str, Any]:
    """Return each field's default, which its JSON form leaves out."""
    usual = {f.name: f.default for f in fields(TransformSpec)}
    return usual | {"resize_px": None, "interpolation": None, "args": {}}


def sides(size: Size) -> tuple[int, int]:
    """Return (height, width) of a size."""
    return size if isinstance(size, tuple) else (size, size)


def _as_size(size: Any) -> Any:
    """Return a size in canonical form: an integer for squares, otherwise a tuple."""
    if isinstance(size, list | tuple):
        return size[0] if len(size) == 2 and size[0] == size[1] else tuple(size)
    return size


def _as_json(value: Any) -> Any:
    return [*value] if isinstance(value, tuple) else value


def _problems(spec: TransformSpec) -> Iterator[str]:
    """Yield what is wrong with a spec."""
    for name, value, choices in (
        ("resize", spec.resize, RESIZES),
        ("channels", spec.channels, tuple(CHANNELS)),
        ("crop_start", spec.crop_start, CROP_STARTS),
        *([("interpolation", spec.interpolation, INTERPOLATIONS)] if spec.interpolation else []),
    ):
        if value not in choices:
            yield f"{name} is {value!r}; it must be one of {', '.join(choices)}"
    if spec.factory is not None:
        yield from _factory_problems(spec)
    yield from _size_problems(spec)
    if spec.size_px is None and spec.pad_value:
        yield "pad_value has no effect without size_px"
    count = spec.num_channels
    if len(spec.mean) != count or len(spec.std) != count:
        expected = f"{count} values each, one a channel" if count > 1 else "1 value each"
        given = "" if spec.factory else f", with channels {spec.channels!r}"
        actual = f"mean has {len(spec.mean)} and std {len(spec.std)} values"
        yield f"{actual}, they must have {expected}{given}"
    if min(spec.std) <= 0:
        yield f"std is {list(spec.std)}; its values must be above 0"
    pads = spec.pad_value if isinstance(spec.pad_value, tuple) else (spec.pad_value,) * count
    if len(pads) != count or not all(0 <= value <= 255 for value in pads):
        yield f"pad_value is {_as_json(spec.pad_value)}; it must be 0 to 255, or {count} of these"


def _size_problems(spec: TransformSpec) -> Iterator[str]:
    """Yield what is wrong with the sizes of a spec."""
    for name in ("size_px", "resize_px"):
        size = getattr(spec, name)
        if size is not None and (len(sides(size)) != 2 or min(sides(size)) < 1):
            yield f"{name} is {_as_json(size)}; it must be at least 1"
    for name, kinds in ONLY_WITH.items():
        if spec.resize not in kinds and getattr(spec, name):
            yield f"{name} has no effect with resize {spec.resize!r}"
    if spec.resize == "none" or spec.factory is not None:
        return
    if spec.interpolation is None or (spec.size_px is None and not spec.keeps_shape):
        yield f"resize {spec.resize!r} needs size_px and interpolation"
    elif spec.resize_px is None:
        if spec.resize == "shortest":
            yield "resize 'shortest' needs resize_px"
    else:
        yield from _crop_problems(spec, spec.resize_px)


def _crop_problems(spec: TransformSpec, resize_px: Size) -> Iterator[str]:
    """Yield what is wrong with the size of the resize, given the size of the crop."""
    if spec.size_px is None:
        shorter, longest = sides(resize_px)
        if shorter > longest:
            yield f"resize_px is {_as_json(resize_px)}; without size_px the shorter side is first"
        return
    least = max(sides(spec.size_px)) if isinstance(resize_px, int) else spec.size_px
    short = [have < want for have, want in zip(sides(resize_px), sides(least), strict=True)]
    if any(short) and spec.resize != "pad":
        yield (
            f"resize_px is {_as_json(resize_px)}; it must be at least size_px "
            f"({_as_json(spec.size_px)}), or the crop would need padding"
        )


def _factory_problems(spec: TransformSpec) -> Iterator[str]:
    """Yield what is wrong with a spec that has a factory."""
    usual = _usual_values()
    for name in REPLACED_BY_FACTORY:
        if getattr(spec, name) != usual[name]:
            yield f"{name} has no effect with factory"
    if not 1 <= len(spec.mean) <= MAX_CHANNELS:
        yield f"mean has {len(spec.mean)} values; a factory returns 1 to {MAX_CHANNELS} channels"
