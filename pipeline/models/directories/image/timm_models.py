"""Directories of timm: facts from `config.json`, the architecture from the installed timm."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.directories.facts import DirectoryFacts, ImageContract, TimmModel
from pipeline.models.directories.image.image_transform import in_words, make_spec
from pipeline.models.directories.json_files import (
    channels,
    checked,
    crop_ratio,
    pair,
    preview,
    read_value,
)
from pipeline.models.directories.library import check_numbers, require_library
from pipeline.models.directories.tensors import read_headers, read_tensors, require_size
from pipeline.models.weights.state_dict import load_state
from pipeline.preprocessing.images.transform import TransformSpec

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
_NAME = re.compile(r"\w+")
_IMAGENET = 1000
_ARGUMENTS = ("global_pool", "img_size", "in_chans", "num_classes")
"""Arguments of timm's constructors that always may be given; others must be numbers."""
_RESIZES = {"center": "shortest", "squash": "stretch", "border": "pad"}
"""timm's crop_mode -> how images come to their size."""
_FILTERS = {
    "nearest": "nearest-exact",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "lanczos": "lanczos",
}
"""timm resizes with Pillow, whose nearest is that of torchvision's `nearest-exact`."""
_WRAPPER = "timm_model."
"""What transformers puts before the names of a timm model that it saves."""


def timm_facts(folder: Path, values: Mapping[str, Any]) -> DirectoryFacts:
    """Read the facts of a directory of timm.

    Raises:
        JobError: The directory is refused.
    """
    require_library("timm")
    model = _model(values)
    module = _load(folder, model, is_trial=True)
    num_classes = model.arguments["num_classes"]
    given = _object(values, "pretrained_cfg")
    data = {**given, **{key: values[key] for key in _DATA if key in values}}
    in_chans = model.arguments.get("in_chans", 3)
    problem = _problem(data, in_chans)
    transform = None if problem else _transform(data, in_chans)
    problem = f"{CONFIG}: {problem}; give the fields of transform" if problem else ""
    labels, notes = _labels(values, given, num_classes)
    tasks = ("classify", "multilabel", "embed") if num_classes else ("embed",)
    dim = int(getattr(module, "head_hidden_size", None) or module.num_features)
    return DirectoryFacts(
        format_name="timm",
        architecture=model.architecture,
        input="image",
        tasks=tasks,
        labels=labels,
        embedding_dim=dim,
        module=model,
        transform=transform,
        transform_problem=problem,
        images=ImageContract(in_chans),
        notes=(
            f"{CONFIG}: timm {model.architecture}, {num_classes} outputs, {dim} numbers "
            "per image before them",
            f"{CONFIG}: {in_words(transform) if transform else problem}",
            *notes,
        ),
    )


_DATA = ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")


def timm_module(folder: Path, model: TimmModel, *, embeds: bool) -> torch.nn.Module:
    """Build a model of timm with its weights.

    Returns:
        Takes float (B, 3, H, W), normalised; gives logits (B, K), or vectors (B, D).
    """
    from pipeline.models.directories.image.image_modules import TimmVectors

    module = _load(folder, model, is_trial=False)
    return TimmVectors(module) if embeds else module


def _model(values: Mapping[str, Any]) -> TimmModel:
    name: str = read_value(values, "architecture", CONFIG, str, "")
    name = name.partition(".")[0]  # what follows is a tag of weights
    import timm

    if not _NAME.fullmatch(name) or not timm.is_model(name):
        raise JobError(
            f"model.path: {CONFIG}: architecture is {preview(values.get('architecture'))}, which "
            f"the installed timm {version('timm')} does not know"
        )
    arguments = dict(_object(values, "model_args"))
    for key in ("num_classes", "global_pool"):
        if values.get(key) is not None:
            arguments[key] = values[key]
    arguments.setdefault("num_classes", _object(values, "pretrained_cfg").get("num_classes"))
    checked(arguments["num_classes"], "num_classes", CONFIG, int, ge=0)
    if arguments.get("in_chans", 3) not in (1, 3):
        raise JobError(
            f"model.path: {CONFIG}: in_chans is {preview(arguments['in_chans'])}; an image has 3, "
            "or 1 of gray"
        )
    for key, value in arguments.items():
        if key not in _ARGUMENTS and not _is_numbers(value):
            raise JobError(
                f"model.path: {CONFIG}: model_args has {clean_message(key, 60)}: {preview(value)}; "
                "expected numbers"
            )
    check_numbers(arguments)
    return TimmModel(name, arguments)


