"""A model that takes other images than the transform gives is refused before a run starts."""

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
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec

RGB = models.TRANSFORM
GRAY = {**RGB, "channels": "gray", "mean": [0.5], "std": [0.5]}


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
    assert refusal(model, GRAY) == (
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
    ) in refusal(model, {**GRAY, "size_px": 24})
    fine = {**GRAY, "size_px": [32, 48], "resize_px": 48}
    assert resolve(model, fine).input.transform.shape == (32, 48, 1)


def test_an_onnx_file_of_any_size_takes_any_size(tmp_path: Path):
    path = onnx_files.save(onnx_files.image_model("side"), tmp_path / "m.onnx")
    model = {"path": str(path), "labels": ["a", "b", "c", "d", "e"]}
    assert (
        resolve(model, {**RGB, "size_px": [20, 30], "resize_px": 32}).input.transform.width_px == 30
    )
