"""What an image processor's config of transformers says, as the transform of this package.

The pixels are those of the processor on torchvision, which releases since 5 take by default, within
one level of 255. A config that asks for what the transform cannot do gives no transform, but a text
that says so: the job can give the fields itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pipeline.core.errors import JobError
from pipeline.models.directories.json_files import (
    MAX_NUMBER,
    PROCESSOR,
    channels,
    checked,
    crop_ratio,
    pair,
    preview,
    processor_settings,
    read_value,
    scaled,
    whole_px,
)
from pipeline.preprocessing.images.transform import TransformSpec, sides

_FILTERS = {0: "nearest-exact", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Numbers of Pillow, whose nearest is that of torchvision's `nearest-exact`."""
_WARPED_FROM_PX = 384
"""ConvNeXt's processor does not crop from this size on."""
_SHORTEST_KINDS = (
    *("Bit", "BridgeTower", "Chameleon", "ChineseCLIP", "CLIP", "ConvNext", "ConvNeXt"),
    *("MobileNetV1", "MobileNetV2", "MobileViT", "Siglip", "VideoMAE", "Vilt"),
)
"""Processors of which a single number as size means the shorter side."""
_OF_DETECTORS = ("ConditionalDetr", "DeformableDetr", "Detr", "RTDetr")
"""Processors that resize the shorter side, if the longer one is not too long then, and crop
nothing."""
_LONGEST_PX = 1333
"""Of the longer side, in configs from before there was `longest_edge`."""
_OF_TILES = ("Idefics3", "SmolVLM")
"""Processors that cut an image into several, or stretch it to a square after a first resize."""
_OTHER_KINDS = {
    "Levit": ("resizes the shorter side to 256/224 of size", "shortest"),
    "Perceiver": ("crops before it resizes", "shortest"),
    "PoolFormer": ("resizes the shorter side to size divided by crop_pct", "shortest"),
    "RfDetr": ("does not smooth what it shrinks", "stretch"),
    "Yolos": ("rounds sides down to multiples of 16 px", "stretch"),
}
"""Processors that do something else -> what, and the resize that comes next to it."""
_OTHER_STEPS = {
    "do_flip_channel_order": "swaps red and blue",
    "do_color_quantize": "turns colours into numbers of clusters",
    "do_thumbnail": "makes thumbnails",
    "do_align_long_axis": "turns images",
    "do_grayscale": "takes the gray of images in a way of its own",
    "size_divisor": "gives images many sizes",
    "keep_aspect_ratio": "gives images many sizes",
    "ensure_multiple_of": "rounds sizes",
}
"""Settings of processors that do something else besides -> what."""


class _Unsupported(Exception):
    """The transform has no such step; the text says which."""


def read_transform(
    folder: Path, at: str = "", num_channels: int | None = None
) -> tuple[TransformSpec | None, str | None, str]:
    """Read the transform of a snapshot.

    Args:
        at: Where the model's files lie: '' or a folder ending in `/`.
        num_channels: What the model's config says of its input; None: nothing.

    Returns:
        The transform, or None with why there is none and what the job can give; and the file.

    Raises:
        JobError: The file is damaged.
    """
    where, values = processor_settings(folder, at, "image_processor")
    if not values:
        return None, f"no {PROCESSOR}: give the fields of transform", where
    try:
        return _spec(values, where, num_channels), None, where
    except _Unsupported as error:
        return None, f"{where}: {error}", where