def _object(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value: dict[str, Any] = read_value(values, key, CONFIG, dict, {})
    return value


def _is_numbers(value: Any) -> bool:
    """Tell whether a value is numbers alone: texts could name files and other models."""
    if isinstance(value, list):
        return all(map(_is_numbers, value))
    return isinstance(value, bool | int | float)


def _load(folder: Path, model: TimmModel, *, is_trial: bool) -> Any:
    """Build the model and load its tensors; a trial does so without memory."""
    import torch

    headers = read_headers(folder)
    with torch.device("meta"):
        module = _create(model)
    require_size(module, headers, CONFIG)
    if is_trial:
        tensors = {
            name: torch.empty(header.shape, device="meta") for name, header in headers.items()
        }
    else:
        module, tensors = _create(model), read_tensors(folder, headers)
    if all(name.startswith(_WRAPPER) for name in tensors):
        tensors = {name.removeprefix(_WRAPPER): tensor for name, tensor in tensors.items()}
    what = f"timm's {model.architecture}"
    load_state(module, tensors, None, "model.path: model.safetensors", what)
    return module.eval()


def _create(model: TimmModel) -> Any:
    import timm

    name = model.architecture
    try:
        return timm.create_model(name, pretrained=False, **model.arguments)
    except Exception as error:
        reason = clean_message(f"{type(error).__name__}: {error}", 200)
        raise JobError(
            f"model.path: timm {version('timm')} builds no {name} of {CONFIG}: {reason}"
        ) from error


def _problem(data: Mapping[str, Any], in_chans: int) -> str | None:
    """Return what in the data configuration the transform cannot do."""
    if data.get("crop_mode") not in (None, "", *_RESIZES):
        return f"crop_mode is {preview(data['crop_mode'])}, expected {', '.join(_RESIZES)}"
    if (data.get("interpolation") or "bicubic") not in tuple(_FILTERS):  # it may be a list
        return f"interpolation is {preview(data['interpolation'])}, expected {', '.join(_FILTERS)}"
    size = data.get("input_size")
    if isinstance(size, list) and len(size) == 3 and size[0] != in_chans:
        return f"input_size is {preview(size)}, and the model takes {in_chans} channels"
    for key in ("mean", "std"):
        values = data.get(key)
        if isinstance(values, list) and len(values) != in_chans and in_chans != 3:
            return f"{key} is {preview(values)}, and the model takes {in_chans} channels"
    return None


def _transform(data: Mapping[str, Any], in_chans: int) -> TransformSpec:
    """Return the transform of timm's `create_transform` for inference."""
    size = data.get("input_size") or [in_chans, 224, 224]
    ratio = crop_ratio(data.get("crop_pct") or 0.875, CONFIG)
    model_px = pair(size[1:]) if isinstance(size, list) else None
    if model_px is None:
        raise JobError(
            f"model.path: {CONFIG}: input_size is {preview(size)}, expected three numbers"
        )
    resize = _RESIZES[data.get("crop_mode") or "center"]
    # A square of `center` becomes one number: the shorter side, rounded as torchvision does.
    aim = tuple(math.floor(side / ratio) for side in model_px)
    count = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]} if in_chans == 3 else {}
    data = {**count, **{key: value for key, value in data.items() if value}}
    mean = channels(data, "mean", CONFIG, in_chans)
    return make_spec(
        CONFIG,
        size_px=model_px,
        resize_px=None if resize != "shortest" and aim == model_px else aim,
        resize=resize,
        pad_value=tuple(round(255 * value) for value in mean) if resize == "pad" else 0,
        interpolation=_FILTERS[data.get("interpolation") or "bicubic"],
        channels="gray" if in_chans == 1 else "rgb",
        mean=mean,
        std=channels(data, "std", CONFIG, in_chans),
    )


def _labels(
    values: Mapping[str, Any], given: Mapping[str, Any], num_classes: int
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Return the class names, and what is said of them."""
    if not num_classes:
        return None, ()
    names = values.get("label_names") or given.get("label_names")
    if names is None and num_classes == _IMAGENET and "in1k" in str(given.get("tag")):
        from timm.data import ImageNetInfo

        info = ImageNetInfo("imagenet-1k")
        labels = tuple(str(info.index_to_description(index)) for index in range(num_classes))
        return labels, (f"{CONFIG}: tag {preview(given['tag'])}: the class names of ImageNet-1k",)
    if names is None:
        return tuple(f"LABEL_{index}" for index in range(num_classes)), ()
    count = {"min_length": num_classes, "max_length": num_classes}
    names = checked(names, "label_names", CONFIG, list[str], **count)
    return tuple(names), (f"{CONFIG}: {num_classes} class names",)
