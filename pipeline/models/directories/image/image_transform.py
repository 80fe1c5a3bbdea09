"""Find the transform that makes the pixels of a directory's image processor.

The library makes the processor. Its attributes give the candidates, and the pixels that it makes
from a few images decide. If no candidate makes these, the facts say why, and the job can give the
fields of its transform.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.core.errors import JobError
from pipeline.core.failures import RowError
from pipeline.core.printable import clean_message
from pipeline.models.directories import probes
from pipeline.models.directories.files import PROCESSOR, processor_settings
from pipeline.models.directories.library import quiet
from pipeline.preprocessing.images.transform import TransformSpec

MAX_LEVELS = 2.0
"""Largest difference of a pixel, of 255 levels: Pillow, torchvision and torch round differently."""
_ROUNDING, _DIGITS = 0.01, 6
_NUM_AXES = 3
_FILTERS = {0: "nearest-exact", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Numbers of Pillow, whose nearest is that of torchvision's `nearest-exact`."""
_SIZES = ("size", "crop_size", "pad_size")
_USUAL_PX = 224
MOST_PX = 1 << 13
"""Longest side of an image that a processor may make of a probe."""

Pixels = npt.NDArray[np.float32]
"""(C, H, W), normalised; of several images of one, (T, C, H, W)."""


class Reading(NamedTuple):
    """The transform of a directory, or why there is none."""

    transform: TransformSpec | None
    problem: str
    """Why there is none; '': there is one."""
    note: str
    """One line for `pipeline plan`."""


class _Made(NamedTuple):
    """The pixels that a processor makes from `probes.images`."""

    images: Sequence[bytes]
    pixels: Sequence[Pixels]
    mean: tuple[float, ...]
    """The mean of each channel, in [0, 1]."""
    std: tuple[float, ...]
    order: str
    """`rgb`, or `bgr`: red and blue change places."""


def read_transform(folder: Path, at: str = "", num_channels: int | None = None) -> Reading:
    """Ask the library for the transform of a directory, and compare its pixels with ours.

    Args:
        at: Where the model's files lie: '' or a folder ending in `/`.
        num_channels: Channels that the model's config names; None: it names none.

    Raises:
        JobError: The file is no JSON, or names code.
    """
    where, values = processor_settings(folder, at, "image_processor")
    if not values:
        return _without(f"no {PROCESSOR}: give the fields of transform")
    if num_channels not in (None, 1, 3):
        return _without(
            f"{where}: the model takes {num_channels} channels; an image has 3, or 1 of gray"
        )
    library = f"transformers {version('transformers')}"
    try:
        processor = image_processor(folder / at)
        made = _made(processor, "L" if num_channels == 1 else "RGB")
    except Exception as error:  # noqa: BLE001  # of the library, which checks values in many ways
        text = f"{type(error).__name__}: {error}".replace(str(folder / at), "the directory")
        reason = clean_message(text, 200)
        return _without(
            f"{where}: {library} makes no images with it: {reason}; give the fields of transform"
        )
    spec, problem = None, _unusual(made)
    if not problem:
        candidates = _candidates(processor, made)
        spec, problem = held_transform(candidates, made.images, made.pixels, library)
    if spec is None:
        return _without(f"{where}: {problem}; {_advice(processor, made)}")
    return Reading(spec, "", f"{where}: {in_words(spec)}")


def _without(problem: str) -> Reading:
    return Reading(None, problem, f"no transform: {problem}")


def image_processor(folder: Path) -> Any:
    """Return the library's image processor of a directory."""
    from transformers import AutoImageProcessor

    with quiet():
        return AutoImageProcessor.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )


def held_transform(
    candidates: Iterable[Mapping[str, Any]],
    images: Sequence[bytes],
    expected: Sequence[Pixels],
    library: str,
) -> tuple[TransformSpec | None, str]:
    """Return the first transform that makes the pixels of the library.

    Args:
        expected: What the library makes of each.

    Returns:
        The transform, or None and how the first candidate differs.
    """
    problems = []
    for fields in candidates:
        try:
            spec = TransformSpec(**fields)
            for data, pixels in zip(images, expected, strict=True):
                _require_pixels(data, spec, pixels, library)
        except (JobError, RowError, ValueError) as error:
            problems.append(str(error).removeprefix("model.path: "))
        else:
            return spec, ""
    return None, problems[0] if problems else "it names no size"


