"""Test that a processor's config gives its pixels: transformers with both backends, and timm.

On torchvision, which transformers takes by default, nearly all pixels are equal, and none differs
by more than a level of 255. Pillow rounds otherwise: up to MAX_PIL_LEVELS.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.inputs.photos import photo_rows
from support.models.snapshots import (
    change_json,
    make_timm,
    write_image_processor,
    write_json,
)
from support.runs.selection import quick_cases

from pipeline.models.directories.image.image_transform import in_words, read_transform
from pipeline.models.directories.opening import build_module, read_facts
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.images.resizing import resize_and_crop
from pipeline.preprocessing.images.transform import TransformSpec

MAX_LEVELS = 1.0
"""Of 255, against processors on torchvision."""
MAX_PIL_LEVELS = 2.0
"""Against processors on Pillow, and timm."""
ROUNDING = 0.01
NUM_PHOTOS = 4

_NO_CROP = {"do_center_crop": None, "crop_size": None}


def stretched(height: int = 32, width: int = 32, **more: Any) -> dict[str, Any]:
    return {"size": {"height": height, "width": width}, **_NO_CROP, **more}


CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT", stretched(resample=2)),
    "vit, rectangle": ("ViT", stretched(31, 48)),
    "vit, nearest": ("ViT", stretched(resample=0)),
    "vit, lanczos": ("ViT", stretched(resample=1)),
    "vit, bicubic by name": ("ViT", stretched(resample="bicubic")),
    "vit, padding without an effect": ("ViT", stretched(do_pad=True)),
    "vit, gray": ("ViT", stretched(image_mean=[0.4], image_std=[0.3], do_convert_rgb=None)),
    "vit, other scale": ("ViT", stretched(rescale_factor=1 / 127.5)),
    "vit, not normalised": ("ViT", stretched(do_normalize=False)),
    "siglip": ("Siglip", stretched(do_convert_rgb=None)),
    "clip": ("CLIP", {}),
    "clip, a number": ("CLIP", {"size": 36, "crop_size": 31}),
    "deit": ("DeiT", {"size": {"height": 36, "width": 40}}),
    "bit, rectangle": ("Bit", {"crop_size": {"height": 24, "width": 35}}),
    "bit, no resize": ("Bit", {"do_resize": False, "crop_size": {"height": 181, "width": 150}}),
    "bit, padded": ("Bit", {"do_resize": False, "crop_size": {"height": 331, "width": 420}}),
    "convnext": ("ConvNext", {"size": {"shortest_edge": 32}, "crop_pct": 0.8, **_NO_CROP}),
    "convnext, large": ("ConvNext", {"size": {"shortest_edge": 384}, **_NO_CROP}),
    "efficientnet": ("EfficientNet", stretched(include_top=True, rescale_offset=True)),
    "mobilevit": ("MobileViT", {"do_flip_channel_order": True}),
    "d_fine": ("RTDetr", stretched(64, 48, resample=2, do_normalize=False, do_convert_rgb=None)),
    **{
        f"{family}, edges": (family, {"size": edges, "resample": 2, **_NO_CROP})
        for family in ("Detr", "ConditionalDetr", "DeformableDetr", "RTDetr")
        for edges in [{"shortest_edge": 90, "longest_edge": 133}]
    },
}


def photos(count: int) -> list[Image.Image]:
    return [Image.open(io.BytesIO(row.data)).convert("RGB") for row in photo_rows(count, seed=3)]


@pytest.fixture(scope="module")
def few() -> list[Image.Image]:
    return photos(NUM_PHOTOS)


def processor(family: str, folder: Path, backend: str) -> Any:
    import transformers

    cls = getattr(transformers, f"{family}ImageProcessor{'Pil' if backend == 'pil' else ''}")
    return cls.from_pretrained(folder)


def normalised(image: Image.Image, spec: TransformSpec) -> torch.Tensor:
    pixels = resize_and_crop(torch.from_numpy(np.array(image)).permute(2, 0, 1), spec) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    return (pixels - mean) / std


def levels(actual: torch.Tensor, expected: torch.Tensor, spec: TransformSpec) -> float:
    """Return the largest difference in levels of 255."""
    assert actual.shape == expected.shape
    std = torch.tensor(spec.std)[:, None, None]
    return float(((actual - expected).abs() * std * 255).max())


@pytest.mark.parametrize("case", CASES)
def test_pixels_are_those_of_the_processor(case: str, few: list[Image.Image], tmp_path: Path):
    family, changes = CASES[case]
    write_image_processor(tmp_path, image_processor_type=f"{family}ImageProcessor")
    change_json(tmp_path / "preprocessor_config.json", **changes)
    num_channels = len(changes.get("image_mean", "rgb"))
    spec, problem, _ = read_transform(tmp_path, num_channels=num_channels)
    assert spec is not None, problem
    limits = {"torchvision": MAX_LEVELS, "pil": MAX_PIL_LEVELS}
    if case in ("bit, padded", "vit, bicubic by name"):
        # It puts one pixel more of an odd rest on the left and above, and knows numbers alone.
        del limits["pil"]
    for backend, most in limits.items():
        theirs, furthest = processor(family, tmp_path, backend), 0.0
        for image in few:
            picture = image.convert("L") if spec.channels == "gray" else image
            expected = theirs(picture, return_tensors="pt")["pixel_values"][0]
            furthest = max(furthest, levels(normalised(image, spec), expected, spec))
        assert furthest <= most + ROUNDING, backend


LARGE = {"height": 64, "width": 64}
LONGEST = {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 33}}
WHOLE = "it makes several images of one; to show the model the whole image as one; .*size_px: "
EDGES = {"shortest_edge": 90, "longest_edge": 133}
LEFT: Mapping[str, list[tuple[dict[str, Any], str]]] = {
    "Levit": [({"size": {"shortest_edge": 33}}, "probe .* size_px: 32, resize_px: 32, interpol")],
    "RfDetr": [(stretched(64, 48), "probe .* size_px: [64, 48], resize: stretch, interpolation")],
    "Yolos": [({"size": EDGES, **_NO_CROP}, "has shape .* size_px: 90, resize: stretch")],
    "SmolVLM": [(LONGEST, f"{WHOLE}33, resize: stretch, interpolation: bicubic, mean: [0.5, 0.4")],
    "Idefics3": [({**LONGEST, "do_image_splitting": False}, f"{WHOLE}33, resize: stretch")],
    "Perceiver": [({}, "makes no images with it")],
    "PPLCNet": [({}, "probe .* channels: bgr, mean: [0.3, 0.4, 0.5]")],
    "Siglip2": [({}, "pixel_values has shape .* expected an image")],
    "ImageGPT": [({}, "Clusters must be provided")],
    "ViT": [
        ({"size": {"max_height": 32, "max_width": 64}}, "it names no size"),
        ({"crop_size": {"height": 32}}, "makes no images with it: ValueError"),
        ({"crop_size": LARGE}, "the crop would need padding"),
        ({"resample": 4}, "makes no images with it: NotImplementedError"),
        ({"do_pad": True, "pad_size": LARGE}, "has shape (3, 64, 64) in transformers"),
        ({"size": {"height": 1 << 20, "width": 32}}, "expected at most 8192 px"),
        ({"image_mean": [0.5], "image_std": [0.5, 0.5]}, "makes no images with it"),
        ({"image_std": [0.5, 0.0, 0.5]}, "std is [0.5, 0.0, 0.5]"),
        ({"image_mean": [1e308] * 3}, "in transformers"),
        ({"rescale_factor": -1}, "std is "),
        ({"image_processor_type": "NoSuchImageProcessor"}, "Unrecognized image processor"),
    ],
}
"""Kind of processor -> changes of its config, and why the job must give the transform."""


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [(family, *row) for family, rows in LEFT.items() for row in rows],
)
def test_a_processor_with_steps_of_its_own_is_left_to_the_job(
    family: str, changes: dict, words: str, tmp_path: Path
):
    write_image_processor(tmp_path, image_processor_type=f"{family}ImageProcessor")
    change_json(tmp_path / "preprocessor_config.json", **changes)
    spec, problem, note = read_transform(tmp_path)
    assert spec is None
    assert re.search(re.sub(r"([\[()])", r"\\\1", words), problem)
    assert "give the fields of transform" in problem
    assert note == f"no transform: {problem}"


DEFAULTS = (
    *("Bit", "CLIP", "ChineseCLIP", "ConvNext", "DeiT", "EfficientNet", "Flava", "MobileNetV2"),
    *("MobileViT", "PPLCNet", "PoolFormer", "RTDetr", "Siglip", "ViT"),
)


@pytest.mark.parametrize(
    "family",
    quick_cases(
        ((family,) for family in DEFAULTS), lambda name: name in ("Bit", "DeiT", "MobileViT")
    ),
)
def test_a_key_that_is_left_out_is_the_librarys_default_or_refused(
    family: str, few: list[Image.Image], tmp_path: Path
):
    import transformers

    cls = getattr(transformers, f"{family}ImageProcessor")
    cls().save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    whole = json.loads(file.read_text())
    for key in [None, *whole.keys() - {"image_processor_type"}]:
        write_json(file, {name: value for name, value in whole.items() if name != key})
        spec, problem, _ = read_transform(tmp_path)
        if spec is None:
            assert problem, key
            continue
        for image in few[:2]:
            expected = cls.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"][0]
            assert levels(normalised(image, spec), expected, spec) <= MAX_PIL_LEVELS + ROUNDING, key


def test_a_file_that_names_no_processor_has_that_of_the_model(
    few: list[Image.Image], tmp_path: Path
):
    from transformers import AutoImageProcessor, ResNetConfig

    ResNetConfig().save_pretrained(tmp_path)
    statistics = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    write_json(tmp_path / "preprocessor_config.json", {"size": 100, "crop_pct": 0.8, **statistics})
    spec, problem, _ = read_transform(tmp_path)
    assert spec is not None, problem
    assert (spec.size_px, spec.resize_px, spec.resize) == (100, 125, "shortest")
    for image in few[:2]:
        theirs = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")
        assert levels(normalised(image, spec), theirs["pixel_values"][0], spec) <= MAX_LEVELS


@pytest.mark.parametrize(
    "published",
    [
        {"size": 800, "max_size": 1333, "format": "coco_detection"},
        {"size": {"shortest_edge": 800, "longest_edge": 1333}},
    ],
)
def test_detr_is_read_as_it_was_published(published: dict[str, Any], tmp_path: Path):
    statistics = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    steps = {"do_normalize": True, "do_resize": True}
    values = {"feature_extractor_type": "DetrFeatureExtractor", **steps, **statistics}
    write_json(tmp_path / "preprocessor_config.json", {**values, **published})
    spec, problem, _ = read_transform(tmp_path)
    assert spec is not None, problem
    assert (spec.size_px, spec.resize_px, spec.interpolation) == (None, (800, 1333), "bilinear")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"crop_mode": "squash"},
        {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear"},
        {"crop_mode": "border"},
        {"crop_mode": "border", "crop_pct": 1.0, "interpolation": "bilinear"},
        {"crop_mode": "corner", "crop_pct": None, "interpolation": None},
        {"interpolation": "lanczos"},
        {"input_size": [3, 32, 49]},
        {"input_size": [3, 33, 20], "crop_mode": "squash"},
        {"input_size": [3, 33, 20], "crop_mode": "border"},
        {"input_size": [1, 32, 32], "mean": [0.4], "std": [0.3]},
    ],
    ids=str,
)
def test_pixels_are_those_of_timm(changes: dict, few: list[Image.Image], tmp_path: Path):
    from timm.data import create_transform, resolve_data_config

    num_channels = len(changes.get("mean", "rgb"))
    path = make_timm(tmp_path / "m", "test_resnet", num_classes=3, in_chans=num_channels)
    change_cfg(path, changes)
    facts = read_facts(path)
    spec = facts.transform
    assert spec is not None, facts.transform_problem
    theirs = create_transform(**resolve_data_config(pretrained_cfg=cfg_of(path)))
    seen = [image.convert("L") if num_channels == 1 else image for image in few]
    pairs = ((normalised(image, spec), theirs(same)) for image, same in zip(few, seen, strict=True))
    most = max(levels(*pair, spec) for pair in pairs)
    assert most <= MAX_PIL_LEVELS + ROUNDING


def cfg_of(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((path / "config.json").read_text())["pretrained_cfg"]
    return config


def change_cfg(path: Path, changes: Mapping[str, Any]) -> None:
    change_json(path / "config.json", pretrained_cfg={**cfg_of(path), **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"interpolation": "random"}, "interpolation is random: another filter for each image"),
        ({"crop_pct": 1e-3}, "resizes to 32000 px"),
        ({"mean": [1e308] * 3}, "in timm"),
        ({"input_size": [4, 32, 32]}, "the model takes 4 channels"),
        ({"crop_mode": "border", "crop_pct": 1.0, "interpolation": "nearest"}, "probe .* in timm"),
    ],
)
def test_a_transform_of_timm_that_ours_cannot_make_is_explained(
    changes: dict, words: str, tmp_path: Path
):
    in_chans = changes.get("input_size", [3])[0]
    path = make_timm(tmp_path / "m", "test_resnet", num_classes=3, in_chans=in_chans)
    change_cfg(path, changes)
    facts = read_facts(path)
    assert facts.transform is None
    assert re.search(words, facts.transform_problem)


def test_a_model_of_timm_is_built_as_timm_builds_it(tmp_path: Path):
    """Its size and channels may be those of `pretrained_cfg`, which beats what is beside it."""
    path = make_timm(tmp_path / "m", "vit_tiny_patch16_224", 3, img_size=48, depth=1, in_chans=1)
    wanted = {"fixed_input_size": True, "input_size": [1, 48, 48], "mean": [0.4], "std": [0.3]}
    change_cfg(path, wanted)
    beside = {"input_size": [3, 32, 32], "mean": [0.1] * 3, "crop_pct": 0.5}
    change_json(path / "config.json", model_args={"depth": 1}, **beside)
    facts = read_facts(path)
    assert facts.transform is not None, facts.transform_problem
    assert (facts.transform.size_px, facts.transform.mean, facts.images[0]) == (48, (0.4,), 1)
    vectors = build_module(path, facts, TaskSpec("embed"))(torch.zeros(2, 1, 48, 48))
    assert vectors.shape == (2, facts.embedding_dim)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (("shortest", 32, 36, "bicubic"), "resized to 36 px (bicubic), centre crop of 32 px"),
        (("stretch", (32, 48), None, "bilinear"), "stretched to 32 x 48 px (bilinear)"),
        (("pad", 32, None, "bilinear"), "fitted into 32 px (bilinear), padded to 32 px"),
        (("none", 32, None, None), "not resized, centre crop of 32 px"),
    ],
)
def test_a_transform_is_described_in_words(spec: tuple, words: str):
    resize, size, resize_px, interpolation = spec
    half = (0.5,) * 3
    assert (
        in_words(TransformSpec(size, resize_px, interpolation, half, half, resize=resize)) == words
    )
