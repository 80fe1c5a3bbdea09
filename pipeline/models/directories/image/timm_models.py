"""Facts and modules of directories of timm, whose loader and transform are its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.directories import probes
from pipeline.models.directories.facts import DirectoryFacts, ImageContract, TimmModel
from pipeline.models.directories.files import (
    CONFIG,
    SINGLE,
    checked,
    preview,
    read_object,
    read_value,
)
from pipeline.models.directories.image.image_transform import (
    MOST_PX,
    held_transform,
    in_words,
    pictures,
)
from pipeline.models.directories.library import check_numbers, refused, require_library
from pipeline.models.directories.tensors import read_headers, read_tensors, require_size
from pipeline.models.weights.state_dict import load_state
from pipeline.preprocessing.images.transform import TransformSpec

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"\w+")
_IMAGENET = 1000
_TEXTS = ("global_pool",)
"""Arguments of timm's constructors that may be a text, as it names no file and no other model."""
_WRAPPER = "timm_model."
"""Prefix of tensor names in a timm model that transformers saved."""


def timm_facts(folder: Path, values: Mapping[str, Any]) -> DirectoryFacts:
    """Read the facts of a directory of timm.

    Raises:
        JobError: The directory is refused.
    """
    from timm.data import resolve_model_data_config

    module = _load(folder, is_trial=True)
    name = _require_safe(values)
    num_classes, data = int(module.num_classes), resolve_model_data_config(module)
    in_chans = data["input_size"][0]
    transform, problem = _transform(data)
    problem = f"{CONFIG}: {problem}; give the fields of transform" if problem else ""
    labels, notes = _labels(module.pretrained_cfg, num_classes)
    dim = int(getattr(module, "head_hidden_size", None) or module.num_features)
    return DirectoryFacts(
        format_name="timm",
        architecture=name,
        input="image",
        tasks=("classify", "multilabel", "embed") if num_classes else ("embed",),
        labels=labels,
        embedding_dim=dim,
        module=TimmModel(name),
        transform=transform,
        transform_problem=problem,
        images=ImageContract(in_chans),
        notes=(
            f"{CONFIG}: timm {name}, {num_classes} outputs, {dim} numbers per image before them",
            f"{CONFIG}: {in_words(transform)}" if transform else f"no transform: {problem}",
            *notes,
        ),
    )


def timm_module(folder: Path, *, embeds: bool) -> torch.nn.Module:
    """Build a model of timm with its weights.

    Returns:
        Takes float (B, 3, H, W), normalised; gives logits (B, K), or vectors (B, D).
    """
    from pipeline.models.directories.image.image_modules import TimmVectors

    module = _load(folder, is_trial=False)
    return TimmVectors(module) if embeds else module


def _load(folder: Path, *, is_trial: bool) -> Any:
    """Build the model by timm and load its tensors; a trial does so without memory."""
    import torch

    name = _require_safe(read_object(folder, CONFIG))
    headers = read_headers(folder)
    with torch.device("meta"):
        module = _create(folder, name)
    require_size(module, headers, CONFIG)
    if is_trial:
        tensors = {
            name: torch.empty(header.shape, device="meta") for name, header in headers.items()
        }
    else:
        module, tensors = _create(folder, name), read_tensors(folder, headers)
    if _are_wrapped(tensors):
        tensors = {name.removeprefix(_WRAPPER): tensor for name, tensor in tensors.items()}
    load_state(module, tensors, None, f"model.path: {SINGLE}", f"timm's {name}")
    return module.eval()


def is_read_by_timm(folder: Path) -> bool:
    """Tell whether timm itself reads the weights: one file, with the names of its model."""
    return (folder / SINGLE).is_file() and not _are_wrapped(read_headers(folder))


def _are_wrapped(names: Iterable[str]) -> bool:
    return all(name.startswith(_WRAPPER) for name in names)