def _require_pixels(data: bytes, spec: TransformSpec, expected: Pixels, library: str) -> None:
    from pipeline.preprocessing.images.decode_image import decode_image
    from pipeline.preprocessing.images.image_checks import DecodeLimits
    from pipeline.preprocessing.images.resizing import resize_and_crop

    decoded = decode_image(data, DecodeLimits(len(data), MOST_PX**2))
    ours = resize_and_crop(decoded, spec, MOST_PX**2).numpy()
    mean, std = (np.array(values)[:, None, None] for values in (spec.mean, spec.std))
    levels = (expected * std + mean) * 255
    name = f"image of {decoded.shape[2]} x {decoded.shape[1]} px"
    probes.require_same(name, "pixels", library, levels, ours, MAX_LEVELS + _ROUNDING)


def pictures(images: Sequence[bytes], mode: str) -> list[Image.Image]:
    """Open encoded images as the library's pipelines do, in a mode of Pillow."""
    from transformers.image_utils import load_image

    return [load_image(Image.open(io.BytesIO(data))).convert(mode) for data in images]


def _made(processor: Any, mode: str) -> _Made:
    """Make the pixels of probes by the library's processor."""
    for name in _SIZES:
        if max(_edges(processor, name).values(), default=0) > MOST_PX:
            raise ValueError(f"{name} is {_edges(processor, name)}, expected at most {MOST_PX} px")

    def make(picture: Image.Image) -> Pixels:
        pixels = processor(picture, return_tensors="pt")["pixel_values"][0]
        if pixels.ndim < _NUM_AXES:
            raise ValueError(f"pixel_values has shape {tuple(pixels.shape)}, expected an image")
        return pixels.float().numpy()  # type: ignore[no-any-return]

    images = probes.images(min(_edges(processor, "size").values(), default=_USUAL_PX))
    plain = Image.new("RGB", (_USUAL_PX, _USUAL_PX)).convert(mode)
    with quiet():
        if (first := make(plain)).ndim > _NUM_AXES:  # it makes several images of one
            images, pixels = (), [first]
        else:
            pixels = [make(picture) for picture in pictures(images, mode)]
        black, white, red = (
            _inside(make(Image.new("RGB", plain.size, colour).convert(mode)))
            for colour in ("black", "white", "red")
        )
    mean, std = _named_statistics(processor, len(black))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if not (_are_near((0 - mean) / std, black) and _are_near((1 - mean) / std, white)):
            # The processor has more steps than its attributes name.
            std = (1 / (white - black)).round(_DIGITS)
            mean = (-black / (white - black)).round(_DIGITS)
    is_swapped = mode == "RGB" and _are_near(red, [*black[:2], *white[2:]])
    is_swapped = is_swapped and not _are_near(red, [*white[:1], *black[1:]])
    order = "bgr" if is_swapped else "rgb"
    return _Made(images, pixels, tuple(mean.tolist()), tuple(std.tolist()), order)


