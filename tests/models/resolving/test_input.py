"""Test the transform of a job: what its section changes, and images that a model does not take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import pytest
import torch
from safetensors.torch import save_file
from support.models import onnx_files
from support.models.snapshots import change_json, make_snapshot, make_timm
from support.runs.jobs import job_of

from pipeline.core.errors import JobError
from pipeline.job.transform import Transform
from pipeline.models.resolving.input import choose_transform
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec
from pipeline.preprocessing.images.transform import TransformSpec

HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
CROP = TransformSpec(224, 256, "bicubic", **HALF)
SQUASHED = TransformSpec(224, None, "bicubic", **HALF, resize="stretch")
FULL = {"size_px": 32, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}

RGB = models.TRANSFORM
GRAY = {"channels": "gray", "mean": [0.5], "std": [0.5]}


def chosen(default: TransformSpec | None = CROP, **fields: Any) -> TransformSpec:
    return choose_transform("m", default and default.to_dict(), Transform(**fields))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, CROP),
        ({"size_px": 112}, TransformSpec(112, 128, "bicubic", **HALF)),
        ({"size_px": [112, 56]}, TransformSpec((112, 56), 128, "bicubic", **HALF)),
        ({"size_px": [96, 96]}, TransformSpec(96, 110, "bicubic", **HALF)),
        ({"resize": "stretch"}, SQUASHED),
        ({"interpolation": "bilinear"}, TransformSpec(224, 256, "bilinear", **HALF)),
        ({"size_px": 9, "resize_px": 10}, TransformSpec(9, 10, "bicubic", **HALF)),
        ({"resize": "shortest"}, CROP),
        (
            {"resize": "pad", "pad_value": 114},
            TransformSpec(224, None, "bicubic", **HALF, resize="pad", pad_value=114),
        ),
        ({"resize": "none"}, TransformSpec(224, None, None, **HALF, resize="none")),
        (
            {"channels": "gray", "mean": [0.4], "std": [0.3]},
            TransformSpec(224, 256, "bicubic", (0.4,), (0.3,), channels="gray"),
        ),
    ],
)
def test_what_a_job_says_changes_what_the_model_says(fields: dict, expected: TransformSpec):
    assert chosen(**fields) == expected


def test_a_model_that_stretches_does_so_at_other_sizes():
    assert chosen(SQUASHED, size_px=384).resize_px is None
    both = TransformSpec((20, 30), (22, 33), "bicubic", **HALF, resize="stretch")
    assert chosen(both, size_px=[40, 60]).resize_px == (44, 66)
    assert chosen(both, size_px=[40, 60], resize_px=[50, 70]).resize_px == (50, 70)


@pytest.mark.parametrize(
    ("default", "fields", "words"),
    [
        (SQUASHED, {"pad_value": 3}, "transform.pad_value: has no effect with resize 'stretch'"),
        (None, {**FULL}, "brings no transform; give resize_px$"),
        (None, {"resize": "pad"}, "give size_px, interpolation, mean, std$"),
        (None, {"resize": "none"}, "give mean, std$"),
        (CROP, {"channels": "gray"}, "m brings no transform; give mean, std$"),
        (CROP, {"mean": [0.5], "std": [0.5]}, "must have 3 values each"),
        (CROP, {"resize": "none", "interpolation": "bilinear"}, "interpolation: has no effect"),
        (CROP, {"resize": "none", "resize_px": 3}, "resize_px: has no effect with resize 'none'"),
        (CROP, {"resize": "none", "shrink_on_load": True}, "shrink_on_load: has no effect"),
        (CROP, {"resize": "stretch", "pad_value": 3}, "pad_value: has no effect with resize 's"),
        (CROP, {**GRAY, "mean": [0.5] * 3}, "mean has 3 and std 1 values, .* 1 value each, with"),
        (CROP, {"channels": "rgb", "std": [0.5]}, "mean has 3 and std 1 values, .* 3 values each"),
        (CROP, {**GRAY, "resize": "pad", "pad_value": [1, 2, 3]}, r"pad_value is \[1, 2, 3\]; it"),
        (None, {}, "give size_px, resize_px, interpolation, mean, std$"),
        (CROP, {"size_px": [300, 200], "resize_px": 256}, r"at least size_px \(\[300, 200\]\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(default, fields: dict, words: str):
    with pytest.raises(JobError, match=words) as caught:
        chosen(default, **fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("resize", "pad"), ("resize_px", 40), ("interpolation", "bicubic"), ("pad_value", 7)),
        *(("channels", "gray"), ("shrink_on_load", True), ("mean", [0.0] * 5)),
    ],
)
def test_a_factory_replaces_all_but_the_size_and_the_normalisation(field: str, value: Any):
    fields = {**HALF, "factory": "own_transforms:composed", field: value}
    words = "mean has 5 values" if field == "mean" else f"{field} has no effect with factory"
    with pytest.raises(JobError, match=words):
        choose_transform("m", CROP.to_dict(), Transform(**fields), allow_import=["own_transforms"])


@pytest.mark.parametrize(
    "fields",
    [
        {"size_px": 32, "resize_px": 40_000},
        {"size_px": 40_000, "resize": "none"},
        {"size_px": 224, "resize": "stretch", "resize_px": [50_000, 20_000]},
        {"size_px": 40_000, "resize": "pad", "resize_px": 224},
    ],
)
def test_sizes_that_no_image_may_decode_to_are_refused(fields: dict):
    with pytest.raises(JobError, match=r"at least .* allowed are 100000000 \(source.max_image_px"):
        choose_transform("m", CROP.to_dict(), Transform(**fields), max_image_px=100_000_000)
    assert choose_transform("m", CROP.to_dict(), Transform(), max_image_px=10) == CROP


def resolve(model: dict[str, Any], transform: dict[str, Any]) -> ModelSpec:
    return resolve_model(job_of(model, transform=transform), ["models"])


def refusal(model: dict[str, Any], transform: dict[str, Any]) -> str:
    with pytest.raises(JobError) as caught:
        resolve(model, transform)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def state(tmp_path: Path, channels: int = 3) -> str:
    path = tmp_path / "w.safetensors"
    tensors = {
        "blocks.0.dw.weight": torch.zeros(8, 8, 3, 3),
        "stem.weight": torch.zeros(8, channels, 3, 3),
        "fc.weight": torch.zeros(3, 8),
    }
    save_file(tensors, path)
    return str(path)


def test_a_model_of_torchvision_takes_three_channels(tmp_path: Path):
    model = {"name": "resnet18", "weights": state(tmp_path), "labels": ["a"]}
    assert refusal(model, {**RGB, **GRAY}) == (
        "model: resnet18 takes 3 channels, transform gives 1: set transform.channels: rgb"
    )
    assert resolve(model, RGB).input.transform.num_channels == 3


def test_a_directory_says_how_many_channels_its_model_takes(tmp_path: Path):
    gray = make_snapshot(tmp_path / "gray", "vit", "image", num_channels=1)
    change_json(gray / "preprocessor_config.json", image_mean=[0.5], image_std=[0.5])
    change_json(gray / "preprocessor_config.json", do_convert_rgb=False)
    assert resolve({"path": str(gray)}, {}).input.transform.channels == "gray"
    message = refusal({"path": str(gray)}, {"channels": "rgb", "mean": [0.5] * 3, "std": [0.5] * 3})
    assert "takes 1 channel, transform gives 3: set transform.channels: gray" in message
    timm = make_timm(tmp_path / "timm", "test_resnet", num_classes=2)
    message = refusal({"path": str(timm)}, {"channels": "gray", "mean": [0.5], "std": [0.5]})
    assert "test_resnet takes 3 channels, transform gives 1" in message


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_an_onnx_file_says_channels_height_and_width(layout: str, tmp_path: Path):
    path = onnx_files.save(
        onnx_files.image_model((32, 48), layout=layout, channels=1), tmp_path / "m.onnx"
    )
    model = {"path": str(path), "labels": ["a", "b", "c", "d", "e"]}
    assert "takes 1 channel, transform gives 3" in refusal(model, {**RGB, "resize_px": 48})
    assert (
        "takes images of 32 x 48 px (height x width), transform gives 24 x 24: "
        "set transform.size_px: [32, 48]"
    ) in refusal(model, {**RGB, **GRAY, "size_px": 24})
    fine = {**RGB, **GRAY, "size_px": [32, 48], "resize_px": 48}
    assert resolve(model, fine).input.transform.shape == (32, 48, 1)


def test_an_onnx_file_of_any_size_takes_any_size(tmp_path: Path):
    path = onnx_files.save(onnx_files.image_model("side"), tmp_path / "m.onnx")
    model = {"path": str(path), "labels": ["a", "b", "c", "d", "e"]}
    assert (
        resolve(model, {**RGB, "size_px": [20, 30], "resize_px": 32}).input.transform.width_px == 30
    )