def _require_safe(values: Mapping[str, Any]) -> str:
    """Return the architecture of a config that makes timm open nothing but its own code.

    Raises:
        JobError: It names a place, an unknown architecture or other arguments than numbers.
    """
    import timm

    require_library("timm")
    name: str = read_value(values, "architecture", CONFIG, str, "").partition(".")[0]
    if not _NAME.fullmatch(name) or not timm.is_model(name):
        raise JobError(
            f"model.path: {CONFIG}: architecture is {preview(values.get('architecture'))}, which "
            f"the installed timm {version('timm')} does not know"
        )
    arguments = read_value(values, "model_args", CONFIG, dict, {})
    for key, value in arguments.items():
        # A string could name a file or another model.
        if key not in _TEXTS and not _is_numbers(value):
            raise JobError(
                f"model.path: {CONFIG}: model_args has {clean_message(key, 60)}: {preview(value)}; "
                "expected numbers"
            )
    check_numbers(dict(values))
    return name


def _is_numbers(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_numbers, value))
    return value is None or isinstance(value, bool | int | float)


def _create(folder: Path, name: str) -> Any:
    import timm

    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=False)
    except Exception as error:
        library = f"timm {version('timm')}"
        raise refused(error, f"builds no {name} of {CONFIG}", library=library) from error


def _transform(data: Mapping[str, Any]) -> tuple[TransformSpec | None, str]:
    """Return the transform that timm has for inference; or None, and why there is none."""
    from timm.data import create_transform

    library, count = f"timm {version('timm')}", data["input_size"][0]
    if data["interpolation"] == "random":
        return None, "interpolation is random: another filter for each image"
    mode = {1: "L", 3: "RGB"}.get(count)
    if mode is None:
        return None, f"the model takes {count} channels; an image has 3, or 1 of gray"
    try:
        theirs = create_transform(**data)
        images, most = probes.images(min(data["input_size"][1:])), np.max(theirs.transforms[0].size)
        if most > MOST_PX:
            raise ValueError(f"it resizes to {most} px, expected at most {MOST_PX}")
        pixels = [theirs(picture).numpy() for picture in pictures(images, mode)]
    except Exception as error:  # noqa: BLE001  # of the library, which checks values in many ways
        return None, clean_message(
            f"{library} makes no images: {type(error).__name__}: {error}", 200
        )
    return held_transform([_fields(theirs.transforms, data)], images, pixels, library)


def _fields(steps: list[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a transform from the steps of torchvision and timm."""
    resize, crop, *_ = steps
    size, filter_name = resize.size, resize.interpolation.value
    is_pair = isinstance(size, list | tuple)
    keeps_ratio = hasattr(resize, "longest")
    how = "pad" if keeps_ratio and resize.longest else "shortest"
    if is_pair and not keeps_ratio:
        how = "stretch"
    target, count = tuple(crop.size), data["input_size"][0]
    return {
        "size_px": target,
        "resize_px": None if how != "shortest" and tuple(size) == target else size,
        "resize": how,
        "pad_value": tuple(crop.fill) if how == "pad" else 0,
        # timm resizes with Pillow, whose nearest is that of torchvision's `nearest-exact`.
        "interpolation": "nearest-exact" if filter_name == "nearest" else filter_name,
        "channels": "gray" if count == 1 else "rgb",
        # Their tensors are rounded to float32.
        **{name: tuple(np.resize(data[name], count).tolist()) for name in ("mean", "std")},
    }


def _labels(
    given: Mapping[str, Any], num_classes: int
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Return the class names, and notes for `pipeline plan`."""
    if not num_classes:
        return None, ()
    names, tag = given.get("label_names"), given.get("tag")
    if names is None and num_classes == _IMAGENET and "in1k" in str(tag):
        from timm.data import ImageNetInfo

        info = ImageNetInfo("imagenet-1k")
        labels = tuple(str(info.index_to_description(index)) for index in range(num_classes))
        return labels, (f"{CONFIG}: tag {preview(tag)}: the class names of ImageNet-1k",)
    if names is None:
        return tuple(f"LABEL_{index}" for index in range(num_classes)), ()
    count = {"min_length": num_classes, "max_length": num_classes}
    names = checked(names, "label_names", CONFIG, list[str], **count)
    return tuple(names), (f"{CONFIG}: {num_classes} class names",)