def _inside(pixels: Pixels) -> npt.NDArray[np.float64]:
    """Return a pixel outside of padding, (C,); of the first image if there are several."""
    image = pixels.reshape(-1, *pixels.shape[-_NUM_AXES:])[0]
    return image[:, image.shape[1] // 3, image.shape[2] // 3].astype(float)  # type: ignore[no-any-return]


def _are_near(expected: npt.ArrayLike, actual: npt.ArrayLike) -> bool:
    return np.allclose(expected, actual, rtol=1e-5, atol=1e-5)


def _named_statistics(processor: Any, count: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the means and standard deviations that a processor's attributes say."""
    mean, std = np.zeros(count), np.ones(count)
    if getattr(processor, "do_normalize", False):
        mean, std = (
            np.resize(values, count) for values in (processor.image_mean, processor.image_std)
        )
    does_rescale = getattr(processor, "do_rescale", False)
    scale = 255 * processor.rescale_factor if does_rescale else 255
    return mean / scale, std / scale


def _edges(processor: Any, name: str) -> dict[str, int]:
    """Return the edges that an attribute names, such as `height` or `shortest_edge`, in px."""
    value = getattr(processor, name, None)
    return {} if value is None else {key: px for key, px in dict(value).items() if px is not None}


def _candidates(processor: Any, made: _Made) -> Iterator[dict[str, Any]]:
    """Yield the transforms that the attributes of a processor can mean, the usual one first."""
    interpolation = _filter(processor)
    for sizes in _sizes(processor):
        is_resized = sizes["resize"] != "none"
        is_cropped = sizes["size_px"] is not None and sizes.keys() != {"size_px", "resize"}
        yield {
            "resize_px": None,
            "interpolation": interpolation if is_resized else None,
            "mean": made.mean,
            "std": made.std,
            "channels": "gray" if len(made.mean) == 1 else made.order,
            "crop_start": "floor" if is_cropped or not is_resized else "round",
            **sizes,
        }


def _sizes(processor: Any) -> Iterator[dict[str, Any]]:
    """Yield size_px, resize_px and resize."""
    size, crop_size = _edges(processor, "size"), _edges(processor, "crop_size")
    crop = None
    if getattr(processor, "do_center_crop", False):
        crop = crop_size.get("height"), crop_size.get("width")
    if not getattr(processor, "do_resize", True):
        yield {"size_px": crop, "resize": "none"}
        return
    shortest, longest = size.get("shortest_edge"), size.get("longest_edge")
    target = (size["height"], size["width"]) if "height" in size else None
    if target is not None:
        cropped = {"resize_px": target} if crop not in (None, target) else {}
        yield {"size_px": crop or target, "resize": "stretch", **cropped}
    elif shortest is not None and longest is not None:
        yield {
            "size_px": None,
            "resize_px": (min(shortest, longest), longest),
            "resize": "shortest",
        }
    elif shortest is not None:
        yield {"size_px": crop, "resize_px": shortest, "resize": "shortest"}
    ratio, side = getattr(processor, "crop_pct", None), shortest or size.get("height")
    if ratio and side:
        yield {"size_px": crop or side, "resize_px": int(side / ratio), "resize": "shortest"}
        yield {"size_px": side, "resize": "stretch"}


def _filter(processor: Any) -> str | None:
    """Return the resampling filter of a processor: a number of Pillow, or torchvision's name."""
    resample = getattr(processor, "resample", None)
    return next((name for key, name in _FILTERS.items() if resample in (key, name)), None)


def _unusual(made: _Made) -> str:
    """Describe a step that no transform has; '' if there is none."""
    if made.pixels[0].ndim > _NUM_AXES:
        return "it makes several images of one; to show the model the whole image as one"
    return ""


def _advice(processor: Any, made: _Made) -> str:
    """Return advice on the fields that a job can give."""
    shapes, size = {pixels.shape[-2:] for pixels in made.pixels}, _edges(processor, "size")
    height, width = (min(size.values(), default=_USUAL_PX),) * 2
    if len(shapes) == 1:
        height, width = shapes.pop()
    side = height if height == width else [height, width]
    is_shortest = not shapes and height == width and "shortest_edge" in size
    how = f"resize_px: {side}" if is_shortest else "resize: stretch"
    interpolation = _filter(processor) or "bilinear"
    mean, std = ([round(value, _DIGITS) for value in values] for values in (made.mean, made.std))
    order = "" if made.order == "rgb" else f"channels: {made.order}, "
    return (
        f"give the fields of transform: size_px: {side}, {how}, interpolation: {interpolation}, "
        f"{order}mean: {mean}, std: {std}"
    )


def in_words(spec: TransformSpec) -> str:
    """Describe a transform in words."""
    size, aim = _px(spec.size_px), _px(spec.size_px if spec.resize_px is None else spec.resize_px)
    steps = {
        "shortest": f"resized to {aim} ({spec.interpolation})",
        "stretch": f"stretched to {aim} ({spec.interpolation})",
        "pad": f"fitted into {aim} ({spec.interpolation})",
        "none": "not resized",
    }[spec.resize]
    if spec.keeps_shape and isinstance(spec.resize_px, tuple):
        shorter, longest = spec.resize_px
        steps = (
            f"shorter side resized to {shorter} px, the longer to {longest} px at most "
            f"({spec.interpolation})"
        )
    elif spec.resize == "pad":
        steps += f", padded to {size}"
    elif spec.resize_px is not None or spec.resize == "none":
        steps += f", centre crop of {size}"
    return steps if spec.channels == "rgb" else f"{steps}, {spec.channels}"


def _px(size: int | tuple[int, int] | None) -> str:
    if size is None:
        return "their own size"
    return f"{size} px" if isinstance(size, int) else f"{size[0]} x {size[1]} px"