def _spec(values: Mapping[str, Any], where: str, num_channels: int | None) -> TransformSpec:
    processor = str(
        values.get("image_processor_type") or values.get("feature_extractor_type") or ""
    )
    is_gray = num_channels == 1 or (num_channels is None and _has_one_mean(values))
    mean, std = _statistics(values, processor, where, 1 if is_gray else 3)
    resample = values.get("resample")
    interpolation = _FILTERS.get(resample) if isinstance(resample, int) else None
    give = _Advice(mean, std, interpolation or "bilinear")
    if num_channels not in (None, 1, 3):
        raise _Unsupported(f"the model takes {num_channels} channels; an image has 3, or 1 of gray")
    _refuse_other_steps(values, processor, give)
    if processor.startswith(_OF_TILES):
        _refuse_tiles(values, where, give)
    sizes = _sizes(values, processor, where, give)
    if read_value(values, "do_pad", where, bool, False):
        pad = values.get("pad_size")
        size_px = sizes["size_px"]
        if pad is not None and (size_px is None or pair(pad) != sides(size_px)):
            raise _Unsupported(
                f"do_pad fills up to {preview(pad)} after the normalisation; "
                f"{give(pair(pad) or 224, 'pad')} fills up before it"
            )
    if sizes["resize"] != "none" and interpolation is None:
        raise _Unsupported(
            f"resample is {preview(resample)}, expected 0 (nearest), 1 (lanczos), 2 (bilinear) or "
            f"3 (bicubic); {give(sizes['size_px'], sizes['resize'])}"
        )
    is_cropped = sizes["resize"] != "stretch" or sizes["resize_px"] is not None
    is_cropped = is_cropped and sizes["size_px"] is not None
    return make_spec(
        where,
        interpolation=None if sizes["resize"] == "none" else interpolation,
        mean=mean,
        std=std,
        channels="gray" if is_gray else "rgb",
        crop_start="floor" if is_cropped else "round",
        **sizes,
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


def _has_one_mean(values: Mapping[str, Any]) -> bool:
    mean = values.get("image_mean")
    return isinstance(mean, list) and len(mean) == 1


def _statistics(
    values: Mapping[str, Any], processor: str, where: str, count: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return means and standard deviations of pixels that are divided by 255."""
    factor = 1.0
    if read_value(values, "do_rescale", where, bool, True):
        given = values.get("rescale_factor", 1 / 255)
        factor = checked(given, "rescale_factor", where, float, gt=0, le=MAX_NUMBER)
    mean, std = (0.0,) * count, (1.0,) * count
    if read_value(values, "do_normalize", where, bool, True):
        mean = channels(values, "image_mean", where, count)
        std = channels(values, "image_std", where, count)
    if processor.startswith("EfficientNet"):
        if read_value(values, "rescale_offset", where, bool, False):
            mean = tuple(value + 1 for value in mean)  # it takes 1 from what is rescaled
        if read_value(
            values, "include_top", where, bool, True
        ):  # divides by the deviations once more
            again = channels(values, "image_std", where, count)
            std = tuple(first * second for first, second in zip(std, again, strict=True))
    return scaled(mean, 255 * factor), scaled(std, 255 * factor)


def _refuse_other_steps(values: Mapping[str, Any], processor: str, give: _Advice) -> None:
    for key, what in _OTHER_STEPS.items():
        value = values.get(
            key, key == "do_flip_channel_order" and processor.startswith("MobileViT")
        )
        if value is True or value not in (None, 0, 1):
            raise _Unsupported(f"{key} is {preview(value)}, which {what}; {give()}")
    for name, (what, resize) in _OTHER_KINDS.items():
        if processor.startswith(name):
            raise _Unsupported(f"{processor} {what}; {give(_side(values.get('size')), resize)}")


def _sizes(values: Mapping[str, Any], processor: str, where: str, give: _Advice) -> dict[str, Any]:
    """Return size_px, resize_px and resize."""
    crop, size = _crop(values, where, give), values.get("size")
    if not read_value(values, "do_resize", where, bool, True):
        if crop is None:
            raise _Unsupported(f"do_resize is false, so images have any size; {give()}")
        return {"size_px": crop, "resize_px": None, "resize": "none"}
    within = _within(values, processor, where) if crop is None else None
    if within is not None:
        return {"size_px": None, "resize_px": within, "resize": "shortest"}
    shortest = _shortest(size, processor, where, give)
    if shortest is not None and processor.startswith(("ConvNext", "ConvNeXt")):
        if shortest >= _WARPED_FROM_PX:
            return {"size_px": shortest, "resize_px": None, "resize": "stretch"}
        ratio = crop_ratio(values.get("crop_pct", 224 / 256), where)
        return {"size_px": shortest, "resize_px": int(shortest / ratio), "resize": "shortest"}
    target = pair(size)
    if shortest is not None:
        if crop is None:
            raise _Unsupported(
                f"do_center_crop is false, so images have any size; {give(shortest, 'shortest')}"
            )
        _require_inside(crop, (shortest, shortest), size, give)
        return {"size_px": crop, "resize_px": shortest, "resize": "shortest"}
    if target is None:
        raise _Unsupported(f"size is {preview(size)}, expected height and width; {give()}")
    if crop is None or crop == target:
        return {"size_px": target, "resize_px": None, "resize": "stretch"}
    _require_inside(crop, target, size, give)
    return {"size_px": crop, "resize_px": target, "resize": "stretch"}


def _side(size: Any) -> int | tuple[int, int]:
    """Return the sides that a size names, for advice."""
    edge = size.get("shortest_edge") if isinstance(size, dict) else None
    return pair(size) or (edge if type(edge) is int else 224)


def _refuse_tiles(values: Mapping[str, Any], where: str, give: _Advice) -> NoReturn:
    what = "resizes the longer side before it stretches"
    if read_value(values, "do_image_splitting", where, bool, True):
        what = "do_image_splitting is true, which cuts an image into several"
    side_px = _longest_edge(values, "max_image_size", where)
    raise _Unsupported(
        f"{what}; to show the model the whole image as one, {give(side_px, 'stretch')}"
    )


def _longest_edge(values: Mapping[str, Any], key: str, where: str) -> int:
    size = values.get(key)
    edge = size.get("longest_edge") if isinstance(size, dict) else None
    return whole_px(edge, f"longest_edge of {key}", where)


def _within(values: Mapping[str, Any], processor: str, where: str) -> tuple[int, int] | None:
    """Return what the shorter side becomes and the most of the longer one, as for detectors.

    They pad images to the largest of a batch and mask that; a batch of one size has no padding. A
    shorter side that is longer than the longest has no effect.
    """
    size = values.get("size")
    if isinstance(size, int):
        size = {"shortest_edge": size, "longest_edge": values.get("max_size", _LONGEST_PX)}
    is_both = isinstance(size, dict) and {*size} == {"shortest_edge", "longest_edge"}
    if not processor.startswith(_OF_DETECTORS) or not isinstance(size, dict) or not is_both:
        return None
    shorter, longest = (
        whole_px(size[key], "size", where) for key in ("shortest_edge", "longest_edge")
    )
    return min(shorter, longest), longest


def _crop(values: Mapping[str, Any], where: str, give: _Advice) -> tuple[int, int] | None:
    """Return (height, width) of the centre crop; None if there is none."""
    if not read_value(values, "do_center_crop", where, bool, False):
        return None
    size = pair(values.get("crop_size"))
    if size is None:
        raise _Unsupported(
            f"crop_size is {preview(values.get('crop_size'))}, expected height and width; {give()}"
        )
    return size


def _shortest(size: Any, processor: str, where: str, give: _Advice) -> int | None:
    """Return what the shorter side becomes; None if the size is a height and a width."""
    if type(size) is int and processor.startswith(_SHORTEST_KINDS):
        return whole_px(size, "size", where)
    if not isinstance(size, dict) or "height" in size:
        return None
    if size.get("longest_edge") or size.get("max_height"):
        largest = size.get("longest_edge") or size.get("max_height")
        raise _Unsupported(
            f"size {preview(size)} gives images many sizes; "
            f"{give(whole_px(largest, 'size', where), 'pad')}"
        )
    shortest = size.get("shortest_edge")
    return None if shortest is None else whole_px(shortest, "size", where)


def _require_inside(
    crop: tuple[int, int], resized: tuple[int, int], size: Any, give: _Advice
) -> None:
    if crop[0] > resized[0] or crop[1] > resized[1]:
        raise _Unsupported(
            f"crop_size {preview(list(crop))} is larger than size {preview(size)}; "
            f"{give(crop, 'stretch')}"
        )


class _Advice:
    """Says which fields a job can give instead."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], interpolation: str) -> None:
        self._interpolation = interpolation
        self._statistics = f"mean: {_short(mean)}, std: {_short(std)}"

    def __call__(self, size: int | Sequence[int] = 224, resize: str = "shortest") -> str:
        side = size if isinstance(size, int) else [*size]
        how = f"resize_px: {side}" if resize == "shortest" else f"resize: {resize}"
        filtered = "" if resize == "none" else f"interpolation: {self._interpolation}, "
        return f"give the fields of transform: size_px: {side}, {how}, {filtered}{self._statistics}"


def _short(values: Sequence[float]) -> list[float]:
    return [round(value, 6) for value in values]


def in_words(spec: TransformSpec) -> str:
    """Say in words what a transform does."""
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
    return f"{steps}, gray" if spec.channels == "gray" else steps


def _px(size: int | tuple[int, int] | None) -> str:
    if size is None:
        return "their own size"
    return f"{size} px" if isinstance(size, int) else f"{size[0]} x {size[1]} px"
